"""Scores of a classifier on labelled images, and the images that it misclassifies."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.dataset import Samples
from mnet_cli.data.image_files import ImageFile
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import DataError, RefusedError
from mnet_cli.inference import metrics
from mnet_cli.inference.classifier import Classify, changed_on_machine, open_classifier
from mnet_cli.inference.stream import Output, outputs_of
from mnet_cli.system.cluster import connected, map_on_cluster
from mnet_cli.system.hashing import content_sha256
from mnet_cli.system.machine import BATCH

MAX_MATRIX_CLASSES = 30  # a larger confusion matrix is not shown: people cannot read it
MAX_PAIRS = 20  # of confused classes, shown in its place


@dataclass(frozen=True)
class Evaluation:
    """Scores on a set of labelled images.

    Attributes:
        class_names: In the order of the logits.
        images: The N images.
        labels: True classes (N,).
        predictions: What the scores need of the logits of each image.
        loss: Mean cross-entropy in nats.
        top1, top3: Share of images whose class is the best, among the best three, in 0..1.
        interval: 95% Wilson interval of `top1`.
        macro_f1: Mean F1 over the classes that have images.
        calibration_error: Expected calibration error, 15 bins.
        scores: Precision, recall, F1 and support of each class.
    """

    class_names: tuple[str, ...]
    images: Sequence[ImageFile]
    labels: NDArray[np.int64]
    predictions: metrics.Predictions
    loss: float
    top1: float
    top3: float
    interval: tuple[float, float]
    macro_f1: float
    calibration_error: float
    scores: list[metrics.ClassScore]

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts (C, C), rows true, columns predicted; made when asked for: C may be large."""
        return metrics.confusion_matrix(
            self.labels, self.predictions.classes, len(self.class_names)
        )

    def figures(self) -> dict[str, float]:
        """The scalar scores by name."""
        return {
            name: getattr(self, name)
            for name in ("top1", "top3", "loss", "macro_f1", "calibration_error")
        }

    def without_images(self) -> list[str]:
        """The names of the classes that have no image, which `macro_f1` leaves out."""
        return [name for name, score in self._named() if not score.support]

    def weakest(self) -> list[tuple[str, metrics.ClassScore]]:
        """Every class with its scores, the lowest F1 first, classes without images last."""
        return sorted(self._named(), key=lambda row: (row[1].support == 0, row[1].f1))

    def _named(self) -> Iterator[tuple[str, metrics.ClassScore]]:
        return zip(self.class_names, self.scores, strict=True)

    def confused(self) -> list[dict[str, Any]]:
        """The pairs of classes that were confused, the most images first.

        `share` is that of the true class's images.
        """
        classes, names = self.predictions.classes, self.class_names
        return [
            {
                "true": names[true],
                "predicted": names[predicted],
                "count": count,
                "share": count / self.scores[true].support,
            }
            for true, predicted, count in metrics.confused_pairs(self.labels, classes, len(names))
        ]

    def wrong(self) -> list[dict[str, Any]]:
        """The misclassified images, the most confident first.

        Each has `image`, `true` and `predicted` class names, and their probabilities `true_prob`
        and `prob`.
        """
        classes, probs, true_probs = (
            self.predictions.classes,
            self.predictions.probs,
            self.predictions.true_probs,
        )
        rows = np.flatnonzero(classes != self.labels)
        rows = rows[np.argsort(-probs[rows], kind="stable")]
        return [
            {
                "image": self.images[row],
                "true": self.class_names[self.labels[row]],
                "predicted": self.class_names[classes[row]],
                "prob": float(probs[row]),
                "true_prob": float(true_probs[row]),
            }
            for row in rows.tolist()
        ]


def evaluate(
    classify: Classify,
    preprocess: Preprocess,
    images: Sequence[ImageFile],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    batch_size: int = BATCH,
    fast_decode: bool = False,
    parallel: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Classify every image and score the answers.

    Args:
        classify: Images (N, 3, S, S) to logits (N, C).
        preprocess: How an image becomes the model's input.
        images: The images; all must be readable.
        labels: The true class of each (N,), an index into `class_names`.
        class_names: In the order of the logits.
        batch_size: Images that a thread takes at a time.
        fast_decode: As in `outputs_of`.
        parallel: As in `outputs_of`.
        on_progress: Called with (done, total).

    Raises:
        DataError: An image cannot be decoded.
        RefusedError: A logit is not finite.
    """
    outputs = outputs_of(
        images, preprocess, classify, batch_size, fast_decode=fast_decode, parallel=parallel
    )
    logits = _readable(outputs, len(images), on_progress)
    return score(_summarized(logits, labels), labels, class_names, images)


@dataclass(frozen=True)
class LabelledImages:
    """Images to score, for the workers of a cluster.

    Attributes:
        checkpoint: A checkpoint or exported file.
        sha256: Of it.
        device: As in `open_classifier`.
        images: The images, with their labels.
        batch_size: Images that are classified together.
        fast_decode: As in `outputs_of`.
    """

    checkpoint: Path
    sha256: str
    device: str
    images: Samples
    batch_size: int = BATCH
    fast_decode: bool = False

    def __call__(self) -> Callable[[range], metrics.Predictions]:
        """Load the classifier, and return a function from numbers of images to predictions.

        Raises:
            WeightsError: This machine has another file in its place.
        """
        classifier = open_classifier(self.checkpoint, self.device)
        if content_sha256(self.checkpoint) != self.sha256:
            raise changed_on_machine(self.checkpoint)

        def predictions(numbers: range) -> metrics.Predictions:
            outputs = outputs_of(
                (self.images[number] for number in numbers),
                classifier.preprocess,
                classifier.classify,
                self.batch_size,
                fast_decode=self.fast_decode,
                parallel=classifier.parallel,
            )
            labels = self.images.labels[numbers.start : numbers.stop]
            return summarize_logits(stacked(outputs, len(numbers)), labels)

        return predictions


def evaluate_on_cluster(
    labelled: LabelledImages,
    class_names: Sequence[str],
    address: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Classify every image on a Ray cluster and score the answers; as `evaluate`.

    Args:
        labelled: The images and their classifier.
        class_names: In the order of the logits.
        address: Of the cluster; see `connected`.
        on_progress: Called with (done, total).

    Raises:
        MnetError: See `evaluate`, `connected` and `map_on_cluster`.
    """
    images, done = labelled.images, 0
    blocks: dict[int, metrics.Predictions] = {}
    with connected(address):
        for numbers, block in map_on_cluster(labelled, len(images), labelled.batch_size):
            blocks[numbers.start] = block
            done += len(numbers)
            if on_progress:
                on_progress(done, len(images))
    in_order = (blocks[start] for start in sorted(blocks))
    return score(in_order, images.labels, class_names, images)


def stacked(
    outputs: Iterable[tuple[ImageFile, Output]],
    total: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Collect the outputs (N, …) of images that must all be readable.

    Raises:
        DataError: One is not.
    """
    return np.stack(list(_readable(outputs, total, on_progress)))


def summarize_logits(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> metrics.Predictions:
    """Compute from the logits (N, C) of some images with labels (N,) what `score` needs.

    Raises:
        RefusedError: A logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise RefusedError(
            "the model's logits",
            "not finite",
            next_step="Train again with a lower train.lr",
        )
    return metrics.predictions_of(logits, labels)


def score(
    blocks: Iterable[metrics.Predictions],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    images: Sequence[ImageFile],
) -> Evaluation:
    """Turn the predictions of blocks of images, in order, into an `Evaluation`.

    Args:
        blocks: Together of all N images, taken one by one.
        labels: The true class of each image (N,), an index into `class_names`.
        class_names: In the order of the logits.
        images: The images.

    Raises:
        ValueError: There are no images, or the predictions do not fit the labels.
    """
    predictions = metrics.join_predictions(blocks)
    scores = metrics.per_class(labels, predictions.classes, len(class_names))
    correct = predictions.classes == labels
    return Evaluation(
        class_names=tuple(class_names),
        images=images,
        labels=labels,
        predictions=predictions,
        loss=float(-predictions.true_log_probs.mean()),
        top1=float((predictions.ranks < 1).mean()),
        top3=float((predictions.ranks < 3).mean()),
        interval=metrics.wilson_interval(int(correct.sum()), len(labels)),
        macro_f1=metrics.macro_f1(scores),
        calibration_error=metrics.calibration_error(predictions.probs, correct),
        scores=scores,
    )


def _readable(
    outputs: Iterable[tuple[ImageFile, Output]],
    total: int,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[NDArray[np.float32]]:
    """The outputs of images that must all be readable, one by one."""
    for done, (_, output) in enumerate(outputs, 1):
        if isinstance(output, DataError):
            raise output
        yield output
        if on_progress:
            on_progress(done, total)


def _summarized(
    logits: Iterator[NDArray[np.float32]], labels: NDArray[np.int64]
) -> Iterator[metrics.Predictions]:
    """Summarize the logits (C,) of each image, `BATCH` images at a time."""
    start = 0
    while block := list(islice(logits, BATCH)):
        yield summarize_logits(np.stack(block), labels[start : start + len(block)])
        start += len(block)
