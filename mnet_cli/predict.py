"""Class probabilities of unlabelled images, for any number of files in constant memory."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.inference import outputs_of
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.data.scan import IMAGE_EXTENSIONS, is_hidden
from mnet_cli.errors import DataError, UsageError
from mnet_cli.machine import BATCH
from mnet_cli.metrics import softmax
from mnet_cli.runtimes import Classify

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        path: The image.
        probabilities: (C,), sums to 1; empty where the image could not be read.
        error: Why it could not be read; None if it could.
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
    paths: Iterable[Path],
    *,
    batch_size: int = BATCH,
    fast_decode: bool = False,
) -> Iterator[Prediction]:
    """Classify images in order; a file that is no image gives a prediction with its error.

    Args:
        classify: Images (N, 3, S, S) to logits (N, C); called from several threads.
        preprocess: How an image becomes the model's input.
        paths: The images, drawn from as needed.
        batch_size: Images that a thread takes at a time.
        fast_decode: As in `outputs_of`.
    """
    for path, output in outputs_of(
        paths, preprocess, classify, batch_size, fast_decode=fast_decode
    ):
        if isinstance(output, DataError):
            yield Prediction(path, np.empty(0), output)
        else:
            yield Prediction(path, softmax(output[None])[0])


def find_images(patterns: Iterable[str]) -> Iterator[Path]:
    """Turn files, folders and glob patterns into image paths, in the order given.

    A file is taken as it is; a folder gives the images below it, sorted.

    Raises:
        UsageError: A glob pattern matches nothing.
        DataError: A folder holds no image.
    """
    for pattern in patterns:
        if has_magic(pattern) and not os.path.lexists(pattern):
            matches = sorted(glob(pattern, recursive=True))  # noqa: PTH207  absolute too
            if not matches:
                raise UsageError(pattern, "no file matches", "at least one was expected")
        else:
            matches = [pattern]
        for path in map(Path, matches):
            # Unlike Path.is_dir, this takes a name that is too long for an answer of no.
            if os.path.isdir(path):  # noqa: PTH112
                yield from _images_below(path)
            else:
                yield path


def _images_below(folder: Path) -> Iterator[Path]:
    found = False
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(names):
            if name.lower().endswith(IMAGE_EXTENSIONS) and not is_hidden(name):
                found = True
                yield Path(parent, name)
    if not found:
        raise DataError(str(folder), "no images in this folder", "JPEG, PNG, … were expected")
