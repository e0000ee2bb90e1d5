"""A head that sees the pooled outputs of several stages, not of the last one alone.

What a network has learnt on ImageNet is most specific in its last stage; earlier stages hold
more general features, which a linear layer on all of them can use (Evci, Dumoulin, Larochelle
and Mozer, "Head2Toe", ICML 2022, arXiv 2201.03529).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mnet_cli.errors import RecipeError
from mnet_cli.models.freeze import RANDOM, as_staged, head_layer

STAGES = 5  # whose outputs are pooled, the last one included
SIZE = 224  # of the images that tell how large the outputs are; nothing is computed


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
        x, found = images, []
        for place, piece in enumerate(self.pieces):
            x = piece(x)
            if place in self.pooled:
                found.append(self.pool(x).flatten(1))
        return torch.cat([*found, x], 1)


class MultiStage(nn.Module):
    """A network whose last linear layer sees the pooled outputs of its last stages as well.

    These are the last stage of each of the last `STAGES` numbers of channels. All other tensors
    keep their names.

    Args:
        network: A `StagedModel`; it becomes part of this one.
        num_classes: Outputs.

    Raises:
        RecipeError: The network cannot be divided into pieces that end with the linear layer.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        staged = as_staged(network)
        self.stages, self.head = [*staged.stages], staged.head
        pieces = staged.pieces()
        last = head_layer(network)
        if not pieces or pieces[-1] is not network.get_submodule(last):
            raise RecipeError(
                "model.head",
                "multi_stage, but the network is not divided into pieces that end with its last "
                "linear layer",
                next_step="Set model.head: linear",
            )
        end = len(pieces) - 1
        while isinstance(pieces[end - 1], RANDOM):
            end -= 1
        network.set_submodule(last, nn.Identity())  # its place in the state dict's order stays
        for name, child in network.named_children():
            self.add_module(name, child)
        known = set(self.modules())
        for place, piece in enumerate(pieces[:end]):  # such as a flatten that is no module of it
            if piece not in known and not [*piece.parameters(), *piece.buffers()]:
                self.add_module(f"piece{place}", piece)
        self.stage_pool = nn.AdaptiveAvgPool2d(1)
        features = PooledStages(pieces[:end], _chosen(pieces[:end]), self.stage_pool)
        plain = copy.deepcopy(features).to("meta").eval()
        size = plain(torch.empty(1, 3, SIZE, SIZE, device="meta")).shape[1]
        linear = nn.Linear(size, num_classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        self.set_submodule(last, linear)
        # In a tuple, as their modules are registered under the names of the network already.
        self._pieces = (features, *pieces[end:-1], linear)

    def pieces(self) -> list[nn.Module]:
        """All up to the features of the last linear layer as one, then dropout and that layer."""
        return [*self._pieces]

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, num_classes)."""
        features, *others = self._pieces
        # Not called as a module, because a tracer knows modules by the names that they have here.
        x: Tensor = features.forward(images)
        for layer in others:
            x = layer(x)
        return x


def _chosen(pieces: Sequence[nn.Module]) -> list[int]:
    """The places of the pieces to pool.

    The output of the last piece is a feature anyway, so the last feature map is left out where
    nothing that learns lies above it.
    """
    channels: dict[int, int] = {}  # of the feature maps, by their place
    x = torch.empty(1, 3, SIZE, SIZE, device="meta")
    for place, piece in enumerate(copy.deepcopy(nn.ModuleList(pieces)).to("meta").eval()):
        x = piece(x)
        if x.ndim == 4 and x.shape[-1] > 1:
            channels[place] = x.shape[1]
    places = list(channels)
    last = [
        place
        for place, following in zip(places, [*places[1:], -1], strict=True)
        if channels[place] != channels.get(following)
    ][-STAGES:]
    if last and not any(True for piece in pieces[last[-1] + 1 :] for _ in piece.parameters()):
        last.pop()
    return last
