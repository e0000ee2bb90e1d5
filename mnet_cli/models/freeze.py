"""Frozen parameters: the freeze spec, training mode around it, and a check that nothing moved.

A spec is `none`, `features` (all but the head), `all_but_last` (all but the last linear layer),
`features[:N]` (the first N stages), a name pattern or a list of patterns; what is frozen is
recorded in `requires_grad` and nowhere else.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import cast

import torch
from torch import Tensor, nn

from mnet_cli.errors import RecipeError
from mnet_cli.models.architecture import StagedModel

RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True)
class StageRow:
    """One stage of a network and how much of it trains.

    Attributes:
        name: `features.3` or `classifier`.
        kind: Such as `bottleneck`.
        trainable, frozen: Numbers of parameters.
        is_head: Whether it is the head.
    """

    name: str
    kind: str
    trainable: int
    frozen: int
    is_head: bool = False


def as_staged(model: nn.Module) -> StagedModel:
    """The same network, as `build_model` has checked it."""
    return cast(StagedModel, model)


def head_layer(model: nn.Module) -> str:
    """The name of the last linear layer of the head, whose outputs are the logits.

    Raises:
        ValueError: The head has no linear layer.
    """
    head = as_staged(model).head
    names = [
        f"{head}.{name}" if name else head
        for name, module in model.get_submodule(head).named_modules()
        if isinstance(module, nn.Linear)
    ]
    if not names:
        raise ValueError(f"the head {head} has no linear layer")
    return names[-1]


def frozen_parameters(model: nn.Module, spec: str | Sequence[str]) -> list[str]:
    """Return the names of the parameters that `spec` freezes, in the model's order.

    Args:
        model: A network of `build_model`.
        spec: `none`, `features`, `all_but_last`, `features[:N]`, or fnmatch patterns. A pattern
            that matches a module's name freezes all that is in it; `*` matches dots too.

    Raises:
        RecipeError: N is out of range, a pattern matches nothing, or nothing is left to train.
    """
    if spec == "none":
        return []
    frozen: set[str] = set()
    for pattern in [spec] if isinstance(spec, str) else spec:
        frozen |= _matches(model, pattern)
    parameters = [name for name, _ in model.named_parameters()]
    if len(frozen) == len(parameters):
        raise RecipeError(
            "freeze",
            f"{spec} freezes every parameter, so nothing is left to train",
            next_step='Use "features" to train the classifier alone',
        )
    return [name for name in parameters if name in frozen]


def freeze(model: nn.Module, spec: str | Sequence[str]) -> None:
    """Freeze the parameters that `spec` names and make all others trainable.

    Args:
        model: A network of `build_model`.
        spec: As in `frozen_parameters`.

    Raises:
        RecipeError: As in `frozen_parameters`; the model is as it was.
    """
    frozen = set(frozen_parameters(model, spec))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def set_train_mode(model: nn.Module) -> None:
    """Put `model` in training mode, but what is frozen in evaluation mode.

    Without it frozen batch norms would go on averaging new images into their statistics,
    and dropout inside a frozen part would still add noise. Call it in place of
    `model.train()`.
    """
    model.train()
    for _, module in _frozen_modules(model):
        module.eval()
    split_frozen(model)[0].eval()  # modules without parameters too, such as some norms


def split_frozen(model: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """Divide a network at the frozen boundary: the deepest cut below which nothing learns.

    Cuts are between the pieces of the network. Both parts share its modules; `rest(front(images))`
    is `model(images)`. Dropout belongs to the rest, since it gives another output each time.

    Args:
        model: A network of `build_model`.

    Returns:
        The front and the rest. The front is empty, and the rest the network itself, where no
        piece is frozen or the network cannot be divided.
    """
    pieces = as_staged(model).pieces()
    front = list(takewhile(_is_constant, pieces))
    if not any(True for piece in front for _ in piece.parameters()):
        return nn.Sequential(), nn.Sequential(model)
    return nn.Sequential(*front), nn.Sequential(*pieces[len(front) :])


def check_pieces(model: nn.Module, image_size: int) -> None:
    """Check that the pieces of a network give its output, on images of noise.

    Args:
        model: A network of `build_model`.
        image_size: Side of the images in pixels.

    Raises:
        RecipeError: They do not, so that its frozen part cannot be divided off.
    """
    pieces = as_staged(model).pieces()
    if not pieces:
        return
    noise = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, image_size, image_size, generator=noise)
    was_training = model.training
    with torch.inference_mode():
        expected, found = model.eval()(images), nn.Sequential(*pieces)(images)
    model.train(was_training)
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        raise RecipeError(
            "model.arch",
            "the pieces of the network do not give its output",
            next_step="Report it to the author of the architecture",
        )


def _is_constant(piece: nn.Module) -> bool:
    """Whether a piece always gives the same output for the same input."""
    learns = any(parameter.requires_grad for parameter in piece.parameters())
    return not learns and not any(isinstance(m, RANDOM) for m in piece.modules())


def frozen_title(model: nn.Module, front: nn.Module) -> str:
    """The name of the part of a network that `split_frozen` gave: `features[:14]`."""
    staged, inside = as_staged(model), set(front.modules())
    stages = [name for name in staged.stages if model.get_submodule(name) in inside]
    if len(stages) < len(staged.stages):
        return f"features[:{len(stages)}]"
    layers = [m for m in model.get_submodule(staged.head).children() if m in inside]
    return f"features, {staged.head}[:{len(layers)}]" if layers else "features"


def stage_table(model: nn.Module) -> list[StageRow]:
    """Count trainable and frozen parameters of each stage, of what is in none, and of the head."""
    staged = as_staged(model)
    rows = [_stage_row(name, [model.get_submodule(name)]) for name in staged.stages]
    head = model.get_submodule(staged.head)
    inside = {p for n in (*staged.stages, staged.head) for p in model.get_submodule(n).parameters()}
    other = [p for p in model.parameters() if p not in inside]
    if other:
        rows.append(_stage_row("other", [nn.ParameterList(other)]))
    return [*rows, _stage_row(staged.head, [head], is_head=True)]


def _stage_row(name: str, modules: Sequence[nn.Module], *, is_head: bool = False) -> StageRow:
    parameters = [p for module in modules for p in module.parameters()]
    return StageRow(
        name,
        str(getattr(modules[0], "kind", "linear")),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        is_head=is_head,
    )


def frozen_fingerprint(model: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of every tensor that training must not move, by its name.

    These are the frozen parameters, and the buffers of modules that are frozen whole, such
    as the running statistics of batch norms.
    """
    tensors = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    for prefix, module in _frozen_modules(model):
        tensors |= dict(module.named_buffers(prefix))
    return {name: _digest(tensor) for name, tensor in tensors.items()}


def moved(before: Mapping[str, str], model: nn.Module) -> list[str]:
    """Return the names in a fingerprint whose tensors have changed or gone since.

    Args:
        before: What `frozen_fingerprint` returned for this model earlier.
        model: The model now; what is frozen in it now does not matter.
    """
    now = {n: p.detach() for n, p in model.named_parameters()} | dict(model.named_buffers())
    return [n for n, digest in before.items() if n not in now or _digest(now[n]) != digest]


def _matches(model: nn.Module, pattern: str) -> set[str]:
    """Names of the parameters that one pattern freezes."""
    parameters = [name for name, _ in model.named_parameters()]
    modules = [name for name, module in model.named_modules() if name and [*module.parameters()]]
    if pattern == "features":
        head = as_staged(model).head
        return {name for name in parameters if not name.startswith(f"{head}.")}
    if pattern == "all_but_last":
        last = head_layer(model)
        return {name for name in parameters if not name.startswith(f"{last}.")}
    if first_stages := re.fullmatch(r"features\[:(\d+)\]", pattern):
        roots = _first_stages(model, int(first_stages[1]))
    else:
        roots = [n for n in [*modules, *parameters] if fnmatchcase(n, pattern)]
    found = {p for p in parameters for root in roots if p == root or p.startswith(f"{root}.")}
    if not found:
        near = get_close_matches(pattern, [*modules, *parameters], n=3)
        raise RecipeError(
            "freeze",
            f'"{pattern}" matches no parameter',
            next_step=f"The nearest names are {', '.join(near)}"
            if near
            else "Use none, features, all_but_last, features[:N] or patterns on names of modules",
        )
    return found


def _first_stages(model: nn.Module, count: int) -> Sequence[str]:
    stages = as_staged(model).stages
    if not 1 <= count <= len(stages):
        raise RecipeError(
            "freeze",
            f"features[:{count}], but the model has {len(stages)} stages",
            next_step=f"Choose a number from 1 to {len(stages)}; mnet info shows the stages",
        )
    return stages[:count]


def _frozen_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that have parameters, all of them frozen, and all below the frozen boundary."""
    below = set(split_frozen(model)[0].modules())
    for name, module in model.named_modules():
        flags = [parameter.requires_grad for parameter in module.parameters()]
        if (flags and not any(flags)) or (module in below and not any(flags)):
            yield name, module


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(content.numpy().data).hexdigest()
