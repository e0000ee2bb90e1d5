"""Which parameters stay as they are: the freeze spec, training mode around it, and proof of it.

A spec is `none`, `features`, `features[:N]` (the first N stages), a name pattern or a list
of patterns; what is frozen is recorded in `requires_grad` and nowhere else.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import takewhile

import torch
from torch import Tensor, nn

from mnet_cli.errors import RecipeError


@dataclass(frozen=True)
class StageRow:
    """One stage of a network and how much of it learns."""

    name: str  # `features.3` or `classifier`
    kind: str  # such as `bottleneck`
    trainable: int  # parameters
    frozen: int  # parameters


def frozen_parameters(model: nn.Module, spec: str | Sequence[str]) -> list[str]:
    """Return the names of the parameters that `spec` freezes, in the model's order.

    Args:
        model: A network with `features` and `classifier`.
        spec: `none`, `features`, `features[:N]`, or fnmatch patterns. A pattern that matches
            a module's name freezes all that is in it; `*` matches dots too.

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
            f"{spec} freezes every parameter",
            "at least one to train was expected",
            'Use "features" to train the classifier alone',
        )
    return [name for name in parameters if name in frozen]


def freeze(model: nn.Module, spec: str | Sequence[str]) -> None:
    """Freeze the parameters that `spec` names and make all others trainable.

    Args:
        model: A network with `features` and `classifier`.
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


def split_frozen(model: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """Divide a network at the frozen boundary: the deepest point below which nothing learns.

    Both parts share the network's modules; `rest(front(images))` is `model(images)`. Dropout
    belongs to the rest, since it gives another answer each time.

    Args:
        model: A network with `features`, `pool` and `classifier`.

    Returns:
        The front, which may be empty, and the rest.
    """
    layers = [
        *model.get_submodule("features").children(),
        model.get_submodule("pool"),
        nn.Flatten(1),
        *model.get_submodule("classifier").children(),
    ]

    def settled(layer: nn.Module) -> bool:
        learns = any(parameter.requires_grad for parameter in layer.parameters())
        return not learns and not isinstance(layer, nn.Dropout)

    front = list(takewhile(settled, layers))
    return nn.Sequential(*front), nn.Sequential(*layers[len(front) :])


def stage_table(model: nn.Module) -> list[StageRow]:
    """Count trainable and frozen parameters of each stage of `features` and of `classifier`."""
    stages = [(f"features.{n}", s) for n, s in model.get_submodule("features").named_children()]
    stages.append(("classifier", model.get_submodule("classifier")))
    return [
        StageRow(
            name,
            str(getattr(stage, "kind", "linear")),
            trainable=sum(p.numel() for p in stage.parameters() if p.requires_grad),
            frozen=sum(p.numel() for p in stage.parameters() if not p.requires_grad),
        )
        for name, stage in stages
    ]


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
            "none, features, features[:N] or patterns over module names were expected",
            f"The nearest names are {', '.join(near)}" if near else "",
        )
    return found


def _first_stages(model: nn.Module, count: int) -> list[str]:
    stages = [f"features.{name}" for name, _ in model.get_submodule("features").named_children()]
    if not 1 <= count <= len(stages):
        raise RecipeError(
            "freeze",
            f"features[:{count}]",
            f"the model has {len(stages)} stages, so a number from 1 to {len(stages)} was expected",
            "See the stages with mnet info",
        )
    return stages[:count]


def _frozen_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that have parameters, all of them frozen."""
    for name, module in model.named_modules():
        flags = [parameter.requires_grad for parameter in module.parameters()]
        if flags and not any(flags):
            yield name, module


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(content.numpy().data).hexdigest()
