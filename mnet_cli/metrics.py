"""Scores of a classifier: pure functions over numpy arrays.

One rule for every function that takes logits or probabilities: a value that is not finite
raises ValueError, so that a diverged model never gets a score. A mean over no images does
not exist and raises ValueError too; a count over none is zero.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np


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


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the true classes, in nats.

    Args:
        logits: (N, C), N >= 1.
        labels: (N,) integers in 0..C-1.

    Raises:
        ValueError: No rows, a logit that is not finite, or labels that do not fit.
    """
    log_probabilities = _log_softmax(logits)
    labels = _checked_labels(labels, log_probabilities)
    return float(-log_probabilities[np.arange(len(labels)), labels].mean())


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
    own = logits[np.arange(len(labels)), labels][:, None]  # (N, 1)
    lower_index = np.arange(logits.shape[1]) < labels[:, None]  # (N, C)
    rank = ((logits > own) | ((logits == own) & lower_index)).sum(axis=1)
    return float((rank < k).mean())


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
    labels, predictions = (
        _checked_classes(classes, num_classes) for classes in (labels, predictions)
    )
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labels but {len(predictions)} predictions")
    pairs = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def per_class(confusion: np.ndarray) -> list[ClassScore]:
    """Precision, recall, F1 and support of every class, in class order.

    A ratio over zero images is 0: the precision of a class never predicted, the recall of
    a class without images, and the F1 of a class that is neither.

    Args:
        confusion: (C, C) counts, rows true.
    """
    hits = np.diagonal(confusion)
    predicted, support = confusion.sum(axis=0), confusion.sum(axis=1)
    return [
        ClassScore(
            precision=_ratio(hit, given),
            recall=_ratio(hit, true),
            f1=_ratio(2 * hit, given + true),
            support=int(true),
        )
        for hit, given, true in zip(hits, predicted, support, strict=True)
    ]


def macro_f1(confusion: np.ndarray) -> float:
    """Unweighted mean F1 over the classes that have images, in 0..1.

    A class without images says nothing about recall and is left out; a class with images
    that was never predicted counts as 0.

    Args:
        confusion: (C, C) counts, rows true.

    Raises:
        ValueError: No class has an image.
    """
    scores = [score.f1 for score in per_class(confusion) if score.support]
    if not scores:
        raise ValueError("the confusion matrix is empty; at least one image was expected")
    return float(np.mean(scores))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: how far confidence is from accuracy, in 0..1.

    Rows are binned by their highest probability into equal intervals (a, b] of 0..1; the
    result is the mean gap between accuracy and confidence over the bins, each weighted by
    its rows. Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.

    Args:
        probabilities: (N, C) in 0..1, N >= 1.
        labels: (N,) integers in 0..C-1.
        bins: Number of intervals, at least 1.

    Raises:
        ValueError: No rows, no bins, a value outside 0..1, or labels that do not fit.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; at least 1 was expected")
    probabilities = _checked_rows(probabilities)
    labels = _checked_labels(labels, probabilities)
    # Float32 softmax may pass 1 by a few units in the last place.
    if probabilities.min() < -1e-5 or probabilities.max() > 1 + 1e-5:
        raise ValueError("a probability lies outside 0..1; logits go through softmax first")
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


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
