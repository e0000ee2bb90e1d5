"""The image source for folders in object stores: one folder a class, perhaps below a split."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.image_files import Stamp
from mnet_cli.data.sources.base import ImageSource
from mnet_cli.data.sources.folder import IMAGE_EXTENSIONS, FolderSource, is_hidden
from mnet_cli.data.sources.rows import SPLITS, Rows, class_names_of
from mnet_cli.data.storage import StoredFile, list_files
from mnet_cli.errors import DataError
from mnet_cli.system.text import printable
from mnet_cli.system.urls import is_url

DEEPEST = 20  # levels of folders


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredFolderSource(ImageSource):
    """Images in class folders at a URL.

    Attributes:
        files: All files below the URL.
        places: For each image its file (N, 1).
    """

    files: tuple[StoredFile, ...]
    places: NDArray[np.int64]

    layout = "class folders at a URL, such as s3://bucket/photos/train/daisy/1.jpg"
    general = True

    @classmethod
    def matches(cls, root: str) -> bool:
        """Whether `root` is a URL."""
        return is_url(root)

    @classmethod
    def open(cls, root: str) -> dict[str, Self]:
        """List the files below a URL; see `ImageSource.open`."""
        files = tuple(list_files(root, DEEPEST))
        names = [file.name[len(root.rstrip("/")) + 1 :] for file in files]
        tops = {name.partition("/")[0] for name in names}
        is_split = "train" in tops and {"val", "validation"} & tops
        splits: dict[str, Rows] = {}
        for number, name in enumerate(names):
            top, _, below = name.partition("/")
            split = SPLITS.get(top, "") if is_split else "all"
            parts = PurePosixPath(below if is_split else name).parts
            if not split or any(map(is_hidden, parts)):
                continue
            rows = splits.setdefault(split, Rows())
            suffix = PurePosixPath(name).suffix
            if len(parts) < 2:
                rows.ignored.append(f"{printable(name)}: not in a class folder")
            elif suffix.lower() not in IMAGE_EXTENSIONS:
                rows.ignored.append(
                    f"{printable(name)}: unsupported format {printable(suffix) or '(no extension)'}"
                )
            else:
                rows.add("/".join(parts), parts[0], number)
        classes = class_names_of(splits)
        if not classes:
            raise DataError(
                printable(root),
                "no class folders with images",
                next_step=f"Use {FolderSource.layout}",
                details=[note for rows in splits.values() for note in rows.ignored][:20],
            )
        order = [split for split in ("train", "val", "test", "all") if split in splits]
        return {
            split: cls(**splits[split].arranged(root, split, classes), files=files)
            for split in order
        }

    def read(self, index: int) -> bytes:
        """Read an image file."""
        return self._file(index).read()

    def where(self, index: int) -> str:
        """The URL of an image."""
        return self._file(index).name

    def stamp(self, index: int) -> Stamp | None:
        """The version of an image file."""
        file = self._file(index)
        return file.key, file.size, 0, 0

    def _file(self, index: int) -> StoredFile:
        return self.files[int(self.places[index, 0])]
