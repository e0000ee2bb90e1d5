"""The last linear layer, solved exactly: multinomial logistic regression with an L2 penalty.

On frozen features the problem is convex, so it has one solution, without a learning rate or
epochs (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, sections 4.4 and
7.10). A seed decides only which images are together in a fold.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnet_cli.data.folds import assign_folds, same_contents

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

FOLDS = 5
# Half a power of ten each, from the strongest penalty to the weakest.
STRENGTHS = tuple(float(10 ** (2 - step / 2)) for step in range(15))
WORSE = 2  # strengths in a row that are worse than the best end the search
MOST_ITERATIONS, TOLERANCE = 1000, 1e-6  # the largest slope that counts as a minimum
LEAST_SCALE = 1e-3  # of a feature, as a share of the median: one that hardly varies stays small

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
        folds: Of the cross-validation; 0 where there were too few images for it. Images of a class
            that the other folds lack are not scored.
        loss: Mean log loss of images that were not trained on, weighted by class as in training;
            None without folds.
        top1: Their share of correct answers; None without folds.
        iterations: Of L-BFGS, with all images.
        converged: Whether they ended at the minimum.
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
    """

    features: Rows
    labels: Labels
    num_classes: int
    class_weights: NDArray[np.float64]
    sha256: NDArray[np.uint8]


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
    converged = problem.fit(regression, choice.strength, np.ones(len(folds), bool))
    weight, bias = _as_layer(regression)
    losses, _ = problem.score(regression, np.ones(len(folds), bool))
    iterations = int(regression.n_iter_.max())
    return Solution(
        (weight / scale).astype(np.float32),
        (bias - (weight / scale) @ mean).astype(np.float32),
        float(np.average(losses, weights=problem.weights)),
        replace(choice, iterations=iterations, converged=converged),
    )


def _folds(rows: TrainingRows, seed: int) -> NDArray[np.intp]:
    """The fold of each image (N,); copies of a photograph are in the same one."""
    groups = same_contents(rows.sha256)
    count = min(FOLDS, int(groups.max()) + 1)
    return assign_folds(rows.labels, rows.sha256, groups, count, seed)


@dataclass(frozen=True)
class _Problem:
    """Standardized features (M, D), labels and weights (M,) of all views of all images."""

    features: Rows
    labels: Labels
    num_classes: int
    weights: NDArray[np.float64]

    def regression(self) -> "LogisticRegression":
        from sklearn.linear_model import LogisticRegression  # slow to import

        return LogisticRegression(warm_start=True, max_iter=MOST_ITERATIONS, tol=TOLERANCE)

    def fit(self, regression: "LogisticRegression", strength: float, mask: Mask) -> bool:
        """Solve with the rows of a mask (M,); goes on from the regression's last solution.

        Returns:
            Whether the minimum was reached.
        """
        from sklearn.exceptions import ConvergenceWarning

        weights = self.weights * mask
        # Of two classes scikit-learn penalizes w, where the layer has w/2 and -w/2.
        double = 2 if self.num_classes == 2 else 1
        regression.set_params(C=double / (strength * weights.sum()))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            regression.fit(self.features, self.labels, weights)
        return not any(issubclass(one.category, ConvergenceWarning) for one in caught)

    def score(self, regression: "LogisticRegression", mask: Mask) -> tuple[Rows, Mask]:
        """The log loss of each row of a mask, and whether its answer is right."""
        weight, bias = _as_layer(regression)
        logits = self.features[mask] @ weight.T.astype(np.float32) + bias.astype(np.float32)
        labels = self.labels[mask]
        losses = (
            torch.from_numpy(logits).logsumexp(1).numpy()
            - np.take_along_axis(logits, labels[:, None], 1)[:, 0]
        )
        return losses, logits.argmax(1) == labels


def _choose_strength(
    problem: _Problem, folds: NDArray[np.intp], on_progress: Progress | None
) -> Choice:
    count = int(folds.max()) + 1
    pairs: list[tuple[Mask, Mask]] = []  # what is learnt from, and what is scored then
    for fold in range(count):
        known = np.unique(problem.labels[folds != fold])
        scored = (folds == fold) & np.isin(problem.labels, known)
        if len(known) > 1 and scored.any():
            pairs.append((folds != fold, scored))
    if not pairs:
        return Choice(STRENGTHS[len(STRENGTHS) // 2], 0, 0, None, None)
    regressions = [problem.regression() for _ in pairs]
    total = len(STRENGTHS) * len(pairs)
    weights = np.concatenate([problem.weights[scored] for _, scored in pairs])
    found: list[tuple[float, float]] = []  # loss and share of correct answers of each strength
    for number, strength in enumerate(STRENGTHS):
        scores = []
        for done, (regression, (learnt, scored)) in enumerate(
            zip(regressions, pairs, strict=True), 1
        ):
            problem.fit(regression, strength, learnt)
            scores.append(problem.score(regression, scored))
            if on_progress:
                on_progress(number * len(pairs) + done, total)
        losses, correct = (np.concatenate(parts) for parts in zip(*scores, strict=True))
        found.append((float(np.average(losses, weights=weights)), float(correct.mean())))
        best = min(range(len(found)), key=lambda place: found[place][0])
        if number - best >= WORSE:
            break
    if on_progress:
        on_progress(total, total)
    return Choice(STRENGTHS[best], len(found), len(pairs), *found[best])


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
    """Mean and standard deviation of each feature (D,), the latter not below `LEAST_SCALE`."""
    number = features.shape[0] * features.shape[1]
    mean = features.sum((0, 1), dtype=np.float64) / number
    apart = (np.square(view - mean.astype(np.float32)) for view in features)
    scale = np.sqrt(sum(squares.sum(0, dtype=np.float64) for squares in apart) / number)
    varying = scale[scale > 0]
    return mean, np.maximum(scale, LEAST_SCALE * np.median(varying) if len(varying) else 1.0)
