"""What the sources whose images lie in larger files have in common."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.image_files import ImageFile
from mnet_cli.data.sources.base import ImageSource
from mnet_cli.data.sources.rows import Rows, class_names_of
from mnet_cli.data.sources.shard_manifest import check_shards
from mnet_cli.data.storage import StoredFile, find_file
from mnet_cli.errors import DataError
from mnet_cli.system.text import printable


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedSource(ImageSource):
    """Images in larger files, such as tar shards.

    Attributes:
        files: The files.
        places: For each image the number of its file, and where it is in it (N, …).
    """

    files: tuple[StoredFile, ...]
    places: NDArray[np.int64]

    suffix: ClassVar[str]
    """Of the files."""

    @classmethod
    @abstractmethod
    def find_splits(cls, root: str) -> dict[str, list[StoredFile]]:
        """The files of each split in a folder or below it, sorted by name; empty without any."""

    @classmethod
    @abstractmethod
    def read_rows(cls, root: str, files: Sequence[StoredFile], *, is_labelled: bool) -> Rows:
        """List the images of the files of one split.

        Args:
            root: The data set.
            files: The files.
            is_labelled: Whether an image needs a class.

        Raises:
            DataError: A file is damaged, or a label is wrong.
        """

    @classmethod
    def class_list(cls, root: str) -> list[str] | None:
        """The classes that the data set itself lists, in order; None if it lists none."""
        return None

    @classmethod
    def files_of(cls, root: str) -> dict[str, list[StoredFile]]:
        """The files of each split, where `root` may also be a single file.

        Raises:
            DataError: A single file does not exist, or a packed set is not whole.
        """
        if not root.endswith(cls.suffix):
            splits = cls.find_splits(root)
            check_shards(root, [file for files in splits.values() for file in files])
            return splits
        file = find_file(root)
        if file is None:
            raise DataError(printable(root), "does not exist", next_step="Check its name")
        return {"all": [file]}

    @classmethod
    def matches(cls, root: str) -> bool:
        """Whether `root` is such a file, or a folder with such files."""
        if root.endswith(cls.suffix):
            return True
        try:
            return bool(cls.find_splits(root))
        except DataError:  # a folder that cannot be read; another kind of source reports it
            return False

    @classmethod
    def splits(cls, root: str) -> tuple[str, ...]:
        """See `ImageSource.splits`; no file is read."""
        return tuple(cls.files_of(root))

    @classmethod
    def open(cls, root: str) -> dict[str, Self]:
        """List the images of all files; see `ImageSource.open`."""
        return cls._open(root, is_labelled=True)

    @classmethod
    def unlabelled(cls, root: str) -> Iterator[ImageFile]:
        """See `ImageSource.unlabelled`."""
        for source in cls._open(root, is_labelled=False).values():
            yield from source

    @classmethod
    def _open(cls, root: str, *, is_labelled: bool) -> dict[str, Self]:
        files = cls.files_of(root)
        rows = {
            split: cls.read_rows(root, some, is_labelled=is_labelled)
            for split, some in files.items()
        }
        class_names = cls.class_list(root) or class_names_of(rows)
        return {
            split: cls(**some.arranged(root, split, class_names), files=tuple(files[split]))
            for split, some in rows.items()
        }

    def file_of(self, index: int) -> StoredFile:
        """The file that image `index` is in."""
        return self.files[int(self.places[index, 0])]

    def where(self, index: int) -> str:
        """The file and the name of an image."""
        return f"{self.file_of(index).name}: {self.names[index]}"
