"""The image source for folders: one folder a class, perhaps below a folder a split.

It walks the folders itself: torchvision's ImageFolder counts images again through links that
form a loop, and leaves out folders that it may not read.
"""

import errno
import os
import stat
from collections import deque
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np

from mnet_cli.data.image_files import Stamp, file_stamp, read_bytes, unreadable
from mnet_cli.data.paths import Names
from mnet_cli.data.sources.base import ImageSource
from mnet_cli.data.sources.classes import LISTED
from mnet_cli.errors import DataError
from mnet_cli.system.text import listing, printable

IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
)  # fmt: skip
SPLITS = ("train", "val", "test")

_SPLIT_LIKE = {"train", "training", "val", "valid", "validation"}
_LEADS_NOWHERE = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}
_HIDDEN = "hidden"

Identity = tuple[int, int] | str


class FolderSource(ImageSource):
    """Images in one folder a class, perhaps below a folder a split."""

    layout = (
        "class folders with images, such as ROOT/daisy/1.jpg and ROOT/roses/2.jpg, "
        "or ROOT/train/daisy/1.jpg and ROOT/val/daisy/2.jpg"
    )
    general = True

    @classmethod
    def matches(cls, root: str) -> bool:
        """Whether `root` is a folder."""
        return os.path.isdir(root)  # noqa: PTH112  unlike Path.is_dir, never an error

    @classmethod
    def open(cls, root: str) -> dict[str, Self]:
        """Find the images of a folder with `train/` and `val/`, or of a folder of classes.

        Images may be in subfolders of a class. Links are followed; a folder is visited once
        (by device and inode), and so is a file within a class.

        Raises:
            DataError: `root` is missing, not a folder or unreadable; one of `train` and `val` is
                missing; or there is no class folder at all.
        """
        folder = Path(root)
        sources = {
            split: cls._find(folder, "" if split == "all" else split) for split in cls.splits(root)
        }
        if not any(source.class_names for source in sources.values()):
            notes = [note for source in sources.values() for note in source.ignored]
            raise DataError(
                printable(str(folder)),
                "no class folders" if notes else "the folder is empty",
                next_step=f"Use {cls.layout}",
                details=notes[:LISTED],
            )
        return sources

    @classmethod
    def splits(cls, root: str) -> tuple[str, ...]:
        """See `ImageSource.splits`; the images are not listed.

        Raises:
            DataError: As `open` does, but for a folder without classes.
        """
        names, _ = _subfolders(Path(root))
        if {"train", "val"} <= set(names):
            return tuple(name for name in SPLITS if name in names)
        split_like = [name for name in names if name.casefold() in _SPLIT_LIKE]
        if split_like:
            raise DataError(
                printable(root),
                f"has {listing(split_like)} but not both train and val",
                next_step="Name the folders of the splits exactly train and val, "
                "or give a folder of classes and a val_fraction",
            )
        return ("all",)

    @classmethod
    def _find(cls, root: Path, split: str) -> Self:
        """The images of a folder of classes, `root` itself or the folder of a split below it."""
        place = root / split
        folders, ignored = _subfolders(place)
        images = _walk(place, folders, ignored)
        class_names = tuple(sorted(folders))
        below = f"{split}/" if split else ""
        return cls(
            root=str(root),
            place=str(place),
            class_names=class_names,
            names=Names(below + path for name in class_names for path in sorted(images[name])),
            labels=np.repeat(
                np.arange(len(class_names)), [len(images[name]) for name in class_names]
            ),
            ignored=tuple(sorted(ignored)),
        )

    def read(self, index: int) -> bytes:
        """Read an image file; see `read_bytes`."""
        return read_bytes(self._path(index))

    def where(self, index: int) -> str:
        """The path of an image file."""
        return str(self._path(index))

    def stamp(self, index: int) -> Stamp | None:
        """See `file_stamp`."""
        return file_stamp(self._path(index))

    def _path(self, index: int) -> Path:
        return Path(self.root, self.names[index])


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not meant as data: `.name`, `._name`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def _subfolders(root: Path) -> tuple[list[str], list[str]]:
    """Names of the folders directly in `root`, and notes on everything else there."""
    folders, notes = [], []
    for entry in list_entries(root):
        status, note = _examine(entry)
        if status and stat.S_ISDIR(status.st_mode):
            folders.append(entry.name)
        else:
            reason = note if note == _HIDDEN else "not in a class folder"
            notes.append(f"{printable(entry.name)}: {reason}")
    return folders, notes


def _walk(root: Path, class_names: list[str], ignored: list[str]) -> dict[str, list[str]]:
    """Relative image paths of each class; notes on everything else go to `ignored`.

    Real folders come before links to folders, so an image belongs to the class in which it
    lies, and a link to it elsewhere is the one that is skipped. A link to the root or to a
    folder above it would bring in every class, so those count as visited from the start.
    """
    images: dict[str, list[str]] = {name: [] for name in class_names}
    seen_files: dict[str, set[Identity]] = {name: set() for name in class_names}
    visited = {file_identity(folder) for folder in (root, *root.resolve().parents)}
    real: deque[tuple[str, PurePosixPath]] = deque()
    linked: deque[tuple[str, PurePosixPath]] = deque()
    for name in class_names:
        (linked if (root / name).is_symlink() else real).append((name, PurePosixPath(name)))
    while real or linked:
        name, folder = (real or linked).popleft()
        identity = file_identity(root / folder)
        if identity in visited:
            ignored.append(
                f"{printable(str(folder))}: a folder that was visited under another name"
            )
            continue
        visited.add(identity)
        for entry in sorted(list_entries(root / folder), key=lambda e: (e.is_symlink(), e.name)):
            path = folder / entry.name
            status, note = _examine(entry)
            if status and stat.S_ISDIR(status.st_mode):
                (linked if entry.is_symlink() else real).append((name, path))
            elif status and (identity := file_identity(root / path)) not in seen_files[name]:
                seen_files[name].add(identity)
                images[name].append(str(path))
            else:
                note = note or "the same file as another of its class"
                ignored.append(f"{printable(str(path))}: {note}")
    return images


def _examine(entry: os.DirEntry[str]) -> tuple[os.stat_result | None, str]:
    """Status of a folder or image file to use, or none and why it is skipped.

    Only stat is called: opening a FIFO would wait for a writer.
    """
    if is_hidden(entry.name):
        return None, _HIDDEN
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            return None, "a link that leads nowhere"
        raise unreadable(Path(entry.path), error) from error
    if stat.S_ISDIR(status.st_mode):
        return status, ""
    if not stat.S_ISREG(status.st_mode):
        return None, "not a regular file"
    suffix = PurePosixPath(entry.name).suffix
    if suffix.lower() not in IMAGE_EXTENSIONS:
        return None, f"unsupported format {printable(suffix) or '(no extension)'}"
    return status, ""


def list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder sorted by name; a folder that cannot be listed is an error."""
    try:
        with os.scandir(folder) as listing:
            return sorted(listing, key=lambda entry: entry.name)
    except FileNotFoundError as error:
        raise DataError(printable(str(folder)), "does not exist") from error
    except NotADirectoryError as error:
        raise DataError(printable(str(folder)), "is a file, not a folder") from error
    except OSError as error:
        raise unreadable(folder, error) from error


def file_identity(path: Path) -> Identity:
    """What two names of one file or folder have in common."""
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    # Some network file systems give every file the number 0; there the real path must do.
    return (status.st_dev, status.st_ino) if status.st_ino else str(path.resolve())
