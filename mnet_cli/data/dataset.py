"""The labelled images of a run: listed, checked, split, with the classes in one order."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.sources import open_checked
from mnet_cli.data.sources.base import ImageSource, SourceImage
from mnet_cli.data.sources.classes import match_classes
from mnet_cli.data.split import assign
from mnet_cli.data.validate import check_images, same_bytes
from mnet_cli.errors import DataError, WeightsError

LISTED = 20  # bad images named in an error; the rest are counted


@dataclass(frozen=True, eq=False)
class Samples(Sequence[SourceImage]):
    """Labelled images of one split.

    Attributes:
        source: Where they come from.
        indices: For each image its index in the source, (N,).
        labels: For each image the index of its class, (N,).
        sha256: For each image the digest of its bytes, (N, 32).
    """

    source: ImageSource
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    sha256: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> SourceImage:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(index)
        return SourceImage(self.source, int(self.indices[index]))

    def take(self, chosen: NDArray[np.bool_]) -> "Samples":
        """The images that are chosen (N,), in the same order."""
        return replace(
            self,
            indices=self.indices[chosen],
            labels=self.labels[chosen],
            sha256=self.sha256[chosen],
        )


@dataclass(frozen=True)
class DataSet:
    """A data set that training and evaluation can use.

    Attributes:
        root: Its path or URL.
        class_names: In the order of the labels.
        splits: `train` and `val` (perhaps `test`), or `all` if nothing was split.
        skipped: Bad images that were left out, with their faults.
        notes: What a reader should know: files ignored, the same bytes twice.
    """

    root: str
    class_names: tuple[str, ...]
    splits: dict[str, Samples]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def files(self, split: str) -> Sequence[SourceImage]:
        """The images of `split`."""
        return self.splits[split]

    def without_images(self, split: str) -> list[str]:
        """The names of the classes that have no image in `split`."""
        counts = np.bincount(self.splits[split].labels, minlength=len(self.class_names))
        return [name for name, count in zip(self.class_names, counts, strict=True) if not count]

    def manifest(self) -> Iterator[dict[str, str]]:
        """The rows of `split.csv`: path, class, split, sha256."""
        for split, samples in self.splits.items():
            for image, label, sha256 in zip(
                samples, samples.labels.tolist(), samples.sha256, strict=True
            ):
                yield {
                    "path": image.name,
                    "class": self.class_names[label],
                    "split": split,
                    "sha256": _hex(sha256),
                }


def open_dataset(
    root: str,
    *,
    class_names: Sequence[str] | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataSet:
    """List the images of `root`, check every image, and split the data set if asked to.

    Args:
        root: A data set that any installed image source reads, such as a folder with `train/`
            and `val/`, or one folder of classes.
        class_names: The classes of a model, in the order of its outputs; None uses the classes
            of the data set, sorted.
        val_fraction: The share of each class that becomes `val`, for a data set that is not
            split; None leaves it as one split, `all`.
        seed: Of the split.
        skip_bad: Leave bad images out instead of refusing the data set.
        on_progress: Called with (done, total) while images are checked.

    Raises:
        WeightsError: The data set has a class that is not in `class_names`.
        DataError: The data set cannot be used, an image is bad and not to be skipped, a split
            is empty, or `val_fraction` is given for a data set that is already split.
    """
    sources = open_checked(root, least_classes=2 if class_names is None else 1)
    if class_names is not None:
        sources = {s: _match_model(source, class_names) for s, source in sources.items()}
    if val_fraction is not None and "all" not in sources:
        raise DataError(
            f"data.val_fraction: {val_fraction}",
            f"{root} is already split into {', '.join(sources)}",
            next_step="Remove data.val_fraction",
        )
    splits, bad = _check(sources, on_progress)
    first = next(iter(sources.values()))
    if bad and not skip_bad:
        raise _bad_images(first.root, bad)
    if val_fraction is not None:
        splits = _divide(splits["all"], first.class_names, val_fraction, seed)
    data = DataSet(
        root=first.root,
        class_names=first.class_names,
        splits=splits,
        skipped=tuple((image.name, fault) for image, fault in bad),
        notes=tuple(note for source in sources.values() for note in source.ignored)
        + tuple(_same_bytes_notes(splits)),
    )
    for split, samples in splits.items():
        if not len(samples):
            raise DataError(
                f"{first.root}, {split}", "no usable image", next_step="Add or repair images"
            )
    return data


def take_split(data: DataSet, manifest: Path) -> DataSet:
    """Split a data set that is not split (`all`) as the `split.csv` of an earlier run says.

    Images are identified by their bytes; those that the manifest does not list are left out.

    Raises:
        DataError: The manifest is damaged, or none of the images is in it.
    """
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            sides = {row["sha256"]: row["split"] for row in csv.DictReader(file)}
    except (KeyError, ValueError, csv.Error) as error:
        raise DataError(
            str(manifest),
            f"is not the split.csv of a run, with the columns sha256 and split ({error!r})",
            next_step="Give the images with --data DIR",
        ) from error
    everything = data.splits["all"]
    side_of = [sides.get(_hex(sha256)) for sha256 in everything.sha256]
    splits = {
        split: everything.take(np.asarray([side == split for side in side_of]))
        for split in sorted(set(sides.values()))
    }
    if not all(len(samples) for samples in splits.values()):
        raise DataError(
            str(manifest),
            f"lists no image of {data.root}",
            next_step="Give the images that the run was trained on with --data DIR",
        )
    new = side_of.count(None)
    notes = [f"{new} images are not in {manifest} and were left out"] if new else []
    return replace(data, splits=splits, notes=(*data.notes, *notes))


def _check(
    sources: dict[str, ImageSource], on_progress: Callable[[int, int], None] | None
) -> tuple[dict[str, Samples], list[tuple[SourceImage, str]]]:
    """The usable images of each split, and the bad ones with their faults."""
    done, total = 0, sum(map(len, sources.values()))

    def report(before: int, checked: int, _: int) -> None:
        if on_progress:
            on_progress(before + checked, total)

    splits: dict[str, Samples] = {}
    bad: list[tuple[SourceImage, str]] = []
    for split, source in sources.items():
        checked = check_images(source, partial(report, done))
        indices = np.arange(len(source))
        good = ~np.isin(indices, list(checked.faults))
        splits[split] = Samples(source, indices, source.labels, checked.sha256).take(good)
        bad += [(source[index], fault) for index, fault in sorted(checked.faults.items())]
        done += len(source)
    return splits, bad


def _divide(
    samples: Samples, class_names: Sequence[str], fraction: float, seed: int
) -> dict[str, Samples]:
    classes = [class_names[label] for label in samples.labels]
    in_val = np.asarray(assign([*map(_hex, samples.sha256)], classes, fraction, seed))
    return {"train": samples.take(~in_val), "val": samples.take(in_val)}


def _hex(sha256: NDArray[np.uint8]) -> str:
    return sha256.tobytes().hex()


def _match_model(source: ImageSource, class_names: Sequence[str]) -> ImageSource:
    """Use the labels of a model; a class that the model does not have is an error of weights."""
    try:
        return match_classes(source, class_names)
    except DataError as error:
        raise WeightsError(error.where, error.found, next_step=error.next_step) from error


def _same_bytes_notes(splits: dict[str, Samples]) -> Iterator[str]:
    """Warn of images with the same bytes in two classes or in two splits."""
    labels = np.concatenate([samples.labels for samples in splits.values()])
    parts = list(splits.values())
    part = np.repeat(np.arange(len(parts)), [len(samples) for samples in parts])
    first = np.cumsum([0, *(len(samples) for samples in parts)])  # index of each part's first
    for group in same_bytes(np.concatenate([samples.sha256 for samples in parts])):
        what = "classes" if len(set(labels[group])) > 1 else "splits"
        if what == "classes" or len(set(part[group])) > 1:
            names = [parts[part[i]][int(i - first[part[i]])].name for i in group]
            yield f"the same image in two {what}: {', '.join(names)}"


def _bad_images(root: str, bad: Sequence[tuple[SourceImage, str]]) -> DataError:
    details = [f"{image.where}: {fault}" for image, fault in bad[:LISTED]]
    if len(bad) > LISTED:
        details.append(f"… and {len(bad) - LISTED} more")
    first = PurePosixPath(bad[0][0].name).name
    return DataError(
        root,
        f"{len(bad)} bad image{'s' * (len(bad) > 1)}, {first} first",
        next_step="Fix or remove them; mnet train leaves them out with --set data.skip_bad=true",
        details=details,
    )
