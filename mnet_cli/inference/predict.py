"""Class probabilities of unlabelled images, of any number in constant memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic, iglob
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.image_files import FileImage, ImageFile, image_at
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.data.sources import find_source
from mnet_cli.data.sources.folder import IMAGE_EXTENSIONS, file_identity, is_hidden, list_entries
from mnet_cli.errors import DataError, UsageError
from mnet_cli.inference.classifier import Classify
from mnet_cli.inference.metrics import softmax
from mnet_cli.inference.stream import Output, outputs_of
from mnet_cli.system.machine import BATCH
from mnet_cli.system.urls import is_url, refuse_credentials

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        name: The path of the image, or the argument that gave no image.
        probabilities: (C,), sums to 1; empty where there is an error.
        error: Why there is no answer; None if there is one.
        image: The image; None if the argument gave none.
    """

    name: str
    probabilities: NDArray[np.float64]
    error: DataError | None = None
    image: ImageFile | None = None

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
    images: Iterable[ImageFile | DataError],
    *,
    batch_size: int = BATCH,
    fast_decode: bool = False,
    parallel: bool = True,
) -> Iterator[Prediction]:
    """Classify images in order; an image that cannot be used gives a prediction with its error.

    Args:
        classify: Images (N, 3, S, S) to logits (N, C).
        preprocess: How an image becomes the model's input.
        images: As from `find_images`, taken one by one as needed.
        batch_size: Images that a thread takes at a time.
        fast_decode: As in `outputs_of`.
        parallel: As in `outputs_of`.
    """
    for name, image, output in outputs_in_order(
        images, preprocess, classify, batch_size, fast_decode=fast_decode, parallel=parallel
    ):
        if isinstance(output, DataError):
            yield Prediction(name, np.empty(0), output, image)
        else:
            yield Prediction(name, softmax(output[None])[0], image=image)


def outputs_in_order(
    images: Iterable[ImageFile | DataError],
    preprocess: Preprocess,
    forward: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    batch_size: int,
    *,
    fast_decode: bool = False,
    parallel: bool = True,
) -> Iterator[tuple[str, ImageFile | None, Output]]:
    """As `outputs_of`, with errors among the images that stay where they are.

    Yields:
        The name of an image or of an error, the image if there is one, and the network's output
        for it or the error.
    """
    for failed, group in groupby(images, key=lambda image: isinstance(image, DataError)):
        if failed:
            for error in cast(Iterator[DataError], group):
                yield error.where, None, error
            continue
        files = cast(Iterator[ImageFile], group)
        for image, output in outputs_of(
            files, preprocess, forward, batch_size, fast_decode=fast_decode, parallel=parallel
        ):
            yield image.where, image, output


def refuse_unmatched(patterns: Iterable[str]) -> None:
    """Check that each glob pattern matches something.

    Raises:
        UsageError: One matches nothing.
    """
    for pattern in patterns:
        if _is_glob(pattern) and next(iglob(pattern, recursive=True), None) is None:  # noqa: PTH207
            raise UsageError(pattern, "no file matches", next_step="Correct the pattern")


def find_images(patterns: Iterable[str]) -> Iterator[ImageFile | DataError]:
    """Turn files, folders, data sets and glob patterns into images, in the order given.

    A folder gives the images below it, sorted; a data set of another kind gives the images of
    all its splits. Any other argument is the path of one image.

    Yields:
        An image, or, in the place of a pattern without a match, a folder without images and a
        folder that cannot be read, the error whose `where` names it.

    Raises:
        UsageError: A URL has credentials in it.
    """
    for pattern in patterns:
        refuse_credentials(pattern, "mnet predict")
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
            yield from _images_at(match)


def _images_at(path: str) -> Iterator[ImageFile | DataError]:
    """The images of one argument that is not a pattern."""
    source = None if path.lower().endswith(IMAGE_EXTENSIONS) else find_source(path)
    if source and (not source.general or is_url(path)):
        try:
            yield from source.unlabelled(path)
        except DataError as error:
            yield error
    # Unlike Path.is_dir, this returns False for a name that is too long.
    elif os.path.isdir(path):  # noqa: PTH112
        yield from _images_below(Path(path))
    else:
        yield image_at(path)


def _is_glob(pattern: str) -> bool:
    return has_magic(pattern) and not is_url(pattern) and not os.path.lexists(pattern)


def _images_below(root: Path) -> Iterator[ImageFile | DataError]:
    """The images of a folder and its subfolders; links are followed as `FolderSource` does."""
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
            elif os.path.isdir(path):  # noqa: PTH112  a dangling link is not a folder
                linked.append(path)
            elif path.name.lower().endswith(IMAGE_EXTENSIONS):
                found = True
                yield FileImage(path)
        real += reversed(below)
    if not found:
        yield DataError(str(root), "no images in this folder")
