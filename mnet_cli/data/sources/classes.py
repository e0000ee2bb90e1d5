"""What the classes of a data set must be, whatever source they come from."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from mnet_cli.data.sources.base import ImageSource
from mnet_cli.errors import DataError
from mnet_cli.system.text import listing, printable, readable

LISTED = 20  # notes in one error at most


def check_classes(splits: dict[str, ImageSource], least_classes: int = 2) -> dict[str, ImageSource]:
    """Refuse classes that no classifier can learn, and give all splits the same classes.

    Args:
        splits: As `ImageSource.open` gave them; the first is `train` or `all`.
        least_classes: How many classes the first split must have.

    Returns:
        The splits, all with the classes of the first.

    Raises:
        DataError: A split has too few classes, a class without an image, or class names that
            differ by case or Unicode form alone; or a class is not in the first split.
    """
    (first, training), *others = splits.items()
    _check_split(training, least_classes)
    checked = {first: training}
    for name, source in others:
        _check_split(source, least_classes=1)
        checked[name] = match_classes(source, training.class_names)
    return checked


def check_class_names(place: str, names: Sequence[str]) -> None:
    """Refuse class names that cannot be stored as text or told apart.

    Args:
        place: What has the classes, for errors.
        names: The class names.

    Raises:
        DataError: A name is not UTF-8, or two differ by case or Unicode form alone.
    """
    _refuse_undecodable_names(place, names)
    _refuse_similar_names(place, names)


def match_classes(source: ImageSource, class_names: Sequence[str]) -> ImageSource:
    """Give the labels of a source the meaning that `class_names` gives them.

    Args:
        source: Any source; it need not have all of the classes.
        class_names: All class names, in the order of the model's outputs.

    Raises:
        DataError: A class of the source is not in `class_names`.
    """
    index = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in source.class_names if name not in index]
    if unknown:
        raise DataError(
            printable(source.place),
            f"unknown class {listing(unknown)}, the classes are {listing(class_names)}",
            next_step="Rename or remove that class, or train with it",
        )
    labels = np.asarray([index[name] for name in source.class_names], np.int64)
    return replace(source, class_names=tuple(class_names), labels=labels[source.labels])


def _check_split(source: ImageSource, least_classes: int) -> None:
    place, names = printable(source.place), source.class_names
    if not names:
        raise DataError(
            place,
            "has no classes",
            next_step=f"Arrange the images as in {source.layout}",
            details=source.ignored[:LISTED],
        )
    if len(names) < least_classes:
        raise DataError(
            place,
            f"only one class, {listing(names)}",
            next_step="Add images of at least one more class",
        )
    check_class_names(source.place, names)
    _refuse_empty_classes(source)


def _refuse_undecodable_names(place: str, names: Iterable[str]) -> None:
    """Class names go into JSON and models, which hold text, not bytes."""
    for name in names:
        if readable(name) != name:
            raise DataError(
                printable(place),
                f"the class name '{readable(name)}' is not UTF-8",
                next_step="Rename the class",
            )


def _refuse_similar_names(place: str, names: Iterable[str]) -> None:
    """Refuse class names that some file systems, and most people, take for the same."""
    first: dict[str, str] = {}
    for name in sorted(names):
        form = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if form in first:
            raise DataError(
                printable(place),
                f"classes {first[form]!a} and {name!a} differ only by case or Unicode form",
                next_step="Merge the two classes, or rename one",
            )
        first[form] = name


def _refuse_empty_classes(source: ImageSource) -> None:
    """Refuse classes without an image, and list what was found instead."""
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    empty = [source.class_names[label] for label in np.flatnonzero(counts == 0)]
    if not empty:
        return
    starts = tuple(f"{printable(name)}{mark}" for name in empty for mark in "/:")
    notes = [note for note in source.ignored if note.startswith(starts)]
    reasons = Counter(note.rpartition(": ")[2] for note in notes)
    ignored = ", ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
    raise DataError(
        printable(source.place),
        f"class {listing(empty)} has no usable image (ignored: {ignored or 'nothing'})",
        next_step="Add images, convert them to JPEG or PNG, or remove the class",
        details=notes[:LISTED],
    )
