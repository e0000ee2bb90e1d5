"""MobileNetV1: a stack of depthwise separable convolutions (arXiv 1704.04861)."""

from functools import partial

from torch import nn

from mnet_cli.models.layers import (
    ConvNormActivation,
    DepthwiseSeparable,
    MobileNet,
    check_arguments,
)

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
    dropout: float = 0.001,
    norm_eps: float = 1e-5,
) -> MobileNet:
    """Build MobileNetV1.

    The paper says ReLU; the published weights (TF-Slim's, and timm's `mobilenetv1_100`)
    were trained with ReLU6, so ReLU6 it is. The dropout's default is TF-Slim's.

    Args:
        num_classes: Outputs of the classifier.
        width_mult: alpha; every layer has max(8, ⌊alpha·c⌋) channels.
        dropout: Probability of dropping a feature before the linear layer.
        norm_eps: ε of the batch norms.

    Returns:
        The network: `features.0` the stem, `features.1` … `features.13` the blocks,
        `classifier.1` the linear layer.

    Raises:
        ValueError: An argument is out of range.
    """
    check_arguments(num_classes, width_mult, dropout)
    norm = partial(nn.BatchNorm2d, eps=norm_eps)
    channels = max(8, int(V1_STEM * width_mult))
    features: list[nn.Module] = [ConvNormActivation(3, channels, 3, stride=2, norm=norm)]
    for c, s in V1_TABLE:
        out_channels = max(8, int(c * width_mult))
        features.append(DepthwiseSeparable(channels, out_channels, 3, stride=s, norm=norm))
        channels = out_channels
    return MobileNet(features, [nn.Dropout(dropout), nn.Linear(channels, num_classes)])
