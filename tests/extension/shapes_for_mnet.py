"""What another package may add to mnet: an architecture, an image source and a file format.

The network has nothing that mnet's own share: a shortcut across stages, LayerNorm, einsum, and
names of its own. The source reads pictures from one numpy file, the format is a zip archive.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mnet_cli.data.paths import Names
from mnet_cli.data.sources.base import ImageSource
from mnet_cli.formats.base import Format, Run, Setting
from mnet_cli.formats.contract import Contract, read_contract
from mnet_cli.formats.onnx import convert
from mnet_cli.models.architecture import Architecture
from mnet_cli.models.onnx_forward import OnnxForward


class Mixer(nn.Module):
    """Norm over channels, then a product with a matrix for each half of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.weight = nn.Parameter(torch.empty(2, channels // 2, channels // 2))
        nn.init.normal_(self.weight, std=channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        y = self.norm(x.permute(0, 2, 3, 1)).unflatten(-1, (2, -1))
        y = torch.einsum("nhwgc,gcd->nhwgd", y, self.weight).flatten(-2)
        return torch.nn.functional.gelu(y).permute(0, 3, 1, 2)


class Trunk(nn.Module):
    """Three stages with a shortcut from the first to the last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.low, self.middle, self.high = (Mixer(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        return low + self.high(self.middle(low))


class Pooled(nn.Module):
    """The mean of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class CrossNet(nn.Module):
    """A network that is not a sequence of its stages, with its head registered first."""

    stages = ("stem", "trunk.low", "trunk.middle", "trunk.high")
    head = "answer"

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.answer = nn.Sequential(nn.Dropout(0.1), nn.Linear(channels, num_classes))
        self.stem = nn.Conv2d(3, channels, 4, stride=4)
        self.trunk = Trunk(channels)
        self.pooled = Pooled()

    def pieces(self) -> list[nn.Module]:
        return [self.stem, self.trunk, self.pooled, *self.answer]

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(self.pooled(self.trunk(self.stem(images))))


def cross_net(num_classes: int, *, width_mult: float = 1.0) -> CrossNet:
    return CrossNet(num_classes, max(2, 2 * int(16 * width_mult)))


CROSS_NET = Architecture(title="CrossNet", paper="none", build=cross_net)


class NpzSource(ImageSource):
    layout = "an .npz file with train/<class>/<name> arrays of encoded bytes"

    @classmethod
    def matches(cls, root: str) -> bool:
        return root.endswith(".npz")

    @classmethod
    def open(cls, root: str) -> "dict[str, NpzSource]":
        with np.load(root) as archive:
            members = sorted(archive.files)
        found = {}
        for split in ("train", "val"):
            names = [name for name in members if name.startswith(split)]
            classes = sorted({name.split("/")[1] for name in names})
            labels = np.asarray([classes.index(name.split("/")[1]) for name in names])
            found[split] = cls(root, f"{root}/{split}", tuple(classes), Names(names), labels)
        return found

    def read(self, index: int) -> bytes:
        with np.load(self.root) as archive:
            return archive[self.names[index]].tobytes()


class ZippedOnnx(Format):
    suffix = ".onnxzip"

    @property
    def precisions(self) -> Mapping[str, tuple[Setting, ...]]:
        return {"float32": (Setting("", convert),)}

    def save(self, program, path: Path, contract: Contract) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("contract.json", contract.to_json())
            archive.writestr("model.onnx", program.SerializeToString())

    def check(self, path: Path) -> None:
        assert zipfile.ZipFile(path).testzip() is None

    def load(self, path: Path, device: str) -> tuple[Run, Contract]:
        with zipfile.ZipFile(path) as archive:
            forward = OnnxForward(archive.read("model.onnx"))
            return forward, read_contract(archive.read("contract.json"), str(path))
