"""The only image decoder: from encoded bytes to an upright RGB image, or a DataError."""

import io
import math
import re
import struct
import warnings
import zlib

import numpy as np
import PIL
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mnet_cli.data.image_files import ImageFile
from mnet_cli.errors import DataError
from mnet_cli.system.text import text_in_place_of_data

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = (
    100_000_000  # 300 MB as RGB; a 100-megapixel camera passes, a decompression bomb does not
)
SPARE = 2  # a JPEG decoded smaller has at least this many times the pixels needed per side
ROTATED = (5, 6, 7, 8)  # values of EXIF's orientation that swap width and height
MAX_ASPECT = 100  # long side over short side; beyond that, resizing takes too much memory

# Increased with every change of which images are refused, and of the messages; changes of pixels
# are counted by `preprocess.DECODE_RULES`.
RULES = 3
# What the outcome of decoding depends on, besides the bytes.
DECODER = f"rules {RULES}, Pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}"

# Of a JPEG's modes: simplejpeg's name, and Pillow's raw mode, in which CMYK is inverted.
LAYOUTS = {"L": ("GRAY", "L"), "RGB": ("RGB", "RGB"), "CMYK": ("CMYK", "CMYK;I")}
DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file")  # libjpeg's warnings of lost pixels
# The same warning for bytes between the segments of the header, which hold no pixels.
HARMLESS = re.compile(r"extraneous bytes before marker 0x(?!d[0-9])")
PNG_SIGNATURE = 8  # bytes before the first chunk
PNG_DEPTH = 24  # the byte that gives the bits of a sample

# Pillow warns above its limit and raises above twice that; `MAX_PIXELS` replaces both.
Image.MAX_IMAGE_PIXELS = None

# What Pillow raises on damaged files, found by mutating 128,000 of them.
BROKEN = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, OverflowError,
    ZeroDivisionError, struct.error, Image.DecompressionBombError,
)  # fmt: skip
# What it only warns of, such as odd metadata, does not change the pixels.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_image(image: ImageFile, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Read and decode an image; see `decode_image`.

    Raises:
        DataError: It cannot be read, or is not a usable image.
    """
    return decode_image(image.read(), image.where, background)


class Photograph:
    """An encoded image: its size at once, its pixels when they are asked for.

    EXIF orientation is applied, transparency is composited on `background`, 16-bit grey is
    rescaled to 8 bits, the first frame of an animation is taken, and every other mode is
    converted as Pillow converts it.

    Args:
        content: The encoded bytes.
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
            rotated = self._shrinks and image.getexif().get(ExifTags.Base.Orientation) in ROTATED
            if image.format == "PNG":
                _check_chunks(content)
                clear = image.info.get("transparency")
                if image.mode == "RGB" and clear and content[PNG_DEPTH] == 16:  # Pillow gives 8
                    image.info["transparency"] = tuple(level >> 8 for level in clear)
            self._decoded = (1, None if self._shrinks else self._upright(image))
        except BROKEN as error:
            raise DataError(where, describe(content, error)) from error
        width, height = self._decoded[1].size if self._decoded[1] else image.size
        self.size = (height, width) if rotated else (width, height)

    def decode(self, times: int = 1) -> Image.Image:
        """Decode to upright RGB pixels; a second call with the same argument decodes nothing.

        Args:
            times: By which factor the sides of a JPEG become smaller, as `times_smaller`
                allows; other formats keep their size.

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
                raise DataError(self.where, describe(self.content, error)) from error
            self._decoded = (times, pixels)
        return pixels

    def _upright(self, image: Image.Image) -> Image.Image:
        ImageOps.exif_transpose(image, in_place=True)  # by itself it would copy every image
        return _to_rgb(image, self.where, self.background)


def times_smaller(surplus: float) -> int:
    """By which factor a JPEG may be decoded smaller without a relevant difference.

    Args:
        surplus: The size of the part that is used, divided by the size it is resized to.

    Returns:
        1, 2 or 4, so that resizing still reduces it by `SPARE` at least.
    """
    return next((times for times in (4, 2) if surplus >= SPARE * times), 1)


def decode_image(
    content: bytes, where: str, background: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """Decode encoded bytes into an upright RGB image; see `Photograph`.

    Raises:
        DataError: The bytes are not a usable image.
    """
    return Photograph(content, where, background).decode()


def open_photograph(image: ImageFile, background: tuple[int, int, int]) -> Photograph:
    """Read an image and its header.

    Raises:
        DataError: It cannot be read, or is not a usable image.
    """
    return Photograph(image.read(), image.where, background)


def _refuse_extreme(size: tuple[int, int], where: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise DataError(
            where,
            f"{width}x{height} pixels, more than {MAX_PIXELS:,}",
            next_step="Make the image smaller",
        )
    if max(size) > MAX_ASPECT * min(size):
        raise DataError(
            where,
            f"{width}x{height} pixels, one side more than {MAX_ASPECT} times the other",
            next_step="Crop the image",
        )


def describe(content: bytes, error: BaseException) -> str:
    """Say in a few words why `content` could not be decoded."""
    if not content:
        return "empty file (0 bytes)"
    if text := text_in_place_of_data(content[:256]):
        return f"{text[0]}, not an image"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in a supported format ({', '.join(FORMATS)})"
    return f"damaged image ({error})"


def _decode_jpeg(image: Image.Image, content: bytes, times: int) -> Image.Image:
    """Decode a JPEG with its sides `times` smaller, by leaving out high frequencies.

    Pillow does not report libjpeg's warnings; simplejpeg raises them, and gives the same
    pixels. Pillow decodes the kinds of JPEG that simplejpeg does not support, and the files
    whose warnings are about headers only.

    Args:
        image: The JPEG as Pillow opened it.
        content: The same as bytes.
        times: 1, 2 or 4.

    Raises:
        ValueError: Pixels are damaged or missing.
    """
    width, height = (math.ceil(side / times) for side in image.size)
    buffer = np.empty((height, width, len(image.getbands())), np.uint8)
    least = {"min_width": width, "min_height": height} if times > 1 else {}
    layout, stored = LAYOUTS[image.mode]
    try:
        pixels = simplejpeg.decode_jpeg(content, layout, buffer=buffer, **least)
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
    """Compare the checksums of a PNG's critical chunks; Pillow does not check the last ones.

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
            raise DataError(
                where, "32-bit integer pixels", next_step="Rescale the image to 8 or 16 bits"
            )
        opaque = values != image.info.get("transparency", -1)
        image = Image.fromarray((values / 257).round().astype(np.uint8))
        if not opaque.all():
            image.putalpha(Image.fromarray(opaque))
    if image.mode == "F":
        raise DataError(
            where,
            "floating-point pixels, whose range is unknown",
            next_step="Rescale the image to 8 bits",
        )
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    if image.mode == "RGB":
        image.load()
        return image  # converting would copy it
    return image.convert("RGB")
