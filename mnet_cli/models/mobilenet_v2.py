"""MobileNetV2: inverted residuals with linear bottlenecks (arXiv 1801.04381)."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mnet_cli.models import timm_names
from mnet_cli.models.architecture import Architecture, PublishedWeights, Starter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mnet_cli.models.layers import MobileNet, Residual

V2_STEM = 32  # channels of the first, full convolution                   (paper, table 2)
V2_LAST = 1280  # channels of the last 1x1 convolution                    (paper, table 2)
V2_TABLE = (  # t expansion, c channels, n repeats, s stride of the first (paper, table 2)
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def inverted_residual(
    in_channels: int,
    out_channels: int,
    *,
    expansion: int,
    stride: int,
    norm: "Callable[[int], nn.Module]",
) -> "Residual":
    """Expand, filter depthwise, project to a linear bottleneck (paper, table 1, figure 4d).

    Bottlenecks of equal shape are joined by a shortcut.

    Args:
        in_channels: Channels of the incoming bottleneck.
        out_channels: Channels of the outgoing bottleneck.
        expansion: t: the block works on t·in_channels; 1 leaves the expansion out.
        stride: Stride of the depthwise convolution.
        norm: Builds a batch norm from its number of channels.
    """
    from torch import nn

    from mnet_cli.models.layers import ConvNormActivation, Residual

    hidden = in_channels * expansion
    layers: list[nn.Module] = []
    if expansion != 1:
        layers.append(ConvNormActivation(in_channels, hidden, 1, norm=norm))
    layers += [
        ConvNormActivation(hidden, hidden, 3, stride=stride, groups=hidden, norm=norm),
        # Not a ConvNormActivation: published weights name these two without nesting.
        nn.Conv2d(hidden, out_channels, 1, bias=False),
        norm(out_channels),
    ]
    return Residual("conv", layers, shortcut=stride == 1 and in_channels == out_channels)


def mobilenet_v2(
    num_classes: int = 1000,
    *,
    width_mult: float = 1.0,
    round_nearest: int | None = None,
    dropout: float = 0.2,
    norm_eps: float = 1e-5,
) -> "MobileNet":
    """Build MobileNetV2, with torchvision's state-dict names.

    Args:
        num_classes: Outputs of the classifier.
        width_mult: alpha of the paper. The last convolution keeps its 1280 channels when
            alpha < 1 (paper, section 4).
        round_nearest: Channels are alpha·c rounded to a multiple of this; 8 when None.
        dropout: Probability of dropping a feature before the linear layer.
        norm_eps: ε of the batch norms.

    Returns:
        The network: `features.0` the stem, `features.1` … `features.17` the bottlenecks,
        `features.18` the last convolution, `classifier.1` the linear layer.

    Raises:
        ValueError: An argument is out of range.
    """
    from torch import nn

    from mnet_cli.models.layers import (
        ConvNormActivation,
        MobileNet,
        check_arguments,
        make_divisible,
    )

    check_arguments(num_classes, width_mult, dropout)
    norm = partial(nn.BatchNorm2d, eps=norm_eps)
    channels = make_divisible(V2_STEM * width_mult, round_nearest)
    features: list[nn.Module] = [ConvNormActivation(3, channels, 3, stride=2, norm=norm)]
    for t, c, n, s in V2_TABLE:
        out_channels = make_divisible(c * width_mult, round_nearest)
        for repeat in range(n):
            stride = s if repeat == 0 else 1
            features.append(
                inverted_residual(channels, out_channels, expansion=t, stride=stride, norm=norm)
            )
            channels = out_channels
    last = make_divisible(V2_LAST * max(1.0, width_mult), round_nearest)
    features.append(ConvNormActivation(channels, last, 1, norm=norm))
    return MobileNet(features, [nn.Dropout(dropout), nn.Linear(last, num_classes)])


def _block_names(layers: set[str]) -> timm_names.Names:
    """Our names, below `features.N`, of one of timm's blocks."""
    names = timm_names.nested_names(layers, "conv.")
    for last, (first, second) in [*enumerate(timm_names.layer_pairs(layers))][-1:]:
        names |= {first: f"conv.{last}", second: f"conv.{last + 1}"}  # without nesting
    return names


def _from_timm(state_dict: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Rename a state dict of timm's `mobilenetv2_*`."""
    head = {"conv_head": "features.18.0", "bn2": "features.18.1", "classifier": "classifier.1"}
    return timm_names.rename(state_dict, head, _block_names)


MOBILENET_V2 = Architecture(
    title="MobileNetV2",
    paper="arXiv 1801.04381",
    build=mobilenet_v2,
    mark="features.17.conv.2.weight",
    from_timm=_from_timm,
    starter=Starter(width_mult=0.35, path=Path(__file__).with_name("starter.pth")),
    published=(
        PublishedWeights(
            width_mult=0.5,
            release="mobilenetv2_050.lamb_in1k",
            url="https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
            "mobilenetv2_050-3d30d450.pth",
            sha256="3d30d450",
            source="timm",
            top1=65.95,
            crop_ratio=0.875,
            norm_eps=1e-5,
            interpolation="bicubic",
        ),
        PublishedWeights(
            width_mult=1.0,
            release="IMAGENET1K_V1",
            url="https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
            sha256="b0353104",
            source="torchvision",
            top1=71.878,
            crop_ratio=224 / 256,
            norm_eps=1e-5,
        ),
        PublishedWeights(
            width_mult=1.0,
            release="IMAGENET1K_V2",
            url="https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth",
            sha256="7ebf99e0",
            source="torchvision",
            top1=72.154,
            crop_ratio=224 / 232,
            norm_eps=1e-5,
        ),
        PublishedWeights(
            width_mult=1.4,
            release="mobilenetv2_140.ra_in1k",
            url="https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/"
            "mobilenetv2_140_ra-21a4e913.pth",
            sha256="21a4e913",
            source="timm",
            top1=76.52,
            crop_ratio=0.875,
            norm_eps=1e-5,
            interpolation="bicubic",
        ),
    ),
)
