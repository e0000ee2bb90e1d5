"""The gate: a file gets its name only if its answers are the checkpoint's."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnet_cli.inference.metrics import softmax, topk_accuracy
from mnet_cli.runtimes import Classify
from mnet_cli.system.quiet import quiet

LEAST_RANGE = 1e-6  # of logits that are all the same
LEAST_AGREEMENT = 0.995  # of the best classes, in floating point
# Largest difference of a logit, as a share of their range. Half precision has 11 bits, and
# some fifty layers round one after the other.
MOST_DELTA = {"float32": 1e-3, "float16": 1e-2}
TOGETHER = 4  # images that PyTorch takes at a time: the activations of more leave the cache
ROUNDING = 1e-5  # the same share where only the order of sums differs; seen: up to 1e-6


@dataclass(frozen=True)
class Proof:
    """How a file's answers compare with the checkpoint's on the same photographs.

    Attributes:
        images: How many.
        max_delta: Largest difference of a logit, as a share of the range of the logits; of a
            probability where the file gives those.
        agreement: Share of images with the same best class.
        top1: Of the file.
        reference_top1: Of the checkpoint, by PyTorch in float32.
    """

    images: int
    max_delta: float
    agreement: float
    top1: float
    reference_top1: float

    def to_dict(self) -> dict[str, float]:
        """The numbers by name."""
        return asdict(self)


def eager(model: nn.Module) -> Classify:
    """PyTorch's own forward pass of a model, on one thread a call."""
    torch.set_num_threads(1)

    def classify(images: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = [images[at : at + TOGETHER] for at in range(0, len(images), TOGETHER)]
        with torch.inference_mode():
            return np.concatenate([model(torch.from_numpy(part)).numpy() for part in parts])

    return classify


def fused(model: nn.Module, image_size: int) -> Classify:
    """The same by PyTorch's own compiler, which folds batch norms and lays out weights.

    It is several times as fast, and has nothing in common with how mnet writes graphs.

    Args:
        model: In evaluation mode; it is left as it is.
        image_size: Side S of the images, in pixels.

    Raises:
        RuntimeError: The compiler cannot follow the model.
    """
    with quiet(), torch.inference_mode():  # torch advises to use another compiler
        example = torch.zeros(TOGETHER, 3, image_size, image_size)
        traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
        return eager(torch.jit.optimize_for_inference(torch.jit.freeze(traced)))


def is_same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Whether logits (N, C) differ by no more than rounding in another order does."""
    scale = max(float(np.ptp(expected)), LEAST_RANGE)
    return bool(np.abs(found - expected).max() <= ROUNDING * scale)


def compare(
    found: NDArray[np.float32],
    expected: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    probabilities: bool = False,
) -> Proof:
    """Compare logits (N, C) with those expected, both finite.

    Args:
        found: Of the file; logarithms of its probabilities where it gives those.
        expected: Of the checkpoint.
        labels: The true classes (N,).
        probabilities: The file gives probabilities, so these are compared.
    """
    if probabilities:
        difference, scale = np.abs(softmax(found) - softmax(expected)), 1.0
    else:
        difference, scale = np.abs(found - expected), max(float(np.ptp(expected)), LEAST_RANGE)
    return Proof(
        images=len(labels),
        max_delta=float(difference.max() / scale),
        agreement=float((found.argmax(1) == expected.argmax(1)).mean()),
        top1=topk_accuracy(found, labels, 1),
        reference_top1=topk_accuracy(expected, labels, 1),
    )


def fault(proof: Proof, precision: str, max_drop: float) -> str:
    """Say why a file must not be handed over; nothing if it may.

    In floating point the logits must be the same within rounding. In 8 bits they are not, so
    there the accuracy counts: no more than `max_drop` of it may be lost.
    """
    if precision == "int8":
        drop = proof.reference_top1 - proof.top1
        # A share of images is a whole number of them: 0.01 of 200 means two.
        allowed = round(drop * proof.images) <= max_drop * proof.images + 1e-9
        return "" if allowed else f"top-1 falls by {drop:.4f}, at most {max_drop:g} is allowed"
    if not proof.max_delta <= MOST_DELTA[precision]:
        most = MOST_DELTA[precision]
        return f"logits differ by {proof.max_delta:.1e} of their range, at most {most:g} is allowed"
    if proof.agreement < LEAST_AGREEMENT:
        return (
            f"only {100 * proof.agreement:.1f}% of the answers are the checkpoint's, "
            f"at least {100 * LEAST_AGREEMENT:g}% must be"
        )
    return ""
