"""Which images of which classes a folder holds.

Our own walk instead of torchvision's ImageFolder, which counts images again through links
that lead back, and drops folders that it may not read.
"""

import errno
import os
import stat
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.paths import Names
from mnet_cli.errors import DataError
from mnet_cli.system.text import listing, printable, readable

IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
)  # fmt: skip
SPLITS = ("train", "val", "test")

_SPLIT_LIKE = {"train", "training", "val", "valid", "validation"}
_LEADS_NOWHERE = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}
_LAYOUT = (
    "class folders with images were expected, as in ROOT/daisy/1.jpg and ROOT/roses/2.jpg, "
    "or ROOT/train/daisy/1.jpg and ROOT/val/daisy/2.jpg"
)
_HIDDEN = "hidden"
_LISTED = 20  # at most so many notes in one error

Identity = tuple[int, int] | str


@dataclass(frozen=True)
class ImageSet:
    """The images of one folder of classes.

    Attributes:
        root: The folder that holds the class folders.
        class_names: Class names, sorted unless `match_classes` gave another order.
        paths: Paths below `root` with POSIX separators, class by class, sorted within a class.
        labels: For each path the index of its class in `class_names`, (N,).
        ignored: What was skipped, one short printable note each.
    """

    root: Path
    class_names: tuple[str, ...]
    paths: Names
    labels: NDArray[np.int64]
    ignored: tuple[str, ...] = ()


def scan_classes(root: Path, least_classes: int = 2) -> ImageSet:
    """Find the images of a folder that holds one folder a class.

    Images may lie in subfolders of a class. Links are followed; a folder is visited once
    (by device and inode), and so is a file within a class.

    Args:
        root: A folder of class folders.
        least_classes: How many there must be.

    Raises:
        DataError: `root` is missing, not a folder, empty or unreadable; it holds too few
            classes, a class without an image, or class names that differ by case or
            Unicode form alone.
    """
    return _scan(root, least_classes)


def scan_splits(root: Path, least_classes: int = 2) -> dict[str, ImageSet]:
    """Find the images of a data set that may already be split.

    Args:
        root: A folder with `train/` and `val/` (and perhaps `test/`), or a folder of classes.
        least_classes: How many classes there must be.

    Returns:
        `{"train": …, "val": …}`, with `"test"` if there is one, all with the classes of
        `train`; or `{"all": …}` for a folder of classes.

    Raises:
        DataError: As `scan_classes` does; one of `train` and `val` is missing; or a class of
            `val` or `test` is not in `train`.
    """
    splits = _splits_of(root)
    if not splits:
        return {"all": scan_classes(root, least_classes)}
    train = scan_classes(root / "train", least_classes)
    return {"train": train} | {
        name: match_classes(_scan(root / name, least_classes=1), train.class_names)
        for name in splits[1:]
    }


def scan_unchecked(root: Path) -> dict[str, ImageSet]:
    """Find the images as `scan_splits` does, whatever is wrong with the classes.

    Returns:
        As `scan_splits`, but each split has its own classes; a class may have no image, and a
        split no class.

    Raises:
        DataError: `root` is missing, not a folder or unreadable; one of `train` and `val` is
            missing; or there is no class folder at all.
    """
    splits = _splits_of(root)
    sets = {name: _find(root / name) for name in splits} or {"all": _find(root)}
    if not any(images.class_names for images in sets.values()):
        raise _no_classes(root, [note for images in sets.values() for note in images.ignored])
    return sets


def check_class_names(root: Path, names: Sequence[str]) -> None:
    """Refuse class names of `root` that cannot be written down or told apart.

    Raises:
        DataError: A name is not UTF-8, or two differ by case or Unicode form alone.
    """
    _refuse_undecodable_names(root, names)
    _refuse_alike_names(root, names)


def _splits_of(root: Path) -> list[str]:
    """The splits that `root` is divided into; none if it is a folder of classes."""
    names, _ = _subfolders(root)
    if {"train", "val"} <= set(names):
        return [name for name in SPLITS if name in names]
    split_like = [name for name in names if name.casefold() in _SPLIT_LIKE]
    if split_like:
        raise DataError(
            printable(str(root)),
            f"has {listing(split_like)} but not both train and val",
            "a split data set has folders named exactly train and val",
            "Rename or add the missing one, or give a folder of classes and a val_fraction",
        )
    return []


def match_classes(image_set: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """Give the labels of `image_set` the meaning that `class_names` gives them.

    Args:
        image_set: Any set of images; it may lack some of the classes.
        class_names: All class names, in the order of the model's outputs.

    Raises:
        DataError: A class of `image_set` is not in `class_names`.
    """
    index = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in image_set.class_names if name not in index]
    if unknown:
        raise DataError(
            printable(str(image_set.root)),
            f"unknown class {listing(unknown)}",
            f"the classes are {listing(class_names)}",
            "Rename or remove the folder, or train with that class",
        )
    labels = np.asarray([index[name] for name in image_set.class_names], np.int64)
    return replace(image_set, class_names=tuple(class_names), labels=labels[image_set.labels])


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not meant as data: `.name`, `._name`, `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def _scan(root: Path, least_classes: int) -> ImageSet:
    """`scan_classes` with a lower bound on the number of classes."""
    folders, ignored = _subfolders(root)
    if not folders:
        raise _no_classes(root, ignored)
    if len(folders) < least_classes:
        raise DataError(
            printable(str(root)),
            f"only one class, {listing(folders)}",
            "a classifier needs at least two",
            "Add a folder of images for each further class",
        )
    check_class_names(root, folders)
    images = _find(root)
    _refuse_empty_classes(images)
    return images


def _find(root: Path) -> ImageSet:
    """The images of a folder of classes; nothing about the classes is refused."""
    folders, ignored = _subfolders(root)
    images = _walk(root, folders, ignored)
    class_names = tuple(sorted(folders))
    counts = [len(images[name]) for name in class_names]
    return ImageSet(
        root=root,
        class_names=class_names,
        paths=Names(path for name in class_names for path in sorted(images[name])),
        labels=np.repeat(np.arange(len(class_names)), counts),
        ignored=tuple(sorted(ignored)),
    )


def _no_classes(root: Path, ignored: Sequence[str]) -> DataError:
    found = "no class folders" if ignored else "the folder is empty"
    return DataError(printable(str(root)), found, _LAYOUT, details=list(ignored[:_LISTED]))


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
        raise _unreadable(Path(entry.path), error) from error
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
        raise DataError(printable(str(folder)), "does not exist", _LAYOUT) from error
    except NotADirectoryError as error:
        raise DataError(printable(str(folder)), "is a file, not a folder", _LAYOUT) from error
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        printable(str(path)),
        f"cannot be read ({error.strerror or error})",
        "every folder of a data set must be readable",
        "Change its permissions or move it out of the data set",
    )


def _refuse_undecodable_names(root: Path, names: Iterable[str]) -> None:
    """Class names go into JSON and models, which hold text, not bytes."""
    for name in names:
        if readable(name) != name:
            raise DataError(
                printable(str(root)),
                f"the class name '{readable(name)}' is not UTF-8",
                "text was expected",
                "Rename the folder",
            )


def _refuse_alike_names(root: Path, names: Iterable[str]) -> None:
    """Refuse classes that some file systems and most people would take for one."""
    first: dict[str, str] = {}
    for name in sorted(names):
        form = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if form in first:
            raise DataError(
                printable(str(root)),
                f"classes {first[form]!a} and {name!a} differ only by case or Unicode form",
                "class names must differ clearly",
                "Merge the two folders or rename one",
            )
        first[form] = name


def _refuse_empty_classes(images: ImageSet) -> None:
    """Refuse classes without an image, and list what they hold instead."""
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    empty = [images.class_names[label] for label in np.flatnonzero(counts == 0)]
    if not empty:
        return
    starts = tuple(f"{printable(name)}{mark}" for name in empty for mark in "/:")
    notes = [note for note in images.ignored if note.startswith(starts)]
    reasons = Counter(note.rpartition(": ")[2] for note in notes)
    held = ", ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
    raise DataError(
        printable(str(images.root)),
        f"class {listing(empty)} has no usable image (ignored: {held or 'nothing'})",
        f"every class needs images of {' '.join(IMAGE_EXTENSIONS)}",
        "Add or convert images, or remove the folder",
        details=notes[:_LISTED],
    )


def file_identity(path: Path) -> Identity:
    """What two names of one file or folder have in common."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    # Some network file systems give every file the number 0; there the real path must do.
    return (status.st_dev, status.st_ino) if status.st_ino else str(path.resolve())
