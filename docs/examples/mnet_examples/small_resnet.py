"""A small residual network, as an example of an architecture."""

from torch import Tensor, nn

from mnet_cli.models.architecture import Architecture


class Block(nn.Module):
    """Two convolutions with a shortcut around them; halves the height and width."""

    kind = "residual block"

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H/2, W/2)."""
        return (self.layers(x) + self.shortcut(x)).relu()


class SmallResNet(nn.Module):
    """Three blocks, a global average pool, and a linear layer."""

    stages = ("block1", "block2", "block3")  # features[:N] freezes the first N
    head = "classifier"

    def __init__(self, num_classes: int, *, width_mult: float = 1.0, dropout: float = 0.2) -> None:
        super().__init__()
        channels = [max(1, round(width_mult * c)) for c in (32, 64, 128)]
        self.block1 = Block(3, channels[0])
        self.block2 = Block(channels[0], channels[1])
        self.block3 = Block(channels[1], channels[2])
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels[2], num_classes))

    def pieces(self) -> list[nn.Module]:
        """Modules that give the output when each takes what the one before gave."""
        return [self.block1, self.block2, self.block3, self.pool, *self.classifier]

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, num_classes)."""
        for piece in self.pieces():
            images = piece(images)
        return images


SMALL_RESNET = Architecture(title="SmallResNet", paper="1512.03385", build=SmallResNet)
