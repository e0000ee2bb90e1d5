"""MobileNetV3: searched bottlenecks, squeeze-excitation, h-swish (arXiv 1905.02244)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from mnet_cli.models import timm_names
from mnet_cli.models.architecture import Architecture, PublishedWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mnet_cli.models.layers import MobileNet, Residual

RE, HS = "ReLU", "h-swish"
Row = tuple[int, int, int, bool, str, int]

V3_STEM = 16  # channels of the first, full convolution             (paper, tables 1 and 2)

LARGE_LAST = 1280  # channels before the last layer                          (paper, table 1)
LARGE_TABLE: tuple[Row, ...] = (
    # k kernel, exp expanded channels, c channels,
    # SE squeeze-excitation, NL activation, s stride                         (paper, table 1)
    (3, 16, 16, False, RE, 1),
    (3, 64, 24, False, RE, 2),
    (3, 72, 24, False, RE, 1),
    (5, 72, 40, True, RE, 2),
    (5, 120, 40, True, RE, 1),
    (5, 120, 40, True, RE, 1),
    (3, 240, 80, False, HS, 2),
    (3, 200, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 480, 112, True, HS, 1),
    (3, 672, 112, True, HS, 1),
    (5, 672, 160, True, HS, 2),
    (5, 960, 160, True, HS, 1),
    (5, 960, 160, True, HS, 1),
)

SMALL_LAST = 1024  # channels before the last layer                          (paper, table 2)
SMALL_TABLE: tuple[Row, ...] = (
    # k kernel, exp expanded channels, c channels,
    # SE squeeze-excitation, NL activation, s stride                         (paper, table 2)
    (3, 16, 16, True, RE, 2),
    (3, 72, 24, False, RE, 2),
    (3, 88, 24, False, RE, 1),
    (5, 96, 40, True, HS, 2),
    (5, 240, 40, True, HS, 1),
    (5, 240, 40, True, HS, 1),
    (5, 120, 48, True, HS, 1),
    (5, 144, 48, True, HS, 1),
    (5, 288, 96, True, HS, 2),
    (5, 576, 96, True, HS, 1),
    (5, 576, 96, True, HS, 1),
)


def inverted_residual(
    in_channels: int,
    hidden: int,
    out_channels: int,
    *,
    kernel: int,
    stride: int,
    squeeze: bool,
    activation: "Callable[..., nn.Module]",
    norm: "Callable[[int], nn.Module]",
) -> "Residual":
    """Expand, filter depthwise, weigh channels, project (paper, figure 4).

    Bottlenecks of equal shape are joined by a shortcut.

    Args:
        in_channels: Channels of the incoming bottleneck.
        hidden: Channels of the depthwise convolution; `in_channels` leaves the expansion out.
        out_channels: Channels of the outgoing bottleneck.
        kernel: Side of the depthwise kernel.
        stride: Stride of the depthwise convolution.
        squeeze: Whether a squeeze-excitation to a quarter of `hidden` follows it.
        activation: The class of the block's activation.
        norm: Builds a batch norm from its number of channels.
    """
    from mnet_cli.models.layers import (
        ConvNormActivation,
        Residual,
        SqueezeExcitation,
        make_divisible,
    )

    conv = partial(ConvNormActivation, norm=norm)
    layers: list[nn.Module] = []
    if hidden != in_channels:
        layers.append(conv(in_channels, hidden, 1, activation=activation))
    layers.append(conv(hidden, hidden, kernel, stride=stride, groups=hidden, activation=activation))
    if squeeze:
        layers.append(SqueezeExcitation(hidden, make_divisible(hidden // 4)))
    layers.append(conv(hidden, out_channels, 1, activation=None))
    return Residual("block", layers, shortcut=stride == 1 and in_channels == out_channels)


def mobilenet_v3_large(
    num_classes: int = 1000,
    *,
    width_mult: float = 1.0,
    round_nearest: int | None = None,
    reduced_tail: bool = False,
    dropout: float = 0.2,
    norm_eps: float = 1e-3,
) -> "MobileNet":
    """Build MobileNetV3-Large, with torchvision's state-dict names.

    Args:
        num_classes: Outputs of the classifier.
        width_mult: alpha of the papers.
        round_nearest: Channels are alpha·c rounded to a multiple of this; 8 when None.
        reduced_tail: Halve the channels of the last stage and of the classifier, which
            are sized for 1000 classes (paper, section 6.3, for detection).
        dropout: Probability of dropping a feature before the last linear layer.
        norm_eps: ε of the batch norms.

    Returns:
        The network: `features.0` the stem, `features.1` … `features.15` the bottlenecks,
        `features.16` the last convolution, `classifier.0` and `classifier.3` linear layers.

    Raises:
        ValueError: An argument is out of range.
    """
    table, last = _tail(LARGE_TABLE, LARGE_LAST, reduced_tail)
    return _mobilenet_v3(table, last, num_classes, width_mult, round_nearest, dropout, norm_eps)


def mobilenet_v3_small(
    num_classes: int = 1000,
    *,
    width_mult: float = 1.0,
    round_nearest: int | None = None,
    reduced_tail: bool = False,
    dropout: float = 0.2,
    norm_eps: float = 1e-3,
) -> "MobileNet":
    """Build MobileNetV3-Small, with torchvision's state-dict names.

    Args:
        num_classes: Outputs of the classifier.
        width_mult: alpha of the papers.
        round_nearest: Channels are alpha·c rounded to a multiple of this; 8 when None.
        reduced_tail: Halve the channels of the last stage and of the classifier, which
            are sized for 1000 classes (paper, section 6.3, for detection).
        dropout: Probability of dropping a feature before the last linear layer.
        norm_eps: ε of the batch norms.

    Returns:
        The network: `features.0` the stem, `features.1` … `features.11` the bottlenecks,
        `features.12` the last convolution, `classifier.0` and `classifier.3` linear layers.

    Raises:
        ValueError: An argument is out of range.
    """
    table, last = _tail(SMALL_TABLE, SMALL_LAST, reduced_tail)
    return _mobilenet_v3(table, last, num_classes, width_mult, round_nearest, dropout, norm_eps)


def _tail(table: tuple[Row, ...], last: int, reduced: bool) -> tuple[tuple[Row, ...], int]:
    """The table and the last width, with the last stage halved when `reduced`."""
    if not reduced:
        return table, last
    start = max(index for index, (*_, s) in enumerate(table) if s == 2)
    # The first row of the stage still expands a bottleneck of full width.
    halved = [
        (k, exp if row == 0 else exp // 2, c // 2, se, nl, s)
        for row, (k, exp, c, se, nl, s) in enumerate(table[start:])
    ]
    return (*table[:start], *halved), last // 2


def _mobilenet_v3(
    table: tuple[Row, ...],
    last: int,
    num_classes: int,
    width_mult: float,
    round_nearest: int | None,
    dropout: float,
    norm_eps: float,
) -> "MobileNet":
    from torch import nn

    from mnet_cli.models.layers import (
        ConvNormActivation,
        MobileNet,
        check_arguments,
        make_divisible,
    )

    def width(channels: int) -> int:
        return make_divisible(channels * width_mult, round_nearest)

    check_arguments(num_classes, width_mult, dropout)
    # The average decay of 0.99 (paper, section 6.1) is momentum 0.01 in PyTorch's terms.
    norm = partial(nn.BatchNorm2d, eps=norm_eps, momentum=0.01)
    activations = {RE: nn.ReLU, HS: nn.Hardswish}
    conv = partial(ConvNormActivation, norm=norm, activation=nn.Hardswish)
    channels = width(V3_STEM)
    features: list[nn.Module] = [conv(3, channels, 3, stride=2)]
    for k, exp, c, se, nl, s in table:
        features.append(
            inverted_residual(
                channels,
                width(exp),
                width(c),
                kernel=k,
                stride=s,
                squeeze=se,
                activation=activations[nl],
                norm=norm,
            )
        )
        channels = width(c)
    features.append(conv(channels, 6 * channels, 1))
    wide = width(last)
    classifier = [
        nn.Linear(6 * channels, wide),
        nn.Hardswish(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(wide, num_classes),
    ]
    return MobileNet(features, classifier)


def _block_names(layers: set[str]) -> timm_names.Names:
    """Our names, below `features.N`, of one of timm's blocks."""
    if "conv" in layers:  # the last convolution counts as a block there
        return {"conv": "0", "bn1": "1"}
    return timm_names.nested_names(layers, "block.")


def _from_timm(state_dict: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Rename a state dict of timm's `mobilenetv3_*`.

    Its last-but-one linear layer is a 1x1 convolution there.
    """
    head = {"conv_head": "classifier.0", "classifier": "classifier.3"}
    return timm_names.rename(state_dict, head, _block_names)


MOBILENET_V3_LARGE = Architecture(
    title="MobileNetV3-Large",
    paper="arXiv 1905.02244",
    build=mobilenet_v3_large,
    mark="features.16.0.weight",
    from_timm=_from_timm,
    published=(
        PublishedWeights(
            width_mult=1.0,
            release="IMAGENET1K_V1",
            url="https://download.pytorch.org/models/mobilenet_v3_large-8738ca79.pth",
            sha256="8738ca79",
            source="torchvision",
            top1=74.042,
            crop_ratio=224 / 256,
            norm_eps=1e-3,
        ),
        PublishedWeights(
            width_mult=1.0,
            release="IMAGENET1K_V2",
            url="https://download.pytorch.org/models/mobilenet_v3_large-5c1a4163.pth",
            sha256="5c1a4163",
            source="torchvision",
            top1=75.274,
            crop_ratio=224 / 232,
            norm_eps=1e-3,
        ),
    ),
)

# timm's V3-Small at 0.5 and 0.75 are not among the published weights: timm widens each block's
# expansion from the rounded channels and keeps the stem's and the last layer's full width, where
# torchvision and this package round α times the paper's number. Only 122 and 99 of the backbone's
# 206 tensors have the same shape, so those files cannot be loaded.
MOBILENET_V3_SMALL = Architecture(
    title="MobileNetV3-Small",
    paper="arXiv 1905.02244",
    build=mobilenet_v3_small,
    mark="features.12.0.weight",
    from_timm=_from_timm,
    published=(
        PublishedWeights(
            width_mult=1.0,
            release="IMAGENET1K_V1",
            url="https://download.pytorch.org/models/mobilenet_v3_small-047dcff4.pth",
            sha256="047dcff4",
            source="torchvision",
            top1=67.668,
            crop_ratio=224 / 256,
            norm_eps=1e-3,
        ),
    ),
)
