"""MobileNetV3: searched bottlenecks, squeeze-excitation, h-swish (arXiv 1905.02244)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from mnet_cli.models.layers import (
    ConvNormActivation,
    MobileNet,
    SqueezeExcitation,
    check_arguments,
    make_divisible,
)

RE, HS = nn.ReLU, nn.Hardswish
Row = tuple[int, int, int, bool, Callable[..., nn.Module], int]

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


class InvertedResidual(nn.Module):
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

    kind = "bottleneck"

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        squeeze: bool,
        activation: Callable[..., nn.Module],
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.has_shortcut = stride == 1 and in_channels == out_channels
        conv = partial(ConvNormActivation, norm=norm)
        layers: list[nn.Module] = []
        if hidden != in_channels:
            layers.append(conv(in_channels, hidden, 1, activation=activation))
        layers.append(
            conv(hidden, hidden, kernel, stride=stride, groups=hidden, activation=activation)
        )
        if squeeze:
            layers.append(SqueezeExcitation(hidden, make_divisible(hidden // 4)))
        layers.append(conv(hidden, out_channels, 1, activation=None))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        out: Tensor = self.block(x)
        return x + out if self.has_shortcut else out


def mobilenet_v3_large(
    num_classes: int = 1000,
    *,
    width_mult: float = 1.0,
    reduced_tail: bool = False,
    dropout: float = 0.2,
    norm_eps: float = 1e-3,
) -> MobileNet:
    """Build MobileNetV3-Large, with torchvision's state-dict names.

    Args:
        num_classes: Outputs of the classifier.
        width_mult: alpha; channels are alpha·c rounded to a multiple of 8.
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
    check_arguments(num_classes, width_mult, dropout)
    table, last = _tail(LARGE_TABLE, LARGE_LAST, reduced_tail)
    return _mobilenet_v3(table, last, num_classes, width_mult, dropout, norm_eps)


def mobilenet_v3_small(
    num_classes: int = 1000,
    *,
    width_mult: float = 1.0,
    reduced_tail: bool = False,
    dropout: float = 0.2,
    norm_eps: float = 1e-3,
) -> MobileNet:
    """Build MobileNetV3-Small, with torchvision's state-dict names.

    Args:
        num_classes: Outputs of the classifier.
        width_mult: alpha; channels are alpha·c rounded to a multiple of 8.
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
    check_arguments(num_classes, width_mult, dropout)
    table, last = _tail(SMALL_TABLE, SMALL_LAST, reduced_tail)
    return _mobilenet_v3(table, last, num_classes, width_mult, dropout, norm_eps)


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
    dropout: float,
    norm_eps: float,
) -> MobileNet:
    # The average decay of 0.99 (paper, section 6.1) is momentum 0.01 in PyTorch's terms.
    norm = partial(nn.BatchNorm2d, eps=norm_eps, momentum=0.01)
    channels = make_divisible(V3_STEM * width_mult)
    features: list[nn.Module] = [
        ConvNormActivation(3, channels, 3, stride=2, norm=norm, activation=HS)
    ]
    for k, exp, c, se, nl, s in table:
        hidden, out_channels = make_divisible(exp * width_mult), make_divisible(c * width_mult)
        features.append(
            InvertedResidual(
                channels,
                hidden,
                out_channels,
                kernel=k,
                stride=s,
                squeeze=se,
                activation=nl,
                norm=norm,
            )
        )
        channels = out_channels
    features.append(ConvNormActivation(channels, 6 * channels, 1, norm=norm, activation=HS))
    wide = make_divisible(last * width_mult)
    classifier = [
        nn.Linear(6 * channels, wide),
        nn.Hardswish(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(wide, num_classes),
    ]
    return MobileNet(features, classifier)
