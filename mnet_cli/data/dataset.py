"""The labelled images of a run: scanned, checked, split, with the classes in one order."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.paths import Files, Names
from mnet_cli.data.sources.folder import ImageSet, match_classes, scan_splits
from mnet_cli.data.split import assign
from mnet_cli.data.validate import check_images, same_bytes
from mnet_cli.errors import DataError, WeightsError

LISTED = 20  # bad images named in an error; the rest are counted


@dataclass(frozen=True)
class Samples:
    """Labelled images of one split.

    Attributes:
        paths: Paths below the data set's root, POSIX separators.
        labels: For each path the index of its class, (N,).
        sha256: For each path the digest of its bytes, (N, 32).
    """

    paths: Names
    labels: NDArray[np.int64]
    sha256: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, chosen: NDArray[np.bool_]) -> "Samples":
        """Those that are chosen (N,), in the same order."""
        return Samples(self.paths.take(chosen), self.labels[chosen], self.sha256[chosen])


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

    def files(self, split: str) -> Files:
        """The image files of `split`."""
        return Files(self.root, self.splits[split].paths)

    def without_images(self, split: str) -> list[str]:
        """The names of the classes that have no image in `split`."""
        counts = np.bincount(self.splits[split].labels, minlength=len(self.class_names))
        return [name for name, count in zip(self.class_names, counts, strict=True) if not count]

    def manifest(self) -> Iterator[dict[str, str]]:
        """The rows of `split.csv`: path, class, split, sha256."""
        for split, samples in self.splits.items():
            for path, label, sha256 in zip(
                samples.paths, samples.labels, samples.sha256, strict=True
            ):
                name = self.class_names[label]
                yield {"path": path, "class": name, "split": split, "sha256": _hex(sha256)}


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
    splits, bad = _check(root, scanned, on_progress)
    if bad and not skip_bad:
        raise _bad_images(root, bad)
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
        if not len(samples):
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
    side_of = [sides.get(_hex(sha256)) for sha256 in whole.sha256]
    splits = {
        split: whole.take(np.asarray([side == split for side in side_of]))
        for split in sorted(set(sides.values()))
    }
    if not all(len(samples) for samples in splits.values()):
        raise DataError(
            str(manifest), f"lists no image of {data.root}", "the run's own images were expected"
        )
    new = side_of.count(None)
    notes = [f"{new} images are not in {manifest} and were left out"] if new else []
    return replace(data, splits=splits, notes=(*data.notes, *notes))


def _check(
    root: Path, scanned: dict[str, ImageSet], on_progress: Callable[[int, int], None] | None
) -> tuple[dict[str, Samples], list[tuple[Path, str]]]:
    """The usable images of each split, and the bad ones with their faults."""
    sets = list(scanned.values())
    paths = Names(path for images in sets for path in _below(root, images))
    checked = check_images(Files(root, paths), on_progress)
    everything = Samples(paths, np.concatenate([s.labels for s in sets]), checked.sha256)
    good = ~np.isin(np.arange(len(paths)), list(checked.faults))
    part = np.repeat(np.arange(len(sets)), [len(images.labels) for images in sets])
    splits = {
        split: everything.take(good & (part == number)) for number, split in enumerate(scanned)
    }
    return splits, [(root / paths[i], fault) for i, fault in sorted(checked.faults.items())]


def _below(root: Path, images: ImageSet) -> Iterator[str]:
    """The paths of `images` as they are below `root`."""
    folder = images.root.relative_to(root)
    return ((folder / path).as_posix() for path in images.paths)


def _divide(
    samples: Samples, class_names: Sequence[str], fraction: float, seed: int
) -> dict[str, Samples]:
    classes = [class_names[label] for label in samples.labels]
    held_out = np.asarray(assign([*map(_hex, samples.sha256)], classes, fraction, seed))
    return {"train": samples.take(~held_out), "val": samples.take(held_out)}


def _hex(sha256: NDArray[np.uint8]) -> str:
    return sha256.tobytes().hex()


def _relabelled(images: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """Give labels the meaning that a model gives them; a class it lacks is the model's error."""
    try:
        return match_classes(images, class_names)
    except DataError as error:
        raise WeightsError(error.where, error.found, error.expected, error.next_step) from error


def _same_bytes_notes(splits: dict[str, Samples]) -> Iterator[str]:
    """Warn of images whose bytes stand in two classes or in two splits."""
    labels = np.concatenate([samples.labels for samples in splits.values()])
    parts = list(splits.values())
    part = np.repeat(np.arange(len(parts)), [len(samples) for samples in parts])
    first = np.cumsum([0, *(len(samples) for samples in parts)])  # index of each part's first
    for group in same_bytes(np.concatenate([samples.sha256 for samples in parts])):
        what = "classes" if len(set(labels[group])) > 1 else "splits"
        if what == "classes" or len(set(part[group])) > 1:
            names = [parts[part[i]].paths[i - first[part[i]]] for i in group]
            yield f"the same image in two {what}: {', '.join(names)}"


def _bad_images(root: Path, bad: Sequence[tuple[Path, str]]) -> DataError:
    details = [f"{path}: {fault}" for path, fault in bad[:LISTED]]
    if len(bad) > LISTED:
        details.append(f"… and {len(bad) - LISTED} more")
    return DataError(
        str(root),
        f"{len(bad)} bad image{'s' * (len(bad) > 1)}, {bad[0][0].name} first",
        "images that decode were expected",
        "Fix or remove them; mnet train leaves them out with --set data.skip_bad=true",
        details,
    )
