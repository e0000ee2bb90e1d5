"""What an architecture is: how it is built, which options it takes, which weights it has.

Nothing here imports torch, and neither do the modules of mnet's own architectures at their top:
recipes are checked without it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

Triple = tuple[float, float, float]
StateDict = dict[str, "Tensor"]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

NEUTRAL: dict[str, Any] = {  # options of models, and the value that changes nothing
    "width_mult": 1.0,
    "round_nearest": None,
    "reduced_tail": False,
    "dropout": None,
    "norm_eps": None,
}


@runtime_checkable
class StagedModel(Protocol):
    """What mnet asks of a network besides `torch.nn.Module`.

    Attributes:
        stages: Names of its modules from the image to the last feature map, in order;
            `features[:N]` in a recipe freezes the first N.
        head: Name of the module with the last linear layer, whose outputs are the logits.
    """

    stages: Sequence[str]
    head: str

    def pieces(self) -> "list[nn.Module]":
        """Modules that give the model's output when each takes what the one before gave.

        What is frozen up to the end of a piece can be computed once and cached. Stages that a
        skip connection joins belong to one piece. A model that cannot be divided has none.
        """


@dataclass(frozen=True)
class PublishedWeights:
    """One file of weights trained on ImageNet-1k, and how its images were prepared.

    Attributes:
        width_mult: α of the network.
        release: The publisher's name for it.
        url: Where the file is.
        sha256: Of the file, or its first eight digits where only they are published; empty
            where it is not known, so that mnet does not download the file.
        source: The publisher; timm's files have timm's tensor names.
        top1: In percent, as published, at `image_size` and `crop_ratio`.
        crop_ratio: Side of the central crop over the resized shorter side.
        norm_eps: ε of the batch norms.
        interpolation: `bilinear` or `bicubic`.
        mean, std: Of the normalization, by channel, in 0..1.
        image_size: In pixels.
    """

    width_mult: float
    release: str
    url: str
    sha256: str
    source: Literal["torchvision", "timm"]
    top1: float
    crop_ratio: float
    norm_eps: float
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    image_size: int = 224

    @property
    def file_name(self) -> str:
        """The file's name in a folder of downloads; no other release has the same."""
        name = self.url.rpartition("/")[2]
        return f"{self.release}.safetensors" if name == "model.safetensors" else name


@dataclass(frozen=True)
class Starter:
    """Small weights that come with a package, for a first look without a network.

    Attributes:
        width_mult: α of the network.
        path: The file.
    """

    width_mult: float
    path: Path


@dataclass(frozen=True)
class Architecture:
    """A family member that a recipe may name as `model.arch`.

    A package adds one by declaring an object of this class in the group
    `mnet_cli.architectures` of its entry points.

    Attributes:
        title: As in the paper.
        paper: Where it is described, such as `arXiv 1801.04381`.
        build: From the number of classes, and those options of `NEUTRAL` that it has as keyword
            arguments, to a `torch.nn.Module` that maps images (N, 3, H, W) to logits
            (N, num_classes) and is a `StagedModel`. The defaults of its arguments are the
            architecture's own.
        published: Published weights; of each width from the first to the newest.
        starter: Weights that come with the package.
        mark: The name of a tensor that no other architecture's state dict has.
        from_timm: From a state dict with timm's names to one with the architecture's.
    """

    title: str
    paper: str
    build: "Callable[..., nn.Module]"
    published: tuple[PublishedWeights, ...] = ()
    starter: Starter | None = None
    mark: str = ""
    from_timm: "Callable[[Mapping[str, Tensor]], StateDict] | None" = None

    @cached_property
    def options(self) -> frozenset[str]:
        """The options of `NEUTRAL` that `build` takes."""
        return frozenset(NEUTRAL.keys() & inspect.signature(self.build).parameters.keys())

    @property
    def widths(self) -> list[float]:
        """The widths α for which weights are published, ascending."""
        return sorted({row.width_mult for row in self.published})

    def releases(self, width_mult: float) -> list[PublishedWeights]:
        """The published weights of a width, from the first to the newest."""
        return [row for row in self.published if row.width_mult == width_mult]
