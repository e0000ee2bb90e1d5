"""Predictions or features of many images as rows: here, or on the machines of a cluster."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.image_files import ImageFile
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.data.sources.parquet import import_pyarrow
from mnet_cli.errors import DataError, WeightsError
from mnet_cli.inference.classifier import (
    Classifier,
    Classify,
    changed_on_machine,
    checkpoint_file,
    open_classifier,
)
from mnet_cli.inference.parts import PartsFolder, Row
from mnet_cli.inference.predict import outputs_in_order, predict
from mnet_cli.system.atomic import atomic_write, write_csv
from mnet_cli.system.cluster import connected, map_on_cluster
from mnet_cli.system.hashing import content_sha256
from mnet_cli.system.text import readable

Image = ImageFile | DataError
Progress = Callable[[int, int], None]


class OpenRows(Protocol):
    """Makes the row of each image; the network is loaded."""

    @property
    def about(self) -> dict[str, Any]:
        """What the rows depend on; plain values."""

    @property
    def schema(self) -> Any:
        """Of the rows, for pyarrow: `path`, the answer, and `error`."""

    @property
    def width(self) -> int:
        """How many numbers there are in a row."""

    def rows(self, images: Iterable[ImageFile]) -> Iterator[Row]:
        """The rows of some images, in order."""


class RowSource(Protocol):
    """Says how rows are made; it can be pickled, and is opened where they are made.

    Attributes:
        checkpoint: A checkpoint, run directory or exported file.
        batch_size: Images that a thread takes at a time.
    """

    @property
    def checkpoint(self) -> Path:
        """As above."""

    @property
    def batch_size(self) -> int:
        """As above."""

    def open(self) -> OpenRows:
        """Load the network."""


@dataclass(frozen=True)
class PredictionRows:
    """Rows `path`, `class`, `prob`, `probs`, `error` of a classifier.

    Attributes:
        checkpoint: A checkpoint, run directory or exported file.
        device: As in `open_classifier`.
        reject: The probability below which the class is `unknown`.
        batch_size: Images that a thread takes at a time.
        fast_decode: As in `outputs_of`.
    """

    checkpoint: Path
    device: str = "auto"
    reject: float = 0.0
    batch_size: int = 8
    fast_decode: bool = False

    def open(self) -> "OpenPredictions":
        """Load the classifier."""
        return OpenPredictions(self, open_classifier(self.checkpoint, self.device))


@dataclass(frozen=True)
class OpenPredictions:
    """See `PredictionRows`.

    Attributes:
        options: How to predict.
        classifier: It is loaded.
    """

    options: PredictionRows
    classifier: Classifier

    @cached_property
    def sha256(self) -> str:
        """Of the classifier's file."""
        return content_sha256(self.classifier.source)

    @property
    def width(self) -> int:
        """As in `OpenRows`."""
        return len(self.classifier.class_names)

    @property
    def about(self) -> dict[str, Any]:
        """As in `OpenRows`."""
        return {
            "rows": "predictions",
            "network_sha256": self.sha256,
            "class_names": [readable(name) for name in self.classifier.class_names],
            "reject": self.options.reject,
            "fast_decode": self.options.fast_decode,
        }

    @property
    def schema(self) -> Any:
        """As in `OpenRows`."""
        pa = import_pyarrow("--out")
        names = self.about["class_names"]
        return pa.schema(
            [
                ("path", pa.string()),
                ("class", pa.string()),
                ("prob", pa.float64()),
                ("probs", pa.struct([(name, pa.float64()) for name in names])),
                ("error", pa.string()),
            ]
        )

    def rows(self, images: Iterable[ImageFile]) -> Iterator[Row]:
        """As in `OpenRows`."""
        names = self.classifier.class_names
        for answer in predict(
            self.classifier.classify,
            self.classifier.preprocess,
            images,
            batch_size=self.options.batch_size,
            fast_decode=self.options.fast_decode,
            parallel=self.classifier.parallel,
        ):
            row: Row = {"path": readable(answer.name), "error": None}
            if answer.error:
                row["error"] = readable(answer.error.found)
            else:
                row["class"] = readable(answer.answer(names, self.options.reject))
                row["prob"] = float(answer.probabilities.max())
                values = answer.probabilities.tolist()
                row["probs"] = dict(zip(map(readable, names), values, strict=True))
            yield row


@dataclass(frozen=True)
class FeatureRows:
    """Rows `path`, `vector`, `error` of the pooled features below a classifier's head.

    Attributes:
        checkpoint: A checkpoint or run directory.
        device: As in `open_classifier`.
        batch_size: Images that a thread takes at a time.
        fast_decode: As in `outputs_of`.
    """

    checkpoint: Path
    device: str = "auto"
    batch_size: int = 8
    fast_decode: bool = False

    def open(self) -> "OpenFeatures":
        """Load the network below the head.

        Raises:
            WeightsError: It is no checkpoint, or the network cannot be divided at its head.
        """
        from mnet_cli.formats.checkpoint import build_from, load_checkpoint
        from mnet_cli.formats.registry import format_of
        from mnet_cli.models.device import choose_device
        from mnet_cli.models.forward import compile_forward, is_own
        from mnet_cli.models.freeze import freeze, split_frozen

        if format_of(self.checkpoint) is not None:
            raise WeightsError(
                str(self.checkpoint),
                "is an exported file, which gives no features",
                next_step="Give the checkpoint or run directory that it was exported from",
            )
        checkpoint, device = load_checkpoint(self.checkpoint), choose_device(self.device)
        model = build_from(checkpoint).eval()
        for spec in ("features", "all_but_last"):  # a multi-stage head is one piece with these
            freeze(model, spec)
            below, _ = split_frozen(model)
            if len(below):
                break
        else:
            raise WeightsError(
                str(self.checkpoint),
                f"the network {checkpoint.arch} cannot be divided at its head",
                next_step="Use a network whose pieces are known",
            )
        forward = compile_forward(
            below, device, image_size=checkpoint.preprocess.image_size, is_known=is_own(model)
        )
        return OpenFeatures(
            self,
            as_vectors(forward),
            checkpoint.preprocess,
            content_sha256(checkpoint_file(self.checkpoint)),
            parallel=device.type == "cpu",
        )


def as_vectors(forward: Classify) -> Classify:
    """The means of feature maps (N, C, H, W) over the image; vectors (N, C) stay as they are."""

    def vectors(images: NDArray[np.float32]) -> NDArray[np.float32]:
        found = forward(images)
        return found.mean(axis=(2, 3)) if found.ndim == 4 else found.reshape(len(found), -1)

    return vectors


@dataclass(frozen=True)
class OpenFeatures:
    """See `FeatureRows`.

    Attributes:
        options: How to compute.
        forward: Images (N, 3, S, S) to features (N, D).
        preprocess: How an image becomes the network's input.
        sha256: Of the checkpoint.
        parallel: As in `outputs_of`.
    """

    options: FeatureRows
    forward: Classify
    preprocess: Preprocess
    sha256: str
    parallel: bool

    @cached_property
    def width(self) -> int:
        """The length D of a vector."""
        size = self.preprocess.image_size
        found = self.forward(np.zeros((1, 3, size, size), np.float32))
        return int(found.shape[1])

    @property
    def about(self) -> dict[str, Any]:
        """As in `OpenRows`."""
        return {
            "rows": "features",
            "network_sha256": self.sha256,
            "preprocess": self.preprocess.to_dict(),
            "dimension": self.width,
            "fast_decode": self.options.fast_decode,
        }

    @property
    def schema(self) -> Any:
        """As in `OpenRows`."""
        pa = import_pyarrow("--out")
        # Not a list of a fixed size: pyarrow cannot read those back where one is null.
        vector = pa.list_(pa.float32())
        return pa.schema([("path", pa.string()), ("vector", vector), ("error", pa.string())])

    def rows(self, images: Iterable[ImageFile]) -> Iterator[Row]:
        """As in `OpenRows`."""
        for name, _, output in outputs_in_order(
            images,
            self.preprocess,
            self.forward,
            self.options.batch_size,
            fast_decode=self.options.fast_decode,
            parallel=self.parallel,
        ):
            row: Row = {"path": readable(name), "vector": None, "error": None}
            if isinstance(output, DataError):
                row["error"] = readable(output.found)
            else:
                row["vector"] = output
            yield row


@dataclass(frozen=True)
class RowsOf:
    """The rows of images that are addressed by number, for the workers of a cluster.

    Attributes:
        source: How rows are made.
        about: What they depend on, as the process that asks has found it.
        images: All of them.
    """

    source: RowSource
    about: dict[str, Any]
    images: Sequence[ImageFile]

    def __call__(self) -> Callable[[range], list[Row]]:
        """Load the network, and return a function from numbers of images to their rows.

        Raises:
            WeightsError: This machine has another file in the place of the network's.
        """
        opened = self.source.open()
        if opened.about != self.about:
            raise changed_on_machine(self.source.checkpoint)
        return lambda numbers: list(opened.rows(self.images[number] for number in numbers))


def numbered_rows(
    source: RowSource, opened: OpenRows, images: Sequence[ImageFile], cluster: str | None
) -> Iterator[tuple[int, Row]]:
    """The row of each image with its number, in any order.

    Args:
        source: How rows are made.
        opened: The same, opened in this process.
        images: The images.
        cluster: The address of a Ray cluster; None computes in this process.
    """
    if cluster is None or not images:
        yield from enumerate(opened.rows(images))
        return
    work = RowsOf(source, opened.about, images)
    with (
        connected(cluster),
        closing(map_on_cluster(work, len(images), source.batch_size)) as blocks,
    ):
        for numbers, rows in blocks:
            yield from zip(numbers, rows, strict=True)


@dataclass(frozen=True)
class Written:
    """What a call has written.

    Attributes:
        images: How many images were asked for.
        fresh: How many rows were computed for them.
        errors: How many of these rows hold an error.
        unusable: Arguments that gave no image, and why.
    """

    images: int
    fresh: int
    errors: int
    unusable: tuple[str, ...]


def write_parts(
    source: RowSource,
    images: Iterable[Image],
    folder: Path,
    cluster: str | None = None,
    on_progress: Progress | None = None,
) -> Written:
    """Write the rows of images that are not in a folder of parts yet.

    Args:
        source: How rows are made.
        images: As from `find_images`; a path that comes twice gets one row.
        folder: New, empty, or of an earlier call of the same.
        cluster: As in `numbered_rows`.
        on_progress: Called with (done, total).

    Raises:
        MnetError: See `PartsFolder`, `RowSource.open` and `map_on_cluster`.
    """
    opened = source.open()
    missing: list[ImageFile] = []
    asked, unusable, errors = set[str](), list[str](), 0
    with PartsFolder(folder, opened.about, opened.schema, opened.width) as parts:
        for image in images:
            if isinstance(image, DataError):
                unusable.append(str(image))
                continue
            name = readable(image.where)
            if name not in asked and name not in parts.done:
                missing.append(image)
            asked.add(name)
        for done, (_, row) in enumerate(numbered_rows(source, opened, missing, cluster), 1):
            parts.add(row)
            errors += row["error"] is not None
            if on_progress:
                on_progress(done, len(missing))
    return Written(len(asked), len(missing), errors, tuple(unusable))


def paths_file(array: Path) -> Path:
    """The file with the path of each row of an array: `features.paths.csv`."""
    return array.with_suffix(".paths.csv")


def write_array(
    source: FeatureRows,
    images: Iterable[Image],
    path: Path,
    cluster: str | None = None,
    on_progress: Progress | None = None,
) -> Written:
    """Write the features of images as an array (N, D), and their paths in a CSV file beside it.

    The row of an image that cannot be used is NaN, and the CSV file says why.

    Args:
        source: How features are computed.
        images: As from `find_images`; N of them are images.
        path: Of the array, in the format of NumPy, version 1.0; what is there is replaced.
        cluster: As in `numbered_rows`.
        on_progress: Called with (done, total).

    Raises:
        MnetError: See `RowSource.open`, `map_on_cluster` and `atomic_write`.
    """
    opened = source.open()
    files, unusable = list[ImageFile](), list[str]()
    for image in images:
        if isinstance(image, DataError):
            unusable.append(str(image))
        else:
            files.append(image)
    texts: list[dict[str, str]] = [{} for _ in files]
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(files), opened.width)}
    row_bytes = 4 * opened.width
    # Not a memory map: on a full disk that would end the process.
    with atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        for done, (number, row) in enumerate(numbered_rows(source, opened, files, cluster), 1):
            vector = np.full(opened.width, np.nan) if row["error"] else row["vector"]
            file.seek(start + number * row_bytes)
            file.write(vector.astype("<f4").tobytes())
            texts[number] = {"path": row["path"], "error": row["error"] or ""}
            if on_progress:
                on_progress(done, len(files))
        write_csv(paths_file(path), ("path", "error"), texts)
    errors = sum(bool(row["error"]) for row in texts)
    return Written(len(files), len(files), errors, tuple(unusable))
