"""The ImageNet weights that others have published for these architectures, as data.

timm's V3-Small at 0.5 and 0.75 are not among them: timm widens each block's expansion from
the rounded channels and keeps the stem's and the last layer's full width, where torchvision
and this package round α times the paper's number. Only 122 and 99 of the backbone's 206
tensors have the same shape, so those files cannot be loaded.
"""

from dataclasses import dataclass
from typing import Literal

from mnet_cli.errors import RecipeError

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)

NEWEST, FIRST = "imagenet", "imagenet-v1"
PUBLISHED_NAMES = (NEWEST, FIRST)  # what a recipe may call published weights
STARTER = "starter"  # the small weights that ship with mnet, made for one model
STARTER_ARCH, STARTER_WIDTH = "mobilenet_v2", 0.35


@dataclass(frozen=True)
class PublishedWeights:
    """One file of weights trained on ImageNet-1k, and how its images were prepared."""

    arch: str
    width_mult: float
    release: str  # the publisher's name for it
    url: str
    sha256: str  # the whole digest, or its first eight digits where only they are published
    source: Literal["torchvision", "timm"]  # timm's files have timm's tensor names
    top1: float  # percent, as published, at 224 px and crop_ratio
    crop_ratio: float  # side of the central crop over the resized shorter side
    norm_eps: float
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    @property
    def file_name(self) -> str:
        """The file's name in a folder of downloads; unlike any other release's."""
        name = self.url.rpartition("/")[2]
        return f"{self.release}.safetensors" if name == "model.safetensors" else name


PUBLISHED = (  # releases of one width from the first to the newest
    PublishedWeights(
        arch="mobilenet_v1",
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
        arch="mobilenet_v1",
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
    PublishedWeights(
        arch="mobilenet_v2",
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
        arch="mobilenet_v2",
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
        arch="mobilenet_v2",
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
        arch="mobilenet_v2",
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
    PublishedWeights(
        arch="mobilenet_v3_large",
        width_mult=1.0,
        release="IMAGENET1K_V1",
        url="https://download.pytorch.org/models/mobilenet_v3_large-8738ca79.pth",
        sha256="8738ca79",
        source="torchvision",
        top1=74.042,
        crop_ratio=224 / 256,
        norm_eps=1e-3,
    ),
    PublishedWeights(
        arch="mobilenet_v3_large",
        width_mult=1.0,
        release="IMAGENET1K_V2",
        url="https://download.pytorch.org/models/mobilenet_v3_large-5c1a4163.pth",
        sha256="5c1a4163",
        source="torchvision",
        top1=75.274,
        crop_ratio=224 / 232,
        norm_eps=1e-3,
    ),
    PublishedWeights(
        arch="mobilenet_v3_small",
        width_mult=1.0,
        release="IMAGENET1K_V1",
        url="https://download.pytorch.org/models/mobilenet_v3_small-047dcff4.pth",
        sha256="047dcff4",
        source="torchvision",
        top1=67.668,
        crop_ratio=224 / 256,
        norm_eps=1e-3,
    ),
)


def published_for(arch: str, width_mult: float) -> PublishedWeights | None:
    """Return the newest published weights of an architecture at a width, if there are any."""
    return next(reversed(_releases(arch, width_mult)), None)


def widths_with_weights(arch: str) -> list[float]:
    """Return the widths α for which weights are published, ascending."""
    return sorted({row.width_mult for row in PUBLISHED if row.arch == arch})


def published(arch: str, width_mult: float, name: str = NEWEST) -> PublishedWeights:
    """Return the published weights that a recipe's `weights` names.

    Args:
        arch: An architecture.
        width_mult: α.
        name: "imagenet", the newest release, or "imagenet-v1", the first.

    Raises:
        RecipeError: Nobody has published weights for this architecture at this width.
    """
    releases = _releases(arch, width_mult)
    if not releases:
        widths = ", ".join(f"{width:g}" for width in widths_with_weights(arch))
        raise RecipeError(
            "model.weights",
            f'"{name}", which nobody has published for {arch} at width_mult {width_mult:g}',
            f"width_mult must be one of {widths}",
            "Change model.width_mult, or train from scratch with weights: none",
        )
    return releases[0] if name == FIRST else releases[-1]


def _releases(arch: str, width_mult: float) -> list[PublishedWeights]:
    return [row for row in PUBLISHED if (row.arch, row.width_mult) == (arch, width_mult)]
