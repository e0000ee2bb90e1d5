"""Dividing images into train and val, so that the same bytes are never on both sides."""

import csv
import hashlib
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mnet_cli.data.sources.folder import ImageSet, scan_splits
from mnet_cli.errors import DataError
from mnet_cli.system.atomic import atomic_folder, atomic_write
from mnet_cli.system.hashing import file_sha256
from mnet_cli.system.text import printable, readable

MANIFEST = "split.csv"
COLUMNS = ("path", "class", "split", "sha256")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SplitCounts:
    """How many images each class has on each side.

    Attributes:
        train: Images by class name.
        val: Images by class name.
        already_split: Whether this very split was there before, so that nothing was done.
    """

    train: dict[str, int]
    val: dict[str, int]
    already_split: bool


def assign(
    hashes: Sequence[str], labels: Sequence[int | str], fraction: float, seed: int
) -> list[bool]:
    """Choose which images are for validation, class by class, by their content.

    Each class gives round(n·fraction) of its n different contents to val, and keeps at least
    one on each side. Contents are ranked by a hash of seed and content, so the order of files
    has no influence, and a content keeps its rank when others come or go. A content that
    stands in two classes contradicts itself as an answer, so it stays in train.

    Args:
        hashes: A digest of each image's bytes.
        labels: The class of each image, as a number or a name.
        fraction: The share of each class for val, above 0 and below 1.
        seed: Another seed gives another choice.

    Returns:
        For each image whether it is in val.

    Raises:
        DataError: A class has fewer than two different contents, or too few that stand in no
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
        wanted = max(1, min(round(len(contents) * fraction), len(contents) - 1))
        if len(contents) < 2 or len(own) < wanted:
            raise DataError(
                f"class {printable(str(label))}",
                f"{len(contents)} different images, {len(own)} of them in this class alone",
                f"a split needs two, and {wanted} for val that are in no other class",
                "Add images, or remove those that stand in several classes",
            )
        own.sort(key=lambda content: hashlib.sha256(f"{seed} {content}".encode()).digest())
        val.update(own[:wanted])
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
    """Make a data set with train/ and val/ out of one folder of classes.

    Files are hard links to those of `source` where the file system allows it, else copies.
    An image in a subfolder of its class gets the subfolder's name in front of its own. The
    destination appears complete or not at all, with the manifest split.csv (columns path,
    class, split, sha256; paths below the destination). Doing it again changes nothing.

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
    report = _steps(on_progress, 2 * len(images.paths))
    hashes = [_hash_of(source / path, report) for path in images.paths]
    class_of = [images.class_names[label] for label in images.labels]
    is_val = assign(hashes, class_of, val_fraction, seed)
    sides = ["val" if val else "train" for val in is_val]
    placed = [f"{side}/{name}" for side, name in zip(sides, _flat_names(images), strict=True)]
    columns = (map(readable, placed), map(readable, class_of), sides, hashes)
    rows = sorted(zip(*columns, strict=True))

    already_split = _is_there(destination, placed, rows)
    if not already_split:
        with atomic_folder(destination) as folder:
            for path, target in zip(images.paths, placed, strict=True):
                _place((source / path).resolve(), folder / target, copy)
                next(report)
            with atomic_write(folder / MANIFEST, "w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *rows])
    train = Counter(name for name, val in zip(class_of, is_val, strict=True) if not val)
    return SplitCounts(dict(train), dict(Counter(class_of) - train), already_split)


def _scan_apart(source: Path, destination: Path) -> ImageSet:
    """The images of `source`, which is not split yet and in which `destination` does not lie."""
    if destination.resolve().is_relative_to(source.resolve()):
        raise DataError(
            printable(str(destination)),
            "lies in the source folder",
            "the split goes to a folder of its own",
            "Choose another destination",
        )
    splits = scan_splits(source)
    if "all" not in splits:
        raise DataError(
            printable(str(source)),
            "is split into train and val already",
            "one folder of classes was expected",
            "Use it as it is",
        )
    return splits["all"]


def _steps(on_progress: Progress | None, total: int) -> Iterator[None]:
    """Report one more step at each turn."""
    for done in range(1, total + 1):
        if on_progress:
            on_progress(done, total)
        yield


def _hash_of(path: Path, report: Iterator[None]) -> str:
    """The SHA-256 of a file's bytes in hex."""
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise DataError(
            printable(str(path)),
            f"cannot be read ({error.strerror or error})",
            "every image of a data set must be readable",
            "Change its permissions or move it out of the data set",
        ) from error
    next(report)
    return digest


def _flat_names(images: ImageSet) -> list[str]:
    """For each image <class>/<name>, unique, with subfolders joined to the name by '__'.

    Images directly in their class come first, so they keep their names; names that differ
    by case alone count as the same, as they are on some file systems.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in sorted(images.paths, key=lambda path: (path.count("/"), path)):
        class_name, *folders, name = PurePosixPath(path).parts
        flat = PurePosixPath(class_name, "__".join([*folders, name]))
        unique, number = flat, 2
        while str(unique).casefold() in taken:
            unique, number = flat.with_stem(f"{flat.stem}-{number}"), number + 1
        taken.add(str(unique).casefold())
        names[path] = str(unique)
    return [names[path] for path in images.paths]


def _is_there(
    destination: Path, placed: Sequence[str], rows: Sequence[tuple[str, str, str, str]]
) -> bool:
    """Whether `destination` holds this split, as opposed to nothing; else an error."""
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return False
    where, next_step = printable(str(destination)), "Choose another destination"
    manifest = destination / MANIFEST
    if not manifest.is_file():
        raise DataError(where, "is in use by something else", f"no {MANIFEST} in it", next_step)
    with manifest.open(encoding="utf-8", errors="replace", newline="") as file:
        found = [tuple(row) for row in csv.reader(file)]
    if found != [COLUMNS, *rows]:
        raise DataError(
            where,
            "holds another split",
            f"this source, val_fraction and seed give {len(rows)} images in another division "
            f"than its {MANIFEST}",
            next_step,
        )
    missing = [path for path in placed if not (destination / path).is_file()]
    if missing:
        raise DataError(
            where,
            f"{len(missing)} images of its {MANIFEST} are gone, such as {printable(missing[0])}",
            "a split that is complete",
            next_step,
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
