"""How good a classifier is on labelled images, and where it is wrong."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli import metrics
from mnet_cli.data.dataset import DataSet, open_dataset, take_split
from mnet_cli.data.inference import Output, outputs_of
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import DataError, RefusedError
from mnet_cli.machine import BATCH
from mnet_cli.recipe import load_recipe, restore_recipe
from mnet_cli.runtimes import Classifier, Classify


@dataclass(frozen=True)
class Evaluation:
    """Scores on a set of labelled images.

    Attributes:
        class_names: In the order of the logits.
        paths: The N images.
        labels: True classes (N,).
        logits: (N, C).
        loss: Mean cross-entropy in nats.
        top1, top3: Share of images whose class is the best, among the best three, in 0..1.
        interval: 95% Wilson interval of `top1`.
        macro_f1: Mean F1 over the classes.
        calibration_error: Expected calibration error, 15 bins.
        confusion: Counts (C, C), rows true, columns predicted.
        scores: Precision, recall, F1 and support of each class.
    """

    class_names: tuple[str, ...]
    paths: Sequence[Path]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    loss: float
    top1: float
    top3: float
    interval: tuple[float, float]
    macro_f1: float
    calibration_error: float
    confusion: NDArray[np.int64]
    scores: list[metrics.ClassScore]

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(N, C), rows sum to 1."""
        return metrics.softmax(self.logits)

    def figures(self) -> dict[str, float]:
        """The scalar scores by name."""
        return {
            name: getattr(self, name)
            for name in ("top1", "top3", "loss", "macro_f1", "calibration_error")
        }

    def wrong(self) -> list[dict[str, Any]]:
        """The misclassified images, the most confident first."""
        predicted = self.probabilities.argmax(1)
        rows = np.flatnonzero(predicted != self.labels)
        rows = rows[np.argsort(-self.probabilities[rows].max(1), kind="stable")]
        return [
            {
                "path": self.paths[row],
                "true": self.class_names[self.labels[row]],
                "predicted": self.class_names[predicted[row]],
                "prob": float(self.probabilities[row, predicted[row]]),
                "true_prob": float(self.probabilities[row, self.labels[row]]),
            }
            for row in rows.tolist()
        ]


def open_images(
    classifier: Classifier,
    root: Path | None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DataSet:
    """Open labelled images for a classifier.

    Args:
        classifier: Its class names say what the folders' names mean.
        root: The folder; None for that of its recipe, divided as its run divided it.
        on_progress: Called with (done, total) while images are checked.

    Raises:
        DataError: The folder is not there, or cannot be used.
        WeightsError: It has a class that the classifier lacks.
    """
    if root is not None:
        return open_dataset(root, class_names=classifier.class_names, on_progress=on_progress)
    beside = classifier.source.with_name("recipe.yaml")
    if classifier.recipe:
        recipe = restore_recipe(classifier.recipe, str(classifier.source))
    elif beside.is_file():
        recipe = load_recipe(beside)
    else:
        raise DataError(
            str(classifier.source),
            "no run directory around it that says which images",
            "labelled images were expected",
            "Name some with --data DIR",
        )
    if not Path(recipe.data.root).is_dir():
        raise DataError(
            recipe.data.root,
            "the folder that the model was trained on is not here",
            "labelled images were expected",
            "Name some with --data DIR",
        )
    manifest = classifier.source.with_name("split.csv")
    divided = recipe.data.val_fraction is not None and manifest.is_file()
    images = open_dataset(
        Path(recipe.data.root),
        class_names=classifier.class_names,
        val_fraction=None if divided else recipe.data.val_fraction,
        seed=recipe.train.seed,
        skip_bad=recipe.data.skip_bad,
        on_progress=on_progress,
    )
    return take_split(images, manifest) if divided else images


def evaluate(
    classify: Classify,
    preprocess: Preprocess,
    paths: Sequence[Path],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    batch_size: int = BATCH,
    fast_decode: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Classify every image and score the answers.

    Args:
        classify: Images (N, 3, S, S) to logits (N, C); called from several threads.
        preprocess: How an image becomes the model's input.
        paths: The images; all must be readable.
        labels: The true class of each (N,), an index into `class_names`.
        class_names: In the order of the logits.
        batch_size: Images that a thread takes at a time.
        fast_decode: As in `outputs_of`.
        on_progress: Called with (done, total).

    Raises:
        DataError: An image cannot be decoded.
        RefusedError: A logit is not finite.
    """
    outputs = outputs_of(paths, preprocess, classify, batch_size, fast_decode=fast_decode)
    return score(stacked(outputs, len(paths), on_progress), labels, class_names, paths)


def stacked(
    outputs: Iterable[tuple[Path, Output]],
    total: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Collect the outputs (N, …) of images that must all be readable.

    Raises:
        DataError: One is not.
    """
    found: list[NDArray[np.float32]] = []
    for _, output in outputs:
        if isinstance(output, DataError):
            raise output
        found.append(output)
        if on_progress:
            on_progress(len(found), total)
    return np.stack(found)


def score(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    paths: Sequence[Path],
) -> Evaluation:
    """Turn logits (N, C) and labels (N,) into an `Evaluation`.

    Raises:
        RefusedError: A logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise RefusedError(
            "the model's logits",
            "not finite",
            "numbers were expected",
            "Train again with a lower train.lr",
        )
    confusion = metrics.confusion_matrix(labels, logits.argmax(1), len(class_names))
    probabilities = metrics.softmax(logits)
    return Evaluation(
        class_names=tuple(class_names),
        paths=paths,
        labels=labels,
        logits=logits,
        loss=metrics.cross_entropy(logits, labels),
        top1=metrics.topk_accuracy(logits, labels, 1),
        top3=metrics.topk_accuracy(logits, labels, 3),
        interval=metrics.wilson_interval(int(confusion.trace()), len(labels)),
        macro_f1=metrics.macro_f1(confusion),
        calibration_error=metrics.calibration_error(probabilities, labels),
        confusion=confusion,
        scores=metrics.per_class(confusion),
    )
