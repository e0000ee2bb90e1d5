"""Every architecture by name, and the one way to build a network from plain values.

To add an architecture: write its paper's table, block and builder in one file beside this
one (the builder returns a `MobileNet` and takes `num_classes, *, width_mult, dropout,
norm_eps`), then add one `Architecture` to `ARCHITECTURES`. A state dict that is named like
the published weights spares a name map in `models/weights`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from mnet_cli.errors import RecipeError, UsageError
from mnet_cli.models.layers import MobileNet
from mnet_cli.models.mobilenet_v1 import mobilenet_v1
from mnet_cli.models.mobilenet_v2 import mobilenet_v2
from mnet_cli.models.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small


@dataclass(frozen=True)
class Architecture:
    """What a recipe may call `model.arch`."""

    name: str
    title: str  # as in the paper
    paper: str  # arXiv number
    builder: Callable[..., MobileNet]
    dropout: float  # unless the recipe says otherwise
    norm_eps: float  # unless the weights were trained with another
    has_reduced_tail: bool = False


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("mobilenet_v1", "MobileNetV1", "1704.04861", mobilenet_v1, 0.001, 1e-5),
        Architecture("mobilenet_v2", "MobileNetV2", "1801.04381", mobilenet_v2, 0.2, 1e-5),
        Architecture(
            "mobilenet_v3_large",
            "MobileNetV3-Large",
            "1905.02244",
            mobilenet_v3_large,
            dropout=0.2,
            norm_eps=1e-3,
            has_reduced_tail=True,
        ),
        Architecture(
            "mobilenet_v3_small",
            "MobileNetV3-Small",
            "1905.02244",
            mobilenet_v3_small,
            dropout=0.2,
            norm_eps=1e-3,
            has_reduced_tail=True,
        ),
    )
}


def find_architecture(arch: str) -> Architecture:
    """Return the architecture of that name.

    Raises:
        UsageError: There is none; the error names the nearest.
    """
    if arch in ARCHITECTURES:
        return ARCHITECTURES[arch]
    near = get_close_matches(arch, ARCHITECTURES, n=1)
    raise UsageError(
        "arch",
        f'unknown architecture "{arch}"',
        f"one of {', '.join(ARCHITECTURES)} was expected",
        f'Did you mean "{near[0]}"?' if near else "",
    )


def build_model(
    arch: str,
    num_classes: int,
    *,
    width_mult: float = 1.0,
    reduced_tail: bool = False,
    dropout: float | None = None,
    norm_eps: float | None = None,
) -> MobileNet:
    """Build a network with fresh weights.

    Args:
        arch: A key of `ARCHITECTURES`.
        num_classes: Outputs of the classifier; at least 1.
        width_mult: alpha of the papers; above 0.
        reduced_tail: Halve the channels of the last stage; V3 only.
        dropout: Probability in [0, 1); the architecture's own when None.
        norm_eps: ε of the batch norms; the architecture's own when None.

    Returns:
        A network from images (N, 3, H, W) to logits (N, num_classes), in training mode.

    Raises:
        UsageError: Unknown `arch`.
        RecipeError: `reduced_tail` for an architecture without one.
        ValueError: A number is out of range.
    """
    architecture = find_architecture(arch)
    arguments: dict[str, float | bool] = {
        "width_mult": width_mult,
        "dropout": architecture.dropout if dropout is None else dropout,
        "norm_eps": architecture.norm_eps if norm_eps is None else norm_eps,
    }
    if architecture.has_reduced_tail:
        arguments["reduced_tail"] = reduced_tail
    elif reduced_tail:
        raise RecipeError(
            "model.reduced_tail",
            f"true with {arch}, which has no reduced tail",
            "false, or a MobileNetV3, was expected",
            "Remove the key or change model.arch",
        )
    return architecture.builder(num_classes, **arguments)
