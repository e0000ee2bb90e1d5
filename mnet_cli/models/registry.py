"""Architectures by name, and the one way to build a network from plain values."""

from typing import TYPE_CHECKING, Any

from mnet_cli.errors import MachineError, RecipeError, WeightsError
from mnet_cli.models.architecture import (
    NEUTRAL,
    Architecture,
    PublishedWeights,
    StagedModel,
)
from mnet_cli.system.plugins import ARCHITECTURES

if TYPE_CHECKING:
    from torch import nn

NEWEST, FIRST = PUBLISHED_NAMES = ("imagenet", "imagenet-v1")  # weights as a recipe names them


def find_architecture(arch: str) -> Architecture:
    """Return the architecture of that name.

    Raises:
        UsageError, MachineError: As `ExtensionPoint.load` does.
    """
    architecture = ARCHITECTURES.load(arch)
    if not isinstance(architecture, Architecture):
        raise MachineError(
            "architecture",
            f'"{arch}" is a {type(architecture).__name__}, not an Architecture',
            next_step="Update or uninstall the package that adds it",
        )
    return architecture


def build_model(
    arch: str, num_classes: int, *, head: str = "linear", **options: Any
) -> "nn.Module":
    """Build a network with random weights.

    Args:
        arch: The name of an architecture.
        num_classes: Outputs of the classifier; at least 1.
        head: "linear", the architecture's own, or "multi_stage"; see `MultiStage`.
        **options: Of `NEUTRAL`: `width_mult` (α of the papers; above 0), `round_nearest`
            (channels become multiples of it), `reduced_tail` (halve the channels of the last
            stage), `dropout` (in [0, 1)), `norm_eps` (ε of the batch norms). None means the
            architecture's own value.

    Returns:
        A network from images (N, 3, H, W) to logits (N, num_classes), in training mode.

    Raises:
        UsageError: Unknown `arch`.
        RecipeError: An option that the architecture does not have, or a network that is not a
            `StagedModel`.
        ValueError: A number is out of range.
        TypeError: An unknown option.
    """
    architecture = find_architecture(arch)
    if unknown := options.keys() - NEUTRAL.keys():
        raise TypeError(f"build_model has no option {', '.join(sorted(unknown))}")
    given = {name: value for name, value in options.items() if value != NEUTRAL[name]}
    for name in given.keys() - architecture.options:
        raise RecipeError(
            f"model.{name}",
            f"{given[name]} has no effect with {arch}, which has no such option",
            next_step="Remove the key, or change model.arch",
        )
    if head not in ("linear", "multi_stage"):
        raise ValueError(f"head must be linear or multi_stage, not {head}")
    model = architecture.build(num_classes, **given)
    if head == "multi_stage":
        from mnet_cli.models.multi_stage import MultiStage

        model = MultiStage(model, num_classes)
    if fault := _fault(model, num_classes):
        raise RecipeError(
            "model.arch", f"the network of {arch} {fault}", next_step="Report it to its author"
        )
    return model


def _fault(model: "nn.Module", num_classes: int) -> str:
    """What a network lacks of `StagedModel`; empty if nothing."""
    from torch import nn

    from mnet_cli.models.freeze import head_layer

    hidden = {"stages", "head", "pieces"} & model._modules.keys()
    if hidden:
        return f"has a module with the name {', '.join(sorted(hidden))}, which mnet needs itself"
    if not isinstance(model, StagedModel):
        missing = [name for name in ("stages", "head", "pieces") if not hasattr(model, name)]
        return f"has no attribute {', '.join(missing)}"
    try:
        for name in (*model.stages, model.head):
            model.get_submodule(name)
        last = model.get_submodule(head_layer(model))
    except (AttributeError, ValueError) as error:
        return f"is not as it says: {error}"
    if isinstance(last, nn.Linear) and last.out_features != num_classes:
        return f"has {last.out_features} outputs for {num_classes} classes"
    return ""


def published(arch: str, width_mult: float, name: str = NEWEST) -> PublishedWeights:
    """Return the published weights that a recipe's `weights` names.

    Args:
        arch: An architecture.
        width_mult: α.
        name: "imagenet", the newest release, or "imagenet-v1", the first.

    Raises:
        RecipeError: There are none for this architecture at this width.
        WeightsError: The file's hash is not known here, so it must be downloaded by hand.
    """
    architecture = find_architecture(arch)
    releases = architecture.releases(width_mult)
    if not releases:
        widths = ", ".join(f"{width:g}" for width in architecture.widths)
        raise RecipeError(
            "model.weights",
            f'"{name}": no weights are published for {arch} at width_mult {width_mult:g}',
            next_step=(f"Set model.width_mult to one of {widths}, or " if widths else "Set ")
            + "model.weights to none or to a file",
        )
    row = releases[0] if name == FIRST else releases[-1]
    if not row.sha256:
        raise WeightsError(
            f"model.weights: {name}",
            f"the hash of {row.release} is not known to this version, so it cannot be checked",
            next_step=f"Download {row.url}, and set model.weights to the file",
        )
    return row
