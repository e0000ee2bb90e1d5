"""Scores of a classifier: pure functions over numpy arrays.

One rule for every function that takes logits or probabilities: a value that is not finite
raises ValueError, so that a diverged model never gets a score. A mean over no images does
not exist and raises ValueError too; a count over none is zero.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from math import sqrt

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ClassScore:
    """How well one class was recognised.

    Attributes:
        precision: Share of the images given this class that are of it, in 0..1.
        recall: Share of the images of this class that were given it, in 0..1.
        f1: Harmonic mean of precision and recall, in 0..1.
        support: Number of images whose true class this is.
    """

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Predictions:
    """What the scores need of the logits (N, C) of N images, in place of the logits.

    Attributes:
        classes: Predicted class of each image (N,), int32.
        ranks: Place of the true class among all classes (N,), int32; 0 is the best.
        log_probs: Natural logarithm of the predicted class's probability (N,), float64.
        true_log_probs: Natural logarithm of the true class's probability (N,), float64.

    Raises:
        ValueError: The arrays differ in shape, or a value is not finite.
    """

    classes: NDArray[np.int32]
    ranks: NDArray[np.int32]
    log_probs: NDArray[np.float64]
    true_log_probs: NDArray[np.float64]

    def __post_init__(self) -> None:
        arrays = [getattr(self, field.name) for field in fields(self)]
        if any(array.shape != (len(self.classes),) for array in arrays):
            raise ValueError(f"arrays of shapes {[array.shape for array in arrays]}")
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("a prediction is not finite")

    @property
    def probs(self) -> NDArray[np.float64]:
        """Probability of the predicted class (N,), in 0..1."""
        return np.exp(self.log_probs)

    @property
    def true_probs(self) -> NDArray[np.float64]:
        """Probability of the true class (N,), in 0..1."""
        return np.exp(self.true_log_probs)


def predictions_of(logits: np.ndarray, labels: np.ndarray) -> Predictions:
    """Keep of the logits of some images what the scores need.

    A row's values do not depend on the other rows, so blocks of rows give the same as all of
    them at once. Ranks are those of `topk_accuracy`.

    Args:
        logits: (N, C), N >= 1.
        labels: (N,) integers in 0..C-1.

    Raises:
        ValueError: No rows, a logit that is not finite, or labels that do not fit.
    """
    log_probabilities = _log_softmax(logits)
    labels = _checked_labels(labels, log_probabilities)
    classes = np.asarray(logits).argmax(axis=1)
    rows = np.arange(len(labels))
    return Predictions(
        classes=classes.astype(np.int32),
        ranks=_ranks(np.asarray(logits), labels).astype(np.int32),
        log_probs=log_probabilities[rows, classes],
        true_log_probs=log_probabilities[rows, labels],
    )


def join_predictions(blocks: Iterable[Predictions]) -> Predictions:
    """Put the predictions of blocks of images, at least one, into one.

    Raises:
        ValueError: There is no block.
    """
    parts = list(blocks)
    if not parts:
        raise ValueError("no predictions; at least one image was expected")
    return Predictions(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Predictions)
        }
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits into probabilities without overflow.

    Args:
        logits: (N, C), C >= 1; N may be 0.

    Returns:
        (N, C) float64; each row is in 0..1 and sums to 1.

    Raises:
        ValueError: A logit is not finite, or the array is not (N, C).
    """
    return np.asarray(np.exp(_log_softmax(logits)))


def topk_accuracy(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of rows whose true class is among the k highest logits, in 0..1.

    Among equal logits the lower class index ranks first, as `np.argmax` has it, so a model
    that gives every class the same logit does not score 1.

    Args:
        logits: (N, C), N >= 1; probabilities do as well.
        labels: (N,) integers in 0..C-1.
        k: At least 1; any k >= C gives 1.0.

    Raises:
        ValueError: k < 1, no rows, a logit that is not finite, or labels that do not fit.
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 was expected")
    logits = _checked_rows(logits)
    labels = _checked_labels(labels, logits)
    return float((_ranks(logits, labels) < k).mean())


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Count every pair of true and predicted class.

    Args:
        labels: (N,) true classes in 0..num_classes-1; N may be 0.
        predictions: (N,) predicted classes in 0..num_classes-1.
        num_classes: C, at least 1.

    Returns:
        (C, C) int64; rows are true classes, columns predicted ones.

    Raises:
        ValueError: The arrays differ in length or a class is out of range.
    """
    pairs = _pairs(labels, predictions, num_classes)
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def confused_pairs(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> list[tuple[int, int, int]]:
    """Count the mistakes by true and predicted class, without the (C, C) matrix.

    Args:
        labels: (N,) true classes in 0..num_classes-1; N may be 0.
        predictions: (N,) predicted classes in 0..num_classes-1.
        num_classes: C, at least 1.

    Returns:
        (true class, predicted class, images), the most images first; among equals, in the
        order of the true class, then of the predicted one.

    Raises:
        ValueError: The arrays differ in length or a class is out of range.
    """
    pairs = _pairs(labels, predictions, num_classes)
    pairs = pairs[pairs // num_classes != pairs % num_classes]
    found, counts = np.unique(pairs, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [
        (pair // num_classes, pair % num_classes, count)
        for pair, count in zip(found[order].tolist(), counts[order].tolist(), strict=True)
    ]


def per_class(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> list[ClassScore]:
    """Precision, recall, F1 and support of every class, in class order.

    A ratio over zero images is 0: the precision of a class never predicted, the recall of
    a class without images, and the F1 of a class that is neither.

    Args:
        labels: (N,) true classes in 0..num_classes-1; N may be 0.
        predictions: (N,) predicted classes in 0..num_classes-1.
        num_classes: C, at least 1.

    Raises:
        ValueError: The arrays differ in length or a class is out of range.
    """
    pairs = _pairs(labels, predictions, num_classes)
    true, given = pairs // num_classes, pairs % num_classes
    support, predicted, hits = (
        np.bincount(classes, minlength=num_classes).tolist()
        for classes in (true, given, true[true == given])
    )
    return [
        ClassScore(
            precision=_ratio(hit, given),
            recall=_ratio(hit, true),
            f1=_ratio(2 * hit, given + true),
            support=true,
        )
        for hit, given, true in zip(hits, predicted, support, strict=True)
    ]


def macro_f1(scores: Sequence[ClassScore]) -> float:
    """Unweighted mean F1 over the classes that have images, in 0..1.

    A class without images has no recall, so it is left out; a class with images that was
    never predicted counts as 0. This is scikit-learn's
    `f1_score(labels, predictions, labels=np.unique(labels), average="macro")`. Without its
    argument `labels`, scikit-learn also counts a class without images that was predicted, as
    0: one wrong image would then move the mean by the share of a whole class. Where every
    class has images, both give the same number.

    Args:
        scores: Of every class, as `per_class` gives them.

    Raises:
        ValueError: No class has an image.
    """
    f1 = [score.f1 for score in scores if score.support]
    if not f1:
        raise ValueError("no class has an image; at least one image was expected")
    return float(np.mean(f1))


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: how far confidence is from accuracy, in 0..1.

    Images are binned by their confidence into equal intervals (a, b] of 0..1; the result is
    the mean gap between accuracy and confidence over the bins, each weighted by its images.
    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.

    Args:
        confidence: Probability of the predicted class (N,), in 0..1, N >= 1.
        correct: Whether the predicted class is the true one (N,).
        bins: Number of intervals, at least 1.

    Raises:
        ValueError: No images, no bins, a value outside 0..1, or arrays that differ in shape.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; at least 1 was expected")
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct)
    if confidence.ndim != 1 or confidence.shape != correct.shape:
        raise ValueError(f"confidence of shape {confidence.shape}, correct of {correct.shape}")
    if not len(confidence):
        raise ValueError("no images; a mean needs at least one")
    if not np.isfinite(confidence).all():
        raise ValueError("a confidence is not finite")
    # Softmax may pass 1 by a few units in the last place.
    if confidence.min() < 0 or confidence.max() > 1 + 1e-5:
        raise ValueError("a confidence lies outside 0..1; logits go through softmax first")
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927), which holds near 0 and 1 as well.

    Args:
        successes: 0..trials.
        trials: At least 0; without trials nothing is known and the interval is (0, 1).
        z: Normal quantile; the default gives 95%.

    Returns:
        (low, high) in 0..1, with low <= successes / trials <= high.

    Raises:
        ValueError: successes is outside 0..trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    shrink = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / shrink
    margin = z / shrink * sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # At 0 and 1 the exact bound is the share itself; rounding must not pass it.
    return min(share, max(0.0, centre - margin)), max(share, min(1.0, centre + margin))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithm of softmax, (N, C) float64."""
    logits = _checked_rows(logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Place of each row's true class among its logits (N,), 0 for the highest."""
    own = logits[np.arange(len(labels)), labels][:, None]  # (N, 1)
    lower_index = np.arange(logits.shape[1]) < labels[:, None]  # (N, C)
    return np.asarray(((logits > own) | ((logits == own) & lower_index)).sum(axis=1))


def _pairs(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """True and predicted class as one number each (N,): true * num_classes + predicted."""
    labels, predictions = (
        _checked_classes(classes, num_classes) for classes in (labels, predictions)
    )
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labels but {len(predictions)} predictions")
    return np.asarray(labels * num_classes + predictions)


def _checked_rows(rows: np.ndarray) -> np.ndarray:
    """Logits or probabilities as (N, C) float64, all finite."""
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"an array of shape {rows.shape}; (N, C) with C >= 1 was expected")
    if not np.isfinite(rows).all():
        raise ValueError("a logit or probability is not finite")
    return rows


def _checked_labels(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """True classes of `rows`, one each and at least one."""
    labels = _checked_classes(labels, rows.shape[1])
    if len(labels) != len(rows):
        raise ValueError(f"{len(labels)} labels for {len(rows)} rows")
    if len(labels) == 0:
        raise ValueError("no rows; a mean needs at least one")
    return labels


def _checked_classes(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Class indices as (N,) int64 within 0..num_classes-1."""
    classes = np.asarray(classes)
    if classes.ndim != 1 or (classes.size and classes.dtype.kind not in "iu"):
        raise ValueError(
            f"classes are {classes.dtype} of shape {classes.shape}; (N,) integers were expected"
        )
    if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
        raise ValueError(f"a class lies outside 0..{num_classes - 1}")
    return classes.astype(np.int64)


def _ratio(part: int, whole: int) -> float:
    """Quotient of two counts; 0 when there is nothing to divide by."""
    return float(part / whole) if whole else 0.0
