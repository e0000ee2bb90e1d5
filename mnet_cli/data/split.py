"""Splitting images into train and val, so that the same bytes are never in both."""

import csv
import hashlib
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mnet_cli.data.image_files import unreadable
from mnet_cli.data.sources.base import ImageSource
from mnet_cli.data.sources.classes import check_classes
from mnet_cli.data.sources.folder import FolderSource
from mnet_cli.errors import DataError
from mnet_cli.system.atomic import atomic_folder, atomic_write
from mnet_cli.system.hashing import file_sha256
from mnet_cli.system.text import printable, readable

MANIFEST = "split.csv"
COLUMNS = ("path", "class", "split", "sha256")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SplitCounts:
    """How many images of each class are in each split.

    Attributes:
        train: Images by class name.
        val: Images by class name.
        already_split: Whether the same split already existed, so that nothing was done.
    """

    train: dict[str, int]
    val: dict[str, int]
    already_split: bool


def assign(
    hashes: Sequence[str], labels: Sequence[int | str], fraction: float, seed: int
) -> list[bool]:
    """Choose which images are for validation, class by class, by their content.

    Of the n different contents of a class, round(n·fraction) go to val, at least one to each
    split. Contents are ranked by a hash of seed and content, so the order of files does not
    matter, and a content has the same rank when others are added or removed. A content that
    is in two classes has no single right answer, so it is never in val.

    Args:
        hashes: A digest of each image's bytes.
        labels: The class of each image, as a number or a name.
        fraction: The share of each class for val, above 0 and below 1.
        seed: Another seed gives another choice.

    Returns:
        For each image whether it is in val.

    Raises:
        DataError: A class has fewer than two different contents, or too few that are in no
            other class.
    """
    classes_of: dict[str, set[int | str]] = defaultdict(set)
    for content, label in zip(hashes, labels, strict=True):
        classes_of[content].add(label)
    contents_of: dict[int | str, list[str]] = defaultdict(list)
    for content, classes in classes_of.items():
        for label in classes:
            contents_of[label].append(content)

    val: set[str] = set()
    for label, contents in contents_of.items():
        own = [content for content in contents if len(classes_of[content]) == 1]
        count = max(1, min(round(len(contents) * fraction), len(contents) - 1))
        if len(contents) < 2 or len(own) < count:
            raise DataError(
                f"class {printable(str(label))}",
                f"{len(contents)} different images, {len(own)} of them in no other class; a split "
                f"needs at least two, and {count} for val that are in no other class",
                next_step="Add images, or remove those that are in several classes",
            )
        own.sort(key=lambda content: hashlib.sha256(f"{seed} {content}".encode()).digest())
        val.update(own[:count])
    return [content in val for content in hashes]


def split_folder(
    source: Path,
    destination: Path,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    copy: bool = False,
    on_progress: Progress | None = None,
) -> SplitCounts:
    """Make a data set with train/ and val/ from one folder of classes.

    Files are hard links to those of `source` if the file system allows it, else copies.
    The name of an image in a subfolder of its class begins with the name of the subfolder. The
    destination is published complete or not at all, with the manifest split.csv (columns path,
    class, split, sha256; paths below the destination). A second call changes nothing.

    Args:
        source: A folder of classes; it is only read.
        destination: The data set's folder: new, empty, or of the same split.
        val_fraction: The share of each class for val, above 0 and below 1.
        seed: Another seed gives another split.
        copy: Always copy.
        on_progress: Called with steps done and steps in all, two steps a file.

    Raises:
        DataError: `source` cannot be used or split; `destination` lies in it, or holds
            anything else than this split.
        MachineError: The disk refuses.
    """
    images = _scan_apart(source, destination)
    report = _steps(on_progress, 2 * len(images.names))
    hashes = [_hash_of(source / name, report) for name in images.names]
    class_of = [images.class_names[label] for label in images.labels]
    is_val = assign(hashes, class_of, val_fraction, seed)
    splits = ["val" if val else "train" for val in is_val]
    placed = [f"{split}/{name}" for split, name in zip(splits, _flat_names(images), strict=True)]
    columns = (map(readable, placed), map(readable, class_of), splits, hashes)
    rows = sorted(zip(*columns, strict=True))

    already_split = _already_exists(destination, placed, rows)
    if not already_split:
        with atomic_folder(destination) as folder:
            for name, target in zip(images.names, placed, strict=True):
                _place((source / name).resolve(), folder / target, copy)
                next(report)
            with atomic_write(folder / MANIFEST, "w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *rows])
    train = Counter(name for name, val in zip(class_of, is_val, strict=True) if not val)
    return SplitCounts(dict(train), dict(Counter(class_of) - train), already_split)


def _scan_apart(source: Path, destination: Path) -> ImageSource:
    """The images of `source`, which is not split yet and which does not contain `destination`."""
    if destination.resolve().is_relative_to(source.resolve()):
        raise DataError(
            printable(str(destination)),
            "is inside the source folder",
            next_step="Choose another destination",
        )
    splits = check_classes(dict(FolderSource.open(str(source))))
    if "all" not in splits:
        raise DataError(
            printable(str(source)),
            "is already split into train and val",
            next_step="Use it as it is, or give one folder of classes",
        )
    return splits["all"]


def _steps(on_progress: Progress | None, total: int) -> Iterator[None]:
    """Report one more step at each `next`."""
    for done in range(1, total + 1):
        if on_progress:
            on_progress(done, total)
        yield


def _hash_of(path: Path, report: Iterator[None]) -> str:
    """The SHA-256 of a file's bytes in hex."""
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise unreadable(path, error) from error
    next(report)
    return digest


def _flat_names(images: ImageSource) -> list[str]:
    """For each image <class>/<name>, unique, with subfolders joined to the name by '__'.

    Images directly in their class come first, so they keep their names; names that differ
    by case alone count as the same, as they are on some file systems.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in sorted(images.names, key=lambda path: (path.count("/"), path)):
        class_name, *folders, name = PurePosixPath(path).parts
        flat = PurePosixPath(class_name, "__".join([*folders, name]))
        unique, number = flat, 2
        while str(unique).casefold() in taken:
            unique, number = flat.with_stem(f"{flat.stem}-{number}"), number + 1
        taken.add(str(unique).casefold())
        names[path] = str(unique)
    return [names[path] for path in images.names]


def _already_exists(
    destination: Path, placed: Sequence[str], rows: Sequence[tuple[str, str, str, str]]
) -> bool:
    """Whether `destination` contains this split; False if it is new or empty, else an error."""
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return False
    where, next_step = printable(str(destination)), "Choose another destination"
    manifest = destination / MANIFEST
    if not manifest.is_file():
        raise DataError(where, f"is not empty and has no {MANIFEST}", next_step=next_step)
    with manifest.open(encoding="utf-8", errors="replace", newline="") as file:
        found = [tuple(row) for row in csv.reader(file)]
    if found != [COLUMNS, *rows]:
        raise DataError(
            where,
            f"contains another split: its {MANIFEST} differs from the {len(rows)} images that this "
            "source, val_fraction and seed give",
            next_step=next_step,
        )
    missing = [path for path in placed if not (destination / path).is_file()]
    if missing:
        raise DataError(
            where,
            f"{len(missing)} images of its {MANIFEST} are missing, such as {printable(missing[0])}",
            next_step=next_step,
        )
    return True


def _place(source: Path, target: Path, copy: bool) -> None:
    """Link or copy one file; its folder is made if need be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or one without hard links
    with source.open("rb") as original, atomic_write(target) as file:
        shutil.copyfileobj(original, file)
