"""Photographs in a zip file, as an example of an image source.

The members are named as the files of a folder: `train/daisy/1.jpg`, `val/roses/2.jpg`.
"""

from pathlib import Path, PurePosixPath
from typing import Self
from zipfile import BadZipFile, ZipFile

import numpy as np

from mnet_cli.data.image_files import Stamp
from mnet_cli.data.paths import Names
from mnet_cli.data.sources.base import ImageSource
from mnet_cli.errors import DataError

ENDINGS = (".jpg", ".jpeg", ".png")


class ZipSource(ImageSource):
    """The images of one split in a zip file."""

    layout = "a zip file with train/daisy/1.jpg, val/daisy/2.jpg and so on"

    @classmethod
    def matches(cls, root: str) -> bool:
        """Whether the name ends with .zip."""
        return root.endswith(".zip")

    @classmethod
    def open(cls, root: str) -> dict[str, Self]:
        """List the images of each split; no image is read."""
        try:
            with ZipFile(root) as archive:
                members = sorted(archive.namelist())
        except (OSError, BadZipFile) as error:
            raise DataError(root, f"cannot be read as a zip file ({error})") from error
        images = [name for name in members if name.lower().endswith(ENDINGS)]
        splits = sorted({PurePosixPath(name).parts[0] for name in images})
        return {split: cls._split(root, split, images) for split in splits}

    @classmethod
    def _split(cls, root: str, split: str, images: list[str]) -> Self:
        names = [name for name in images if name.startswith(f"{split}/")]
        classes = [PurePosixPath(name).parts[1] for name in names]
        class_names = tuple(sorted(set(classes)))
        return cls(
            root=root,
            place=f"{root}/{split}",
            class_names=class_names,
            names=Names(names),
            labels=np.array([class_names.index(name) for name in classes], np.int64),
        )

    def read(self, index: int) -> bytes:
        """Read one image; each call opens the file, so that threads do not disturb each other."""
        try:
            with ZipFile(self.root) as archive:
                return archive.read(self.names[index])
        except (OSError, KeyError, BadZipFile) as error:
            raise DataError(self.where(index), f"cannot be read ({error})") from error

    def stamp(self, index: int) -> Stamp:
        """While the zip file is the same, its images need not be checked again."""
        status = Path(self.root).stat()
        name = f"{Path(self.root).resolve()}/{self.names[index]}"
        return name, status.st_size, status.st_mtime_ns, status.st_ctime_ns
