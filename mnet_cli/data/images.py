"""The one decoder: from a file to an upright RGB image, or a DataError that says why not."""

import io
import math
import re
import stat
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mnet_cli.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 100_000_000  # 300 MB as RGB; a 100-megapixel camera passes, a bomb does not
SPARE = 2  # a JPEG decoded smaller keeps so many times the pixels that are needed
TURNED = (5, 6, 7, 8)  # values of EXIF's orientation that swap width and height
MAX_ASPECT = 100  # long side over short side; beyond, resizing the short side is a bomb too

# Raised with every change of which images are refused, or of what is said of them; changes of
# pixels are counted by `preprocess.DECODE_RULES`.
RULES = 2
# What an image's fault, or that it has none, depends on besides its bytes.
DECODER = f"rules {RULES}, Pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}"

# Of a JPEG's modes: simplejpeg's name, and Pillow's raw mode, in which CMYK is inverted.
LAYOUTS = {"L": ("GRAY", "L"), "RGB": ("RGB", "RGB"), "CMYK": ("CMYK", "CMYK;I")}
DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file")  # libjpeg's warnings of lost pixels
# What it also says of bytes between the segments of the header, which are no pixels.
HARMLESS = re.compile(r"extraneous bytes before marker 0x(?!d[0-9])")
PNG_SIGNATURE = 8  # bytes before the first chunk
PNG_DEPTH = 24  # the byte that gives the bits of a sample

# Pillow warns below its limit and raises above twice that; ours is one limit and an error.
Image.MAX_IMAGE_PIXELS = None

# What Pillow raises on damaged files, found by mutating 128,000 of them.
BROKEN = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, OverflowError,
    ZeroDivisionError, struct.error, Image.DecompressionBombError,
)  # fmt: skip
# What it only warns of, such as odd metadata, does not change the pixels.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_image(path: Path, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Decode the image file at `path`; see `decode_image`.

    Raises:
        DataError: The file is missing, unreadable, not a regular file, or no usable image.
    """
    return decode_image(read_bytes(path), str(path), background)


def read_bytes(path: Path) -> bytes:
    """Read a regular file whole; devices and pipes are refused before they can block.

    Raises:
        DataError: The file is missing, unreadable, empty or not a regular file.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise DataError(str(path), "not a regular file", "an image file was expected")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            str(path), f"cannot be read ({error.strerror})", "a readable image was expected"
        ) from error
    if not content:
        raise DataError(str(path), "empty file (0 bytes)", "an image was expected")
    return content


class Photograph:
    """An image file's bytes: first its size, then, once it is known how it will be used, pixels.

    EXIF orientation is applied, transparency is laid on `background`, 16-bit grey is
    rescaled to 8 bits, the first frame of an animation is taken, and every other mode is
    converted as Pillow converts it.

    Args:
        content: The file's bytes.
        where: The name to use in errors.
        background: The colour under transparent pixels, R, G, B in 0..255.

    Attributes:
        size: Width and height in pixels, upright.

    Raises:
        DataError: Not an image in a supported format, larger than `MAX_PIXELS`, thinner than
            `MAX_ASPECT`, or, unless it is a JPEG, damaged.
    """

    def __init__(
        self, content: bytes, where: str, background: tuple[int, int, int] = (255, 255, 255)
    ) -> None:
        self.content, self.where, self.background = content, where, background
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            _refuse_extreme(image.size, where)
            # Only a JPEG can be decoded smaller, so only there it pays to wait.
            self._shrinks = image.format in ("JPEG", "MPO")
            turned = self._shrinks and image.getexif().get(ExifTags.Base.Orientation) in TURNED
            if image.format == "PNG":
                _check_chunks(content)
                clear = image.info.get("transparency")
                if image.mode == "RGB" and clear and content[PNG_DEPTH] == 16:  # Pillow gives 8
                    image.info["transparency"] = tuple(level >> 8 for level in clear)
            self._decoded = (1, None if self._shrinks else self._upright(image))
        except BROKEN as error:
            raise _damaged(content, where, error) from error
        width, height = self._decoded[1].size if self._decoded[1] else image.size
        self.size = (height, width) if turned else (width, height)

    def decode(self, times: int = 1) -> Image.Image:
        """Decode to upright RGB pixels; asked for the same again, they are there.

        Args:
            times: How many times smaller the sides of a JPEG come out, as `times_smaller`
                allows; other formats come out whole.

        Raises:
            DataError: Truncated, damaged, or in floating point.
        """
        times = times if self._shrinks else 1
        pixels = self._decoded[1] if self._decoded[0] == times else None
        if pixels is None:
            try:
                image: Image.Image = Image.open(io.BytesIO(self.content), formats=FORMATS)
                if self._shrinks:
                    image = _decode_jpeg(image, self.content, times)
                pixels = self._upright(image)
            except BROKEN as error:
                raise _damaged(self.content, self.where, error) from error
            self._decoded = (times, pixels)
        return pixels

    def _upright(self, image: Image.Image) -> Image.Image:
        ImageOps.exif_transpose(image, in_place=True)  # by itself it would copy every image
        return _to_rgb(image, self.where, self.background)


def times_smaller(surplus: float) -> int:
    """How many times smaller a JPEG may be decoded without a difference that matters.

    Args:
        surplus: How many times larger the part that is used is than what it is resized to.

    Returns:
        1, 2 or 4, so that a factor of `SPARE` at least is left to the resizing.
    """
    return next((times for times in (4, 2) if surplus >= SPARE * times), 1)


def decode_image(
    content: bytes, where: str, background: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """Decode an image file's bytes into an upright RGB image; see `Photograph`.

    Raises:
        DataError: The bytes are no usable image.
    """
    return Photograph(content, where, background).decode()


def open_photograph(path: Path, background: tuple[int, int, int]) -> Photograph:
    """Read the image file at `path` and look at its header.

    Raises:
        DataError: The file is missing, unreadable, not a regular file, or no usable image.
    """
    return Photograph(read_bytes(path), str(path), background)


def _refuse_extreme(size: tuple[int, int], where: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise DataError(
            where,
            f"{width}x{height} pixels",
            f"at most {MAX_PIXELS:,} pixels were expected",
            "Scale the image down",
        )
    if max(size) > MAX_ASPECT * min(size):
        raise DataError(
            where,
            f"{width}x{height} pixels",
            f"sides within a ratio of {MAX_ASPECT} were expected",
            "Crop the image",
        )


def _damaged(content: bytes, where: str, error: BaseException) -> DataError:
    return DataError(where, describe(content, error), "a whole image was expected")


def describe(content: bytes, error: BaseException) -> str:
    """Say in a few words why `content` could not be decoded."""
    start = content[:256].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not an image"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in a supported format ({', '.join(FORMATS)})"
    return f"damaged image ({error})"


def _decode_jpeg(image: Image.Image, content: bytes, times: int) -> Image.Image:
    """Decode a JPEG with its sides `times` smaller, by leaving out finer frequencies.

    Pillow keeps libjpeg's warnings to itself; simplejpeg raises them, and gives the same
    pixels. Kinds of JPEG that it does not know are left to Pillow, and so are files that it
    warns of for their headers alone.

    Args:
        image: The JPEG as Pillow opened it.
        content: The same as bytes.
        times: 1, 2 or 4.

    Raises:
        ValueError: Pixels are damaged or missing.
    """
    width, height = (math.ceil(side / times) for side in image.size)
    room = np.empty((height, width, len(image.getbands())), np.uint8)
    least = {"min_width": width, "min_height": height} if times > 1 else {}
    layout, stored = LAYOUTS[image.mode]
    try:
        pixels = simplejpeg.decode_jpeg(content, layout, buffer=room, **least)
    except ValueError as error:
        if str(error).startswith(DAMAGE) and not HARMLESS.search(str(error)):
            raise
        if times > 1:
            image.draft(None, (image.width // times, image.height // times))
        return image
    decoded = Image.frombuffer(image.mode, (width, height), pixels, "raw", stored, 0, 1)
    decoded.info = image.info  # the orientation is in it
    return decoded


def _check_chunks(content: bytes) -> None:
    """Compare the checksums of a PNG's critical chunks; Pillow passes over those at the end.

    Raises:
        ValueError: A checksum is wrong, or the last chunk is missing.
    """
    start, kind = PNG_SIGNATURE, b""
    while kind != b"IEND":
        head = content[start : start + 8]
        if len(head) < 8:
            raise ValueError("cut off before its IEND chunk")
        length, kind = struct.unpack(">I4s", head)
        end = start + 8 + length
        checksum = zlib.crc32(memoryview(content)[start + 4 : end])
        if kind[:1].isupper() and content[end : end + 4] != checksum.to_bytes(4, "big"):
            raise ValueError(f"wrong checksum of its {kind.decode('latin-1')} chunk")
        start = end + 4


def _to_rgb(image: Image.Image, where: str, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(where, "32-bit integer pixels", "8 or 16 bits a channel were expected")
        opaque = values != image.info.get("transparency", -1)
        image = Image.fromarray((values / 257).round().astype(np.uint8))
        if not opaque.all():
            image.putalpha(Image.fromarray(opaque))
    if image.mode == "F":
        raise DataError(
            where,
            "floating-point pixels, whose range is unknown",
            "8 or 16 bits a channel were expected",
            "Rescale the image to 8 bits",
        )
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    if image.mode == "RGB":
        image.load()
        return image  # converting would copy it
    return image.convert("RGB")
