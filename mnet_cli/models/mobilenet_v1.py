"""MobileNetV1: a stack of depthwise separable convolutions (arXiv 1704.04861)."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from mnet_cli.models import timm_names
from mnet_cli.models.architecture import Architecture, PublishedWeights

if TYPE_CHECKING:
    from torch import Tensor

    from mnet_cli.models.layers import MobileNet

V1_STEM = 32  # channels of the first, full convolution                   (paper, table 1)
V1_TABLE = (  # c channels, s stride of each depthwise separable block    (paper, table 1)
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),  # the paper prints s2, but the 7x7 output beside it needs s1
)


def mobilenet_v1(
    num_classes: int = 1000,
    *,
    width_mult: float = 1.0,
    round_nearest: int | None = None,
    dropout: float = 0.001,
    norm_eps: float = 1e-5,
) -> "MobileNet":
    """Build MobileNetV1.

    The paper says ReLU; the published weights (TF-Slim's, and timm's `mobilenetv1_100`)
    were trained with ReLU6, so ReLU6 it is. The dropout's default is TF-Slim's.

    Args:
        num_classes: Outputs of the classifier.
        width_mult: alpha; every layer has max(8, ⌊alpha·c⌋) channels.
        round_nearest: Round alpha·c to a multiple of this instead.
        dropout: Probability of dropping a feature before the linear layer.
        norm_eps: ε of the batch norms.

    Returns:
        The network: `features.0` the stem, `features.1` … `features.13` the blocks,
        `classifier.1` the linear layer.

    Raises:
        ValueError: An argument is out of range.
    """
    from torch import nn

    from mnet_cli.models import layers

    def width(channels: int) -> int:
        if round_nearest:
            return layers.make_divisible(channels * width_mult, round_nearest)
        return max(8, int(channels * width_mult))

    layers.check_arguments(num_classes, width_mult, dropout)
    norm = partial(nn.BatchNorm2d, eps=norm_eps)
    channels = width(V1_STEM)
    features: list[nn.Module] = [layers.ConvNormActivation(3, channels, 3, stride=2, norm=norm)]
    for c, s in V1_TABLE:
        out_channels = width(c)
        features.append(layers.DepthwiseSeparable(channels, out_channels, 3, stride=s, norm=norm))
        channels = out_channels
    return layers.MobileNet(features, [nn.Dropout(dropout), nn.Linear(channels, num_classes)])


def _from_timm(state_dict: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Rename a state dict of timm's `mobilenetv1_*`."""
    return timm_names.rename(
        state_dict,
        head={"classifier": "classifier.1"},
        block_names=partial(timm_names.nested_names, prefix=""),
    )


HALF = (0.5, 0.5, 0.5)

MOBILENET_V1 = Architecture(
    title="MobileNetV1",
    paper="arXiv 1704.04861",
    build=mobilenet_v1,
    mark="features.13.1.0.weight",
    from_timm=_from_timm,
    published=(
        PublishedWeights(
            width_mult=1.0,
            release="mobilenetv1_100.ra4_e3600_r224_in1k",
            url="https://huggingface.co/timm/mobilenetv1_100.ra4_e3600_r224_in1k/resolve/"
            "6e88b523abded44469eafcd52f7832d5e0300b1b/model.safetensors",
            sha256="15c2f1411deb8e0533acbb41fe9523062f80d444d0393e7ad2b429f41378efc3",
            source="timm",
            top1=75.382,
            crop_ratio=0.875,
            norm_eps=1e-5,
            interpolation="bicubic",
            mean=HALF,
            std=HALF,
        ),
        PublishedWeights(
            width_mult=1.25,
            release="mobilenetv1_125.ra4_e3600_r224_in1k",
            url="https://huggingface.co/timm/mobilenetv1_125.ra4_e3600_r224_in1k/resolve/"
            "9e2b4f9a089f39eaf59cb38fb5d595f4d78c8064/model.safetensors",
            sha256="5616b1d4d774ac5bdf3fb254a72da78a5f27b19aa13bcceac03a743077c6acd8",
            source="timm",
            top1=76.924,
            crop_ratio=0.9,
            norm_eps=1e-5,
            interpolation="bicubic",
            mean=HALF,
            std=HALF,
        ),
    ),
)
