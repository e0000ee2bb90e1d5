"""The last linear layer, solved exactly: multinomial logistic regression with an L2 penalty.

On frozen features the problem is convex, so it has one solution, which neither a learning rate
nor a seed changes (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning,
sections 4.4 and 7.10).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp  # type: ignore[import-untyped]
from torch import nn

from mnet_cli.data.folds import assign_folds

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

FOLDS = 5
# Half a power of ten each, from the strongest penalty to the weakest.
STRENGTHS = tuple(float(10 ** (-step / 2)) for step in range(11))
WORSE = 2  # strengths in a row that are worse than the best end the search
MOST_ITERATIONS = 1000

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Choice:
    """How the strength of the penalty was chosen, by cross-validation.

    Attributes:
        strength: λ of the objective: mean loss + λ/2 · sum of the squared weights, on features of
            mean 0 and variance 1.
        tried: Strengths that were tried.
        folds: Of the cross-validation; 0 where there were too few images for it.
        loss: Mean log loss of images that were not trained on, weighted by class as in training;
            None without folds.
        top1: Their share of correct answers; None without folds.
        iterations: Of L-BFGS, with all images.
        converged: Whether they came to an end before there were `MOST_ITERATIONS`.
    """

    strength: float
    tried: int
    folds: int
    loss: float | None
    top1: float | None
    iterations: int = 0
    converged: bool = True


@dataclass(frozen=True)
class Solution:
    """A solved linear layer.

    Attributes:
        weight: (K, D).
        bias: (K,).
        loss: Mean log loss on the training images, weighted by class.
        choice: How its penalty was chosen.
    """

    weight: Rows
    bias: Rows
    loss: float
    choice: Choice


@dataclass(frozen=True)
class TrainingRows:
    """What a linear layer learns from.

    Attributes:
        features: Of V views of N images (V, N, D).
        labels: The class of each image (N,).
        num_classes: K.
        class_weights: What an image of each class counts (K,).
        sha256: Digests of the images (N, 32).
        groups: The group of each image (N,), which is never divided; see `assign_folds`.
    """

    features: Rows
    labels: Labels
    num_classes: int
    class_weights: NDArray[np.float64]
    sha256: NDArray[np.uint8]
    groups: NDArray[np.intp]


def solve(rows: TrainingRows, seed: int, on_progress: Progress | None = None) -> Solution:
    """Choose the strength of the penalty by cross-validation, then solve with all images.

    Of the strengths the one with the least log loss is taken, at a tie the stronger. Features
    are standardized; the layer takes them as they are, because its weights are scaled back.

    Args:
        rows: What to learn from.
        seed: Of the folds.
        on_progress: Called with (done, total) fits.
    """
    mean, scale = _moments(rows.features)
    views, _, size = rows.features.shape
    standardized = rows.features - mean.astype(np.float32)
    standardized /= scale.astype(np.float32)
    problem = _Problem(
        standardized.reshape(-1, size),
        np.tile(rows.labels, views),
        rows.num_classes,
        np.tile(rows.class_weights[rows.labels] / views, views),
    )
    folds = np.tile(_folds(rows, seed), views)
    choice = _choose_strength(problem, folds, on_progress)
    regression = problem.regression()
    problem.fit(regression, choice.strength, np.ones(len(folds), bool))
    weight, bias = _as_layer(regression)
    losses, _ = problem.score(regression, np.ones(len(folds), bool))
    iterations = int(regression.n_iter_.max())
    return Solution(
        (weight / scale).astype(np.float32),
        (bias - (weight / scale) @ mean).astype(np.float32),
        float(np.average(losses, weights=problem.weights)),
        replace(choice, iterations=iterations, converged=iterations < MOST_ITERATIONS),
    )


def _folds(rows: TrainingRows, seed: int) -> NDArray[np.intp]:
    """The fold of each image (N,)."""
    count = min(FOLDS, int(rows.groups.max()) + 1)
    return assign_folds(rows.labels, rows.sha256, rows.groups, count, seed)


@dataclass(frozen=True)
class _Problem:
    """Standardized features (M, D), labels and weights (M,) of all views of all images."""

    features: Rows
    labels: Labels
    num_classes: int
    weights: NDArray[np.float64]

    def regression(self) -> "LogisticRegression":
        from sklearn.linear_model import LogisticRegression  # slow to import

        return LogisticRegression(warm_start=True, max_iter=MOST_ITERATIONS, tol=1e-4)

    def fit(self, regression: "LogisticRegression", strength: float, mask: Mask) -> None:
        """Solve with the rows of a mask (M,); goes on from the regression's last solution."""
        from sklearn.exceptions import ConvergenceWarning

        weights = self.weights * mask
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is part of the result
            regression.set_params(C=1 / (strength * weights.sum()))
            regression.fit(self.features, self.labels, weights)

    def score(self, regression: "LogisticRegression", mask: Mask) -> tuple[Rows, Mask]:
        """The log loss of each row of a mask, and whether its answer is right."""
        weight, bias = _as_layer(regression)
        logits = self.features[mask] @ weight.T.astype(np.float32) + bias
        labels = self.labels[mask]
        losses = logsumexp(logits, axis=1) - np.take_along_axis(logits, labels[:, None], 1)[:, 0]
        return losses, logits.argmax(1) == labels


def _choose_strength(
    problem: _Problem, folds: NDArray[np.intp], on_progress: Progress | None
) -> Choice:
    count = int(folds.max()) + 1
    held_out = [folds == fold for fold in range(count)]
    # A fold whose other images are of one class alone has nothing to learn from.
    held_out = [mask for mask in held_out if len(np.unique(problem.labels[~mask])) > 1]
    if not held_out:
        return Choice(STRENGTHS[len(STRENGTHS) // 2], 0, 0, None, None)
    regressions = [problem.regression() for _ in held_out]
    weights = np.concatenate([problem.weights[mask] for mask in held_out])
    found: list[tuple[float, float]] = []  # loss and share of correct answers of each strength
    for number, strength in enumerate(STRENGTHS):
        scores = []
        for done, (regression, mask) in enumerate(zip(regressions, held_out, strict=True), 1):
            problem.fit(regression, strength, ~mask)
            scores.append(problem.score(regression, mask))
            if on_progress:
                on_progress(number * len(held_out) + done, len(STRENGTHS) * len(held_out))
        losses, correct = (np.concatenate(parts) for parts in zip(*scores, strict=True))
        found.append((float(np.average(losses, weights=weights)), float(correct.mean())))
        best = min(range(len(found)), key=lambda place: found[place][0])
        if number - best >= WORSE:
            break
    return Choice(STRENGTHS[best], len(found), len(held_out), *found[best])


def _as_layer(regression: "LogisticRegression") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight (K, D) and bias (K,); scikit-learn has one row for two classes."""
    weight = regression.coef_.astype(np.float64)
    bias = regression.intercept_.astype(np.float64)
    if len(weight) == 1:
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


def last_linear(module: nn.Module) -> nn.Linear | None:
    """The linear layer of what is trained, if there is nothing else but dropout; else None."""
    layers = [m for m in module.modules() if not isinstance(m, nn.Sequential | nn.Dropout)]
    if len(layers) == 1 and isinstance(layers[0], nn.Linear) and layers[0].bias is not None:
        return layers[0]
    return None


def _moments(features: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each feature (D,); 1 for the deviation of a constant."""
    number = features.shape[0] * features.shape[1]
    mean = features.sum((0, 1), dtype=np.float64) / number
    apart = (np.square(view - mean.astype(np.float32)) for view in features)
    scale = np.sqrt(sum(squares.sum(0, dtype=np.float64) for squares in apart) / number)
    return mean, np.where(scale > 1e-6 * np.abs(mean).max(initial=1e-6), scale, 1.0)
