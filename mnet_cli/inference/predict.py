"""Class probabilities of unlabelled images, for any number of files in constant memory."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic, iglob
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.preprocess import Preprocess
from mnet_cli.data.sources.folder import IMAGE_EXTENSIONS, file_identity, is_hidden, list_entries
from mnet_cli.errors import DataError, UsageError
from mnet_cli.inference.classifier import Classify
from mnet_cli.inference.metrics import softmax
from mnet_cli.inference.stream import outputs_of
from mnet_cli.system.machine import BATCH

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        path: The image, or the entry of the list that gave none.
        probabilities: (C,), sums to 1; empty where there is an error.
        error: Why there is no answer; None if there is one.
    """

    path: Path
    probabilities: NDArray[np.float64]
    error: DataError | None = None

    def ranked(self, class_names: Sequence[str], count: int) -> list[tuple[str, float]]:
        """The `count` most probable classes with their probabilities, the best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(class_names[index], float(self.probabilities[index])) for index in order]

    def answer(self, class_names: Sequence[str], reject: float) -> str:
        """The most probable class, or `unknown` if its probability is below `reject`."""
        name, probability = self.ranked(class_names, 1)[0]
        return name if probability >= reject else UNKNOWN


def predict(
    classify: Classify,
    preprocess: Preprocess,
    images: Iterable[Path | DataError],
    *,
    batch_size: int = BATCH,
    fast_decode: bool = False,
    parallel: bool = True,
) -> Iterator[Prediction]:
    """Classify images in order; what is no image gives a prediction with its error.

    Args:
        classify: Images (N, 3, S, S) to logits (N, C).
        preprocess: How an image becomes the model's input.
        images: As from `find_images`, drawn from as needed.
        batch_size: Images that a thread takes at a time.
        fast_decode: As in `outputs_of`.
        parallel: As in `outputs_of`.
    """
    for failed, group in groupby(images, key=lambda image: isinstance(image, DataError)):
        if failed:
            for error in cast(Iterator[DataError], group):
                yield Prediction(Path(error.where), np.empty(0), error)
            continue
        paths = cast(Iterator[Path], group)
        for path, output in outputs_of(
            paths, preprocess, classify, batch_size, fast_decode=fast_decode, parallel=parallel
        ):
            if isinstance(output, DataError):
                yield Prediction(path, np.empty(0), output)
            else:
                yield Prediction(path, softmax(output[None])[0])


def refuse_unmatched(patterns: Iterable[str]) -> None:
    """Check that each glob pattern matches something.

    Raises:
        UsageError: One matches nothing.
    """
    for pattern in patterns:
        if _is_glob(pattern) and next(iglob(pattern, recursive=True), None) is None:  # noqa: PTH207
            raise UsageError(pattern, "no file matches", "at least one was expected")


def find_images(patterns: Iterable[str]) -> Iterator[Path | DataError]:
    """Turn files, folders and glob patterns into image paths, in the order given.

    A file is taken as it is; a folder gives the images below it, sorted.

    Yields:
        A path, or, in the place of a pattern without a match, a folder without images and a
        folder that cannot be read, the error whose `where` names it.
    """
    for pattern in patterns:
        if "\0" in pattern:
            yield DataError(pattern, "a NUL character, which no file name can have")
            continue
        if _is_glob(pattern):
            matches = sorted(glob(pattern, recursive=True))  # noqa: PTH207  absolute too
            if not matches:
                yield DataError(pattern, "no file matches")
        else:
            matches = [pattern]
        for match in matches:
            # Unlike Path.is_dir, this takes a name that is too long for an answer of no.
            if os.path.isdir(match):  # noqa: PTH112
                yield from _images_below(Path(match))
            else:
                yield Path(match)


def _is_glob(pattern: str) -> bool:
    return has_magic(pattern) and not os.path.lexists(pattern)


def _images_below(root: Path) -> Iterator[Path | DataError]:
    """The images of a folder and its subfolders; links are followed as `scan_classes` does."""
    found = False
    visited = {file_identity(folder) for folder in root.resolve().parents}
    real, linked = [root], deque[Path]()
    while real or linked:
        folder = real.pop() if real else linked.popleft()
        try:
            identity, entries = file_identity(folder), list_entries(folder)
        except DataError as error:
            found = True
            yield DataError(str(folder), error.found)
            continue
        if identity in visited:
            continue
        visited.add(identity)
        below = []
        for entry in entries:
            path = folder / entry.name
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                below.append(path)
            elif os.path.isdir(path):  # noqa: PTH112  a link that leads nowhere is no folder
                linked.append(path)
            elif path.name.lower().endswith(IMAGE_EXTENSIONS):
                found = True
                yield path
        real += reversed(below)
    if not found:
        yield DataError(str(root), "no images in this folder")
