"""The labelled images of a run: scanned, checked, split, with the classes in one order."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress, islice
from pathlib import Path

from mnet_cli.data.check import CheckedImage, check_images, same_bytes
from mnet_cli.data.scan import ImageSet, match_classes, scan_splits
from mnet_cli.data.split import assign
from mnet_cli.errors import DataError, WeightsError

LISTED = 20  # bad images named in an error; the rest are counted


@dataclass(frozen=True)
class Samples:
    """Labelled images of one split.

    Attributes:
        paths: Paths below the data set's root, POSIX separators.
        labels: For each path the index of its class.
        sha256: For each path the digest of its bytes.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class DataSet:
    """A data set that training and evaluation can use.

    Attributes:
        root: The folder it was read from.
        class_names: In the order of the labels.
        splits: `train` and `val` (perhaps `test`), or `all` where nothing was split.
        skipped: Bad images that were left out, with their faults.
        notes: What a reader should know: files ignored, the same bytes twice.
    """

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, Samples]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def files(self, split: str) -> list[Path]:
        """The image files of `split`."""
        return [self.root / path for path in self.splits[split].paths]

    def manifest(self) -> Iterator[dict[str, str]]:
        """The rows of `split.csv`: path, class, split, sha256."""
        for split, samples in self.splits.items():
            for path, label, sha256 in zip(
                samples.paths, samples.labels, samples.sha256, strict=True
            ):
                name = self.class_names[label]
                yield {"path": path, "class": name, "split": split, "sha256": sha256}


def open_dataset(
    root: Path,
    *,
    class_names: Sequence[str] | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataSet:
    """Scan `root`, check every image and split it where asked to.

    Args:
        root: A folder with `train/` and `val/`, or one folder of classes.
        class_names: The classes and their order, where a model has set them; None takes
            the folders' names, sorted.
        val_fraction: The share of each class that becomes `val`, for one folder of classes;
            None leaves it whole, as the split `all`.
        seed: Of the split.
        skip_bad: Leave bad images out instead of refusing the data set.
        on_progress: Called with (done, total) while images are checked.

    Raises:
        WeightsError: The folder has a class that `class_names` lacks.
        DataError: The folder is no data set, an image is bad and not to be skipped, a split
            is empty, or `val_fraction` is given for a folder that is split already.
    """
    scanned = scan_splits(root, least_classes=2 if class_names is None else 1)
    if class_names is not None:
        scanned = {s: _relabelled(images, class_names) for s, images in scanned.items()}
    if val_fraction is not None and "all" not in scanned:
        raise DataError(
            f"data.val_fraction: {val_fraction}",
            f"{root} is split already into {', '.join(scanned)}",
            "one folder of classes was expected",
            "Leave data.val_fraction out",
        )
    files = [images.root / path for images in scanned.values() for path in images.paths]
    outcomes = check_images(files, on_progress)
    bad = [(f, c.fault) for f, c in zip(files, outcomes, strict=True) if c.fault]
    if bad and not skip_bad:
        raise _bad_images(root, bad)
    rest = iter(outcomes)
    splits = {
        split: _usable(images, list(islice(rest, len(images.paths))), root)
        for split, images in scanned.items()
    }
    names = next(iter(scanned.values())).class_names
    if val_fraction is not None:
        splits = _divide(splits["all"], names, val_fraction, seed)
    data = DataSet(
        root=root,
        class_names=names,
        splits=splits,
        skipped=tuple((path.relative_to(root).as_posix(), fault) for path, fault in bad),
        notes=tuple(note for images in scanned.values() for note in images.ignored)
        + tuple(_same_bytes_notes(splits)),
    )
    for split, samples in splits.items():
        if not samples.paths:
            raise DataError(f"{root}, {split}", "no usable image", "at least one was expected")
    return data


def take_split(data: DataSet, manifest: Path) -> DataSet:
    """Divide a data set that is whole (`all`) as the `split.csv` of an earlier run says.

    Images are known by their bytes; those that the manifest does not list are left out.

    Raises:
        DataError: The manifest is damaged, or none of the images is in it.
    """
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            sides = {row["sha256"]: row["split"] for row in csv.DictReader(file)}
    except (KeyError, ValueError, csv.Error) as error:
        raise DataError(
            str(manifest),
            f"no manifest of a run ({error!r})",
            "the columns sha256 and split were expected",
            "Name the images with --data DIR",
        ) from error
    whole = data.splits["all"]
    splits = {
        split: _select(whole, [sides.get(sha256) == split for sha256 in whole.sha256])
        for split in sorted(set(sides.values()))
    }
    if not all(samples.paths for samples in splits.values()):
        raise DataError(
            str(manifest), f"lists no image of {data.root}", "the run's own images were expected"
        )
    new = sum(sha256 not in sides for sha256 in whole.sha256)
    notes = [f"{new} images are not in {manifest} and were left out"] if new else []
    return replace(data, splits=splits, notes=(*data.notes, *notes))


def _usable(images: ImageSet, checked: Sequence[CheckedImage], root: Path) -> Samples:
    """Keep the images without a fault, with paths below `root`."""
    good = [not image.fault for image in checked]
    below = images.root.relative_to(root)
    return Samples(
        tuple((below / path).as_posix() for path in compress(images.paths, good)),
        tuple(compress(images.labels, good)),
        tuple(image.sha256 for image in compress(checked, good)),
    )


def _divide(
    samples: Samples, class_names: Sequence[str], fraction: float, seed: int
) -> dict[str, Samples]:
    classes = [class_names[label] for label in samples.labels]
    held_out = assign(samples.sha256, classes, fraction, seed)
    return {
        "train": _select(samples, [not held for held in held_out]),
        "val": _select(samples, held_out),
    }


def _select(samples: Samples, chosen: Sequence[bool]) -> Samples:
    return Samples(
        tuple(compress(samples.paths, chosen)),
        tuple(compress(samples.labels, chosen)),
        tuple(compress(samples.sha256, chosen)),
    )


def _relabelled(images: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """Give labels the meaning that a model gives them; a class it lacks is the model's error."""
    try:
        return match_classes(images, class_names)
    except DataError as error:
        raise WeightsError(error.where, error.found, error.expected, error.next_step) from error


def _same_bytes_notes(splits: dict[str, Samples]) -> Iterator[str]:
    """Warn of images whose bytes stand in two classes or in two splits."""
    rows = [
        (split, label, path, sha256)
        for split, samples in splits.items()
        for path, label, sha256 in zip(samples.paths, samples.labels, samples.sha256, strict=True)
    ]
    for group in same_bytes([row[3] for row in rows]):
        places = {rows[index][:2] for index in group}
        if len(places) > 1:
            names = ", ".join(rows[index][2] for index in group)
            what = "classes" if len({label for _, label in places}) > 1 else "splits"
            yield f"the same image in two {what}: {names}"


def _bad_images(root: Path, bad: Sequence[tuple[Path, str]]) -> DataError:
    details = [f"{path}: {fault}" for path, fault in bad[:LISTED]]
    if len(bad) > LISTED:
        details.append(f"… and {len(bad) - LISTED} more")
    return DataError(
        str(root),
        f"{len(bad)} bad image{'s' * (len(bad) > 1)}, {bad[0][0].name} first",
        "images that decode were expected",
        "Mend or remove them, or leave them out with --set data.skip_bad=true",
        details,
    )
