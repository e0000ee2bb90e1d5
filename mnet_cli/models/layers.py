"""The layers that the MobileNet papers share, and the network that they form."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

ROUND_NEAREST = 8  # channels of V2 and later are multiples of it


def make_divisible(value: float, divisor: int | None = None, min_value: int | None = None) -> int:
    """Round a number of channels to the nearest multiple of `divisor`.

    Half a step rounds up, and the result never falls more than 10 % below `value`; the rule
    is that of the authors' code for V2 (TF-Slim, `mobilenet/conv_blocks.py`).

    Args:
        value: Channels, for example the paper's times alpha.
        divisor: The result is a multiple of this; `ROUND_NEAREST` when None.
        min_value: The least result; `divisor` when None.

    Returns:
        Channels to use.
    """
    divisor = divisor or ROUND_NEAREST
    rounded = max(min_value or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def check_arguments(num_classes: int, width_mult: float, dropout: float) -> None:
    """Refuse arguments that no network can be built from.

    Raises:
        ValueError: `num_classes` < 1, `width_mult` <= 0, or `dropout` outside [0, 1).
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    if not width_mult > 0:
        raise ValueError(f"width_mult must be above 0, not {width_mult}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), not {dropout}")


class ConvNormActivation(nn.Sequential):
    """A convolution without bias (0), its batch norm (1) and, unless linear, its activation (2).

    The padding keeps H and W at stride 1 and halves them, rounded up, at stride 2.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side of the square kernel; odd.
        stride: 1 or 2.
        groups: 1, or `in_channels` for a depthwise convolution.
        norm: Builds the norm from its number of channels.
        activation: The activation's class; None leaves the layer linear.
    """

    kind = "conv2d"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        activation: Callable[..., nn.Module] | None = nn.ReLU6,
    ) -> None:
        layers = [
            nn.Conv2d(
                in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
            ),
            norm(out_channels),
        ]
        if activation is not None:
            # In place: the batch norm's backward pass reads its input, never its output.
            layers.append(activation(inplace=True))
        super().__init__(*layers)


class DepthwiseSeparable(nn.Sequential):
    """A depthwise convolution (0) and the pointwise one (1) that mixes its channels.

    Both carry batch norm and ReLU6 (V1 paper, figure 3, right).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side of the depthwise kernel; odd.
        stride: Stride of the depthwise convolution.
        norm: Builds a batch norm from its number of channels.
    """

    kind = "separable conv"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__(
            ConvNormActivation(
                in_channels, in_channels, kernel, stride=stride, groups=in_channels, norm=norm
            ),
            ConvNormActivation(in_channels, out_channels, 1, norm=norm),
        )


class Residual(nn.Module):
    """Layers that run one after the other, with a shortcut around them where shapes permit.

    Args:
        name: The attribute that holds the layers; it is part of the state dict's names.
        layers: The layers.
        shortcut: Add the input to the output.
        kind: What tables of layers call the block.
    """

    def __init__(
        self, name: str, layers: Sequence[nn.Module], *, shortcut: bool, kind: str = "bottleneck"
    ) -> None:
        super().__init__()
        self.name, self.shortcut, self.kind = name, shortcut, kind
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the layers' output, plus the input with a shortcut."""
        out: Tensor = getattr(self, self.name)(x)
        return x + out if self.shortcut else out


class SqueezeExcitation(nn.Module):
    """Weigh each channel by a gate in [0, 1] computed from all channels' means.

    V3 takes a hard sigmoid for the gate (arXiv 1709.01507, figure 1; V3 paper, section 5.2).

    Args:
        channels: Channels of the input and of the output.
        squeeze_channels: Channels between the two layers.
    """

    def __init__(self, channels: int, squeeze_channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeeze_channels, 1)
        self.activation = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeeze_channels, channels, 1)
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Scale `x` (N, C, H, W) channel by channel; the shape stays."""
        squeezed = self.activation(self.fc1(self.avgpool(x)))  # (N, squeeze, 1, 1)
        gate: Tensor = self.scale_activation(self.fc2(squeezed))  # (N, C, 1, 1)
        return x * gate


class MobileNet(nn.Module):
    """A network of the family: features, global average pool, classifier.

    Weights start as torchvision's do: Kaiming normal over the fan-out for convolutions,
    N(0, 0.01²) for linear layers, zero biases.

    Args:
        features: The stages of the backbone, from the image to the last feature map.
        classifier: The layers after the pool; the last one is the `nn.Linear` to the classes.
    """

    head = "classifier"

    def __init__(self, features: Sequence[nn.Module], classifier: Sequence[nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(*classifier)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def stages(self) -> list[str]:
        """The names of the modules from the image to the last feature map."""
        return [f"features.{name}" for name, _ in self.features.named_children()]

    def pieces(self) -> list[nn.Module]:
        """Every stage, the pool, and every layer of the classifier."""
        return [*self.features, self.pool, nn.Flatten(1), *self.classifier]

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, num_classes)."""
        x = self.features(images)  # (N, C, H/32, W/32)
        x = self.pool(x).flatten(1)  # (N, C)
        logits: Tensor = self.classifier(x)
        return logits
