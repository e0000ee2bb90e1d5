"""MobileNetV4, the convolutional networks: universal inverted bottlenecks (arXiv 2404.10518)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from mnet_cli.models import timm_names
from mnet_cli.models.architecture import Architecture, PublishedWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mnet_cli.models.layers import ConvNormActivation, MobileNet, Residual

Row = tuple[str, int, int, float, int, int]

CONV, FUSED, UIB = "Conv2D", "FusedIB", "UIB"
V4_STEM = 32  # channels of the first convolution                           (paper, appendix)
V4_LAST = 1280  # channels of the convolution after the pool                (paper, appendix)
SMALL_TABLE: tuple[Row, ...] = (
    # block, K1 and K2 kernels of the depthwise convolutions (0: none), t expansion,
    # c channels, s stride. Of a Conv2D, K2 is the kernel.                      (paper, appendix)
    (CONV, 0, 3, 1, 32, 2),
    (CONV, 0, 1, 1, 32, 1),
    (CONV, 0, 3, 1, 96, 2),
    (CONV, 0, 1, 1, 64, 1),
    (UIB, 5, 5, 3, 96, 2),
    (UIB, 0, 3, 2, 96, 1),
    (UIB, 0, 3, 2, 96, 1),
    (UIB, 0, 3, 2, 96, 1),
    (UIB, 0, 3, 2, 96, 1),
    (UIB, 3, 0, 4, 96, 1),
    (UIB, 3, 3, 6, 128, 2),
    (UIB, 5, 5, 4, 128, 1),
    (UIB, 0, 5, 4, 128, 1),
    (UIB, 0, 5, 3, 128, 1),
    (UIB, 0, 3, 4, 128, 1),
    (UIB, 0, 3, 4, 128, 1),
    (CONV, 0, 1, 1, 960, 1),
)
MEDIUM_TABLE: tuple[Row, ...] = (  # columns as above                           (paper, appendix)
    (FUSED, 0, 3, 4, 48, 2),
    (UIB, 3, 5, 4, 80, 2),
    (UIB, 3, 3, 2, 80, 1),
    (UIB, 3, 5, 6, 160, 2),
    (UIB, 3, 3, 4, 160, 1),
    (UIB, 3, 3, 4, 160, 1),
    (UIB, 3, 5, 4, 160, 1),
    (UIB, 3, 3, 4, 160, 1),
    (UIB, 3, 0, 4, 160, 1),
    (UIB, 0, 0, 2, 160, 1),
    (UIB, 3, 0, 4, 160, 1),
    (UIB, 5, 5, 6, 256, 2),
    (UIB, 5, 5, 4, 256, 1),
    (UIB, 3, 5, 4, 256, 1),
    (UIB, 3, 5, 4, 256, 1),
    (UIB, 0, 0, 4, 256, 1),
    (UIB, 3, 0, 4, 256, 1),
    (UIB, 3, 5, 2, 256, 1),
    (UIB, 5, 5, 4, 256, 1),
    (UIB, 0, 0, 4, 256, 1),
    (UIB, 0, 0, 4, 256, 1),
    (UIB, 5, 0, 2, 256, 1),
    (CONV, 0, 1, 1, 960, 1),
)


def universal_inverted_bottleneck(
    in_channels: int,
    hidden: int,
    out_channels: int,
    *,
    first: int,
    middle: int,
    stride: int,
    conv: "Callable[..., ConvNormActivation]",
) -> "Residual":
    """Depthwise, expand, depthwise, project; both depthwise convolutions may be absent.

    With the second alone it is V2's inverted bottleneck, with the first alone a ConvNext block,
    with both the extra-depthwise block, with none a feed-forward network (paper, figure 4).
    Bottlenecks of equal shape are joined by a shortcut.

    Args:
        in_channels: Channels of the input.
        hidden: Channels between the pointwise convolutions.
        out_channels: Channels of the output.
        first: Side of the kernel before the expansion; 0 for none.
        middle: Side of the kernel after it; 0 for none.
        stride: Of the last depthwise convolution.
        conv: Builds a convolution with its norm and activation.
    """
    from mnet_cli.models.layers import Residual

    layers: list[nn.Module] = []
    if first:
        own = 1 if middle else stride
        layers.append(
            conv(in_channels, in_channels, first, stride=own, groups=in_channels, activation=None)
        )
    layers.append(conv(in_channels, hidden, 1))
    if middle:
        layers.append(conv(hidden, hidden, middle, stride=stride, groups=hidden))
    layers.append(conv(hidden, out_channels, 1, activation=None))
    return Residual("block", layers, shortcut=stride == 1 and in_channels == out_channels)


def fused_inverted_bottleneck(
    in_channels: int,
    hidden: int,
    out_channels: int,
    *,
    kernel: int,
    stride: int,
    conv: "Callable[..., ConvNormActivation]",
) -> "Residual":
    """Expand by a full convolution, then project (arXiv 2003.02838).

    Args:
        in_channels: Channels of the input.
        hidden: Channels after the expansion.
        out_channels: Channels of the output.
        kernel: Side of the full convolution's kernel.
        stride: Of the full convolution.
        conv: Builds a convolution with its norm and activation.
    """
    from mnet_cli.models.layers import Residual

    layers = [
        conv(in_channels, hidden, kernel, stride=stride),
        conv(hidden, out_channels, 1, activation=None),
    ]
    return Residual("block", layers, shortcut=stride == 1 and in_channels == out_channels)


def mobilenet_v4(
    num_classes: int = 1000,
    *,
    table: tuple[Row, ...],
    width_mult: float = 1.0,
    round_nearest: int | None = None,
    dropout: float = 0.2,
    norm_eps: float = 1e-5,
) -> "MobileNet":
    """Build a MobileNetV4 of convolutions.

    The paper has no width multiplier; here it is as in timm: the expansion is of the rounded
    channels, and the stem and the last convolution keep their channels when alpha < 1.

    Args:
        num_classes: Outputs of the classifier.
        table: `SMALL_TABLE` or `MEDIUM_TABLE`.
        width_mult: alpha.
        round_nearest: Channels are alpha·c rounded to a multiple of this; 8 when None.
        dropout: Probability of dropping a feature before the linear layer.
        norm_eps: ε of the batch norms.

    Returns:
        The network: `features.0` the stem, then the table's blocks, the pool and the last
        convolution; `classifier.1` the linear layer.

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
    conv = partial(ConvNormActivation, norm=norm, activation=nn.ReLU)
    width = partial(make_divisible, divisor=round_nearest)
    channels = width(V4_STEM * max(1.0, width_mult))
    features: list[nn.Module] = [conv(3, channels, 3, stride=2)]
    for block, first, middle, t, c, s in table:
        hidden, out_channels = width(channels * t), width(c * width_mult)
        if block == CONV:
            features.append(conv(channels, out_channels, middle, stride=s))
        elif block == FUSED:
            features.append(
                fused_inverted_bottleneck(
                    channels, hidden, out_channels, kernel=middle, stride=s, conv=conv
                )
            )
        else:
            features.append(
                universal_inverted_bottleneck(
                    channels, hidden, out_channels, first=first, middle=middle, stride=s, conv=conv
                )
            )
        channels = out_channels
    last = width(V4_LAST * max(1.0, width_mult))
    features += [nn.AdaptiveAvgPool2d(1), conv(channels, last, 1)]
    return MobileNet(features, [nn.Dropout(dropout), nn.Linear(last, num_classes)])


def _block_names(layers: set[str]) -> timm_names.Names:
    """Our names, below `features.N`, of one of timm's blocks."""
    if "conv" in layers:
        return {"conv": "0", "bn1": "1"}
    if "conv_exp" in layers:
        names = {"conv_exp": "block.0.0", "bn1": "block.0.1"}
        return names | {"conv_pwl": "block.1.0", "bn2": "block.1.1"}
    convolutions = ("dw_start", "pw_exp", "dw_mid", "pw_proj")
    names = {}
    for index, name in enumerate(n for n in convolutions if f"{n}.conv" in layers):
        names |= {f"{name}.conv": f"block.{index}.0", f"{name}.bn": f"block.{index}.1"}
    return names


def _from_timm(
    state_dict: "Mapping[str, Tensor]", *, table: tuple[Row, ...]
) -> "dict[str, Tensor]":
    """Rename a state dict of timm's `mobilenetv4_conv_*`."""
    last = f"features.{len(table) + 2}"  # after the stem, the blocks and the pool
    head = {"conv_head": f"{last}.0", "norm_head": f"{last}.1", "classifier": "classifier.1"}
    return timm_names.rename(state_dict, head, _block_names)


HUB = "https://huggingface.co/timm"

MOBILENET_V4_CONV_SMALL = Architecture(
    title="MobileNetV4-Conv-Small",
    paper="arXiv 2404.10518",
    build=partial(mobilenet_v4, table=SMALL_TABLE),
    mark="features.19.0.weight",
    from_timm=partial(_from_timm, table=SMALL_TABLE),
    published=(
        PublishedWeights(
            width_mult=1.0,
            release="mobilenetv4_conv_small.e1200_r224_in1k",
            url=f"{HUB}/mobilenetv4_conv_small.e1200_r224_in1k/resolve/"
            "c9f31ac64483d7f0590db9edccb4418392a96eea/model.safetensors",
            sha256="5a2ef04d419ce6d1bf27bfa735bb200d3f8d8997c3ac36320f5bf30382f6b43c",
            source="timm",
            top1=73.454,
            crop_ratio=0.875,
            norm_eps=1e-5,
            interpolation="bicubic",
        ),
        PublishedWeights(
            width_mult=1.0,
            release="mobilenetv4_conv_small.e2400_r224_in1k",
            url=f"{HUB}/mobilenetv4_conv_small.e2400_r224_in1k/resolve/"
            "331fb803779522b685cf942e15f914fb6741c1eb/model.safetensors",
            sha256="7a7102ec18f62bbfb555b6fe829bbb5af749516b84174926c29ffdfdfc03aec4",
            source="timm",
            top1=73.756,
            crop_ratio=0.875,
            norm_eps=1e-5,
            interpolation="bicubic",
        ),
    ),
)

MOBILENET_V4_CONV_MEDIUM = Architecture(
    title="MobileNetV4-Conv-Medium",
    paper="arXiv 2404.10518",
    build=partial(mobilenet_v4, table=MEDIUM_TABLE),
    mark="features.25.0.weight",
    from_timm=partial(_from_timm, table=MEDIUM_TABLE),
    published=(
        PublishedWeights(
            width_mult=1.0,
            release="mobilenetv4_conv_medium.e500_r256_in1k",
            url=f"{HUB}/mobilenetv4_conv_medium.e500_r256_in1k/resolve/"
            "ad66898c045c1b5223ea3f2c0830b74cf2e75bac/model.safetensors",
            sha256="",
            source="timm",
            top1=79.928,
            crop_ratio=0.95,
            norm_eps=1e-5,
            interpolation="bicubic",
            image_size=256,
        ),
    ),
)
