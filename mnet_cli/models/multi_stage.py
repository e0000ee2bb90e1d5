"""A head that sees the pooled outputs of several stages, not of the last one alone.

What a network has learnt on ImageNet is most specific in its last stage; earlier stages hold
more general features, which a linear layer on all of them can use (Evci, Dumoulin, Larochelle
and Mozer, "Head2Toe", ICML 2022, arXiv 2201.03529).
"""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mnet_cli.errors import RecipeError
from mnet_cli.models.forward import is_own
from mnet_cli.models.freeze import RANDOM, as_staged, check_pieces, head_layer

STAGES = 5  # whose outputs are pooled, the last one included
SIZE = 224  # pixels; of the images that tell how large the outputs are


class PooledStages(nn.Module):
    """Maps images to the pooled outputs of several pieces and the output of the last one.

    Args:
        pieces: Modules, each of which takes what the one before gave; the last one gives vectors.
        pooled: The places of those pieces whose feature maps are pooled.
        pool: A global average pool.
    """

    def __init__(self, pieces: Sequence[nn.Module], pooled: Sequence[int], pool: nn.Module) -> None:
        super().__init__()
        self.pieces, self.pool, self.pooled = nn.ModuleList(pieces), pool, tuple(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to features (N, D)."""
        return pooled_stages(images, self.pieces, self.pooled, self.pool)


def pooled_stages(
    images: Tensor, pieces: Iterable[nn.Module], pooled: Sequence[int], pool: nn.Module
) -> Tensor:
    """Map images (N, 3, H, W) to features (N, D); see `PooledStages`."""
    x, found = images, []
    for place, piece in enumerate(pieces):
        x = piece(x)
        if place in pooled:
            found.append(pool(x).flatten(1))
    return torch.cat([*found, x], 1)


class MultiStage(nn.Module):
    """A network whose last linear layer sees the pooled outputs of its last stages as well.

    These are the last stage of each of the last `STAGES` numbers of channels. All other tensors
    keep their names.

    Args:
        network: A `StagedModel`; its modules become those of this one.
        num_classes: Outputs.

    Raises:
        RecipeError: The network cannot be divided into pieces, all of them modules of it, that end
            with the linear layer; or no stage but the last one has features.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        staged, last = as_staged(network), head_layer(network)
        self.stages, self.head = [*staged.stages], staged.head
        pieces = staged.pieces()
        if not pieces or pieces[-1] is not network.get_submodule(last):
            raise _refusal("is not divided into pieces that end with its last linear layer")
        if network._parameters or network._buffers:
            raise _refusal("has tensors that belong to none of its modules")
        if not is_own(network):
            check_pieces(network, SIZE)
        end = len(pieces) - 1
        while isinstance(pieces[end - 1], RANDOM):
            end -= 1
        self._pooled, size = _chosen(pieces[:end])
        network.set_submodule(last, nn.Identity())  # its place in the state dict's order stays
        for name, child in network.named_children():
            self.add_module(name, child)
        known = set(self.modules())
        for place, piece in enumerate(pieces[:-1]):  # such as a flatten that is no module of it
            if piece not in known:
                if [*piece.parameters(), *piece.buffers()]:
                    raise _refusal("has pieces that are none of its modules")
                self.add_module(f"piece{place}", piece)
        self.stage_pool = nn.AdaptiveAvgPool2d(1)
        # By name: whoever replaces a module, as to fold batch norms, replaces it here too.
        names = {module: name for name, module in self.named_modules()}
        self._below = tuple(names[piece] for piece in pieces[:end])
        self._above = (*(names[piece] for piece in pieces[end:-1]), last)
        linear = nn.Linear(size, num_classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        self.set_submodule(last, linear)

    def _features(self) -> PooledStages:
        below = [self.get_submodule(name) for name in self._below]
        return PooledStages(below, self._pooled, self.stage_pool)

    def pieces(self) -> list[nn.Module]:
        """All up to the features of the last linear layer as one, then dropout and that layer."""
        return [self._features(), *map(self.get_submodule, self._above)]

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, num_classes)."""
        below = [self.get_submodule(name) for name in self._below]
        x = pooled_stages(images, below, self._pooled, self.stage_pool)
        for name in self._above:
            x = self.get_submodule(name)(x)
        return x


def _chosen(pieces: Sequence[nn.Module]) -> tuple[tuple[int, ...], int]:
    """The places of the pieces to pool, and the number of features in all.

    The output of the last piece is a feature anyway, so the last feature map is left out where
    nothing that learns lies above it.
    """
    channels: dict[int, int] = {}  # of the feature maps, by their place
    x = torch.empty(1, 3, SIZE, SIZE, device="meta")
    try:
        for place, piece in enumerate(copy.deepcopy(nn.ModuleList(pieces)).to("meta").eval()):
            x = piece(x)
            if x.ndim == 4 and x.shape[-1] > 1:
                channels[place] = x.shape[1]
    except (RuntimeError, NotImplementedError) as error:  # it looks at values, which are not there
        raise _refusal("does not tell the shapes of its feature maps") from error
    places = list(channels)
    last = [
        place
        for place, following in zip(places, [*places[1:], -1], strict=True)
        if channels[place] != channels.get(following)
    ][-STAGES:]
    if last and not any(True for piece in pieces[last[-1] + 1 :] for _ in piece.parameters()):
        last.pop()
    if not last:
        raise _refusal("has no feature maps besides the last one")
    return tuple(last), sum(channels[place] for place in last) + x.shape[1]


def _refusal(reason: str) -> RecipeError:
    return RecipeError(
        "model.head",
        f"multi_stage, but the network {reason}",
        next_step="Set model.head: linear",
    )
