"""MobileNetV2: inverted residuals with linear bottlenecks (arXiv 1801.04381)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from mnet_cli.models.layers import (
    ConvNormActivation,
    MobileNet,
    check_arguments,
    make_divisible,
)

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


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project to a linear bottleneck (paper, table 1, figure 4d).

    Bottlenecks of equal shape are joined by a shortcut.

    Args:
        in_channels: Channels of the incoming bottleneck.
        out_channels: Channels of the outgoing bottleneck.
        expansion: t: the block works on t·in_channels; 1 leaves the expansion out.
        stride: Stride of the depthwise convolution.
        norm: Builds a batch norm from its number of channels.
    """

    kind = "bottleneck"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion: int,
        stride: int,
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.has_shortcut = stride == 1 and in_channels == out_channels
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
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


def mobilenet_v2(
    num_classes: int = 1000,
    *,
    width_mult: float = 1.0,
    dropout: float = 0.2,
    norm_eps: float = 1e-5,
) -> MobileNet:
    """Build MobileNetV2, with torchvision's state-dict names.

    Args:
        num_classes: Outputs of the classifier.
        width_mult: alpha; channels are alpha·c rounded to a multiple of 8. The last convolution
            keeps its 1280 channels when alpha < 1 (paper, section 4).
        dropout: Probability of dropping a feature before the linear layer.
        norm_eps: ε of the batch norms.

    Returns:
        The network: `features.0` the stem, `features.1` … `features.17` the bottlenecks,
        `features.18` the last convolution, `classifier.1` the linear layer.

    Raises:
        ValueError: An argument is out of range.
    """
    check_arguments(num_classes, width_mult, dropout)
    norm = partial(nn.BatchNorm2d, eps=norm_eps)
    channels = make_divisible(V2_STEM * width_mult)
    features: list[nn.Module] = [ConvNormActivation(3, channels, 3, stride=2, norm=norm)]
    for t, c, n, s in V2_TABLE:
        out_channels = make_divisible(c * width_mult)
        for repeat in range(n):
            stride = s if repeat == 0 else 1
            features.append(
                InvertedResidual(channels, out_channels, expansion=t, stride=stride, norm=norm)
            )
            channels = out_channels
    last = make_divisible(V2_LAST * max(1.0, width_mult))
    features.append(ConvNormActivation(channels, last, 1, norm=norm))
    return MobileNet(features, [nn.Dropout(dropout), nn.Linear(last, num_classes)])
