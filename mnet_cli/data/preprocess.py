"""How an image becomes a tensor in evaluation: one value, stored with every checkpoint.

Nothing here imports torch, so that a prediction by another runtime needs none.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnet_cli.errors import WeightsError
from mnet_cli.system.text import printable

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
BACKGROUNDS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}


# The rules by which `data.images` turns a file into pixels: EXIF orientation applied, transparency
# on the background, channels R, G, B, 16 bits rescaled to 8, an animation's first frame. Raised
# with every change that gives an image other pixels; files without a version are of the first,
# but for the transparent colour of 16-bit PNGs, which was lost before there were versions.
DECODE_RULES = 1


@dataclass(frozen=True)
class Preprocess:
    """The whole of evaluation's preprocessing: how a file becomes the network's input.

    Attributes:
        image_size: Side S of the square that the model sees, in pixels.
        resize: Length of the image's short side before the centre crop, in pixels.
        interpolation: `bilinear` or `bicubic`; both antialiased, as Pillow does them.
        mean: Per channel (R, G, B), subtracted from values in [0, 1].
        std: Per channel, divides after the mean.
        background: The colour (R, G, B in 0..255) under transparent pixels.
        decode: Version of the rules of decoding, `DECODE_RULES`.
    """

    image_size: int
    resize: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    background: tuple[int, int, int]
    decode: int = DECODE_RULES

    def __post_init__(self) -> None:
        """Refuse values that no image could be prepared with."""
        colours = (self.mean, self.std, self.background)
        if (
            self.interpolation not in RESAMPLING
            or not 1 <= self.image_size <= self.resize
            or any(len(values) != 3 for values in colours)
            or not all(value > 0 for value in self.std)
        ):
            raise ValueError(f"no such preprocessing: {self}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, as they stand in files."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "Preprocess":
        """Rebuild what `to_dict` gave.

        Args:
            values: The plain values.
            where: The file that holds them, for errors.

        Raises:
            WeightsError: An image is to be decoded by rules that are unknown here.
            TypeError, ValueError, KeyError, AttributeError: They are no such values.
        """
        decode = values.get("decode", 1)
        if not (isinstance(decode, int) and 1 <= decode <= DECODE_RULES):
            raise WeightsError(
                where,
                f"decodes images by version {printable(str(decode), 20)} of mnet's rules, "
                f"this mnet by version {DECODE_RULES}",
                next_step="Update mnet",
            )
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**{"decode": decode} | fields)

    def __str__(self) -> str:
        """The value as one short line."""
        return (
            f"resize {self.resize} {self.interpolation} | centre crop {self.image_size} | "
            f"mean {self.mean} | std {self.std}"
        )


def crop_for_eval(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Resize the short side to `preprocess.resize` and cut out the centre square.

    Sizes and offsets are rounded as torchvision's `Resize` and `CenterCrop` round them.
    """
    short, side = preprocess.resize, preprocess.image_size
    width, height = image.size
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    if (width, height) != image.size:
        image = image.resize((width, height), RESAMPLING[preprocess.interpolation])
    left, top = round((width - side) / 2.0), round((height - side) / 2.0)
    return image.crop((left, top, left + side, top + side))


def to_normalized(image: Image.Image, preprocess: Preprocess) -> NDArray[np.float32]:
    """Turn an RGB image (S, S) into a normalised float32 array (3, S, S)."""
    table = _normalized_levels(preprocess.mean, preprocess.std)
    pixels = np.asarray(image).transpose(2, 0, 1)
    return np.stack([levels[plane] for levels, plane in zip(table, pixels, strict=True)])


@lru_cache
def _normalized_levels(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    """The normalised value of each channel at each of the 256 levels (3, 256)."""
    levels = np.arange(256, dtype=np.float32) * np.float32(1 / 255)  # as torchvision rounds
    means, deviations = np.asarray([mean, std], np.float32)[:, :, None]
    table: NDArray[np.float32] = (levels - means) / deviations
    return table


def eval_array(image: Image.Image, preprocess: Preprocess) -> NDArray[np.float32]:
    """Turn an upright RGB image of any size into the model's input (3, S, S), float32.

    Equal to the last bit to torchvision's Resize, CenterCrop, to float32 and Normalize.
    """
    return to_normalized(crop_for_eval(image, preprocess), preprocess)
