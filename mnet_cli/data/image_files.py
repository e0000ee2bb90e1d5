"""Encoded images that can be read: files on disk, and images in memory.

Everything that decodes images takes objects with this interface; images of a data set come from
`mnet_cli.data.sources`.
"""

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnet_cli.data.storage import find_file
from mnet_cli.errors import DataError
from mnet_cli.system.text import printable, readable
from mnet_cli.system.urls import is_url, refuse_credentials

# The modes of Pillow that PNG stores without loss; TIFF stores the others.
_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")

Stamp = tuple[str, int, int, int]  # absolute name, size in bytes, mtime and ctime in ns
ImageInput = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]


class ImageFile(Protocol):
    """An encoded image, such as a JPEG file."""

    @property
    def name(self) -> str:
        """Its name in the data set, such as `train/daisy/1.jpg`."""

    @property
    def where(self) -> str:
        """Its full name in output and errors, such as `photos/train/daisy/1.jpg`."""

    def read(self) -> bytes:
        """Read the encoded bytes; several threads may read at once.

        Raises:
            DataError: They cannot be read; the error names the image.
        """

    def stamp(self) -> Stamp | None:
        """Return values that change whenever the bytes change; None if nothing is known."""


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image file on disk.

    Attributes:
        path: The file.
    """

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def where(self) -> str:
        """The path."""
        return str(self.path)

    def read(self) -> bytes:
        """Read the file; see `read_bytes`."""
        return read_bytes(self.path)

    def stamp(self) -> Stamp | None:
        """See `file_stamp`."""
        return file_stamp(self.path)


@dataclass(frozen=True)
class StoredImage:
    """An image file at a URL.

    Attributes:
        url: Of the file.
    """

    url: str

    @property
    def name(self) -> str:
        """The URL."""
        return self.url

    @property
    def where(self) -> str:
        """The URL."""
        return self.url

    def read(self) -> bytes:
        """Read the file; see `ImageFile.read`."""
        file = find_file(self.url)
        if file is None:
            raise DataError(printable(self.url), "does not exist")
        return file.read()

    def stamp(self) -> None:
        """Return None: to ask the server costs as much as to read the image."""
        return None


@dataclass(frozen=True)
class MemoryImage:
    """An image in memory.

    Attributes:
        content: The encoded bytes, such as the content of a JPEG file.
        name: Its name in output and errors.
    """

    content: bytes
    name: str = "image"

    @property
    def where(self) -> str:
        """The name."""
        return self.name

    def read(self) -> bytes:
        """Return the encoded bytes."""
        return self.content

    def stamp(self) -> None:
        """Return None: nothing is remembered about images in memory."""


def image_at(place: str) -> ImageFile:
    """The image file at a path or URL."""
    return StoredImage(place) if is_url(place) else FileImage(Path(place))


def image_of(value: ImageInput, name: str = "image") -> ImageFile:
    """Turn any supported form of an image into an `ImageFile`.

    A Pillow image or an array gives the same prediction as a lossless file of its pixels. The
    EXIF orientation of a Pillow image is applied, as it is for files.

    Args:
        value: The path or URL of a file, the encoded bytes, a Pillow image, or an RGB array
            (H, W, 3) or grey array (H, W) of dtype uint8.
        name: Its name in errors, unless it is a path.

    Raises:
        DataError: The array has another shape or dtype, or the mode of the Pillow image is not
            supported.
        TypeError: `value` is of another type.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return MemoryImage(bytes(value), name)
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.shape[2:] not in ((), (3,)) or value.ndim < 2:
            raise DataError(
                name,
                f"the array has shape {value.shape} and dtype {value.dtype}",
                next_step="Give an array (H, W, 3) or (H, W) of dtype uint8",
            )
        if not value.size:
            raise DataError(name, f"the array is empty, its shape is {value.shape}")
        value = Image.fromarray(value)
    if isinstance(value, Image.Image):
        return MemoryImage(_encode(value, name), name)
    if isinstance(value, str | os.PathLike):
        place = os.fspath(value)
        refuse_credentials(place, name)
        return image_at(place)
    raise TypeError(
        f"{name} is of type {type(value).__name__}; give a path, bytes, a Pillow image or an array"
    )


def _encode(image: Image.Image, name: str) -> bytes:
    """Encode an image without loss, without compression: speed matters more than size."""
    content = io.BytesIO()
    try:
        if image.mode in _PNG_MODES:
            image.save(content, "PNG", compress_level=0, exif=image.getexif())
        else:
            image.save(content, "TIFF", exif=image.getexif())
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            name,
            f"a Pillow image of mode {image.mode} cannot be used ({error})",
            next_step='Convert it with image.convert("RGB")',
        ) from error
    return content.getvalue()


def read_bytes(path: Path) -> bytes:
    """Read a regular file whole; devices and pipes are refused before they can block.

    Raises:
        DataError: The file is missing, unreadable or not a regular file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(str(path), "not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """The error of a file or folder that cannot be read."""
    return DataError(
        printable(str(path)),
        f"cannot be read ({error.strerror or error})",
        next_step="Change its permissions" if isinstance(error, PermissionError) else "",
    )


def file_stamp(path: Path) -> Stamp | None:
    """Return what changes whenever the file at `path` changes; None if it cannot be examined.

    The time of the last change of any kind is included: a copy that preserves the time of
    modification could have replaced a file of the same size.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return readable(str(path.absolute())), status.st_size, status.st_mtime_ns, status.st_ctime_ns
