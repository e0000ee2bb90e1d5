"""The parity check: a file is published only if its outputs match the checkpoint's."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnet_cli.inference.classifier import Classify
from mnet_cli.inference.metrics import softmax, topk_accuracy
from mnet_cli.models.device import one_thread
from mnet_cli.system.quiet import quiet

MIN_RANGE = 1e-6  # of logits that are all the same
MIN_AGREEMENT = 0.995  # share of images with the same best class, in floating point
# Largest difference of a logit, as a share of their range. Half precision has 11 bits, and
# some fifty layers round one after the other.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2}
BATCH = 4  # images that PyTorch takes at a time: the activations of more do not fit the cache
ROUNDING = 1e-5  # the same share where only the order of sums differs; seen: up to 1e-6


@dataclass(frozen=True)
class ParityReport:
    """How a file's outputs compare with the checkpoint's on the same photographs.

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

    def classify(images: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = [images[at : at + BATCH] for at in range(0, len(images), BATCH)]
        with one_thread(), torch.inference_mode():
            return np.concatenate([model(torch.from_numpy(part)).numpy() for part in parts])

    return classify


def fused(model: nn.Module, image_size: int) -> Classify:
    """The same by PyTorch's compiler, which folds batch norms and arranges weights.

    It is several times as fast, and shares no code with how mnet writes graphs.

    Args:
        model: In evaluation mode; it is left as it is.
        image_size: Side S of the images, in pixels.

    Raises:
        RuntimeError: The compiler does not support the model.
    """
    with quiet(), torch.inference_mode():  # torch advises to use another compiler
        example = torch.zeros(BATCH, 3, image_size, image_size)
        traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
        return eager(torch.jit.optimize_for_inference(torch.jit.freeze(traced)))


def is_same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Whether logits (N, C) differ by no more than rounding in another order does."""
    scale = max(float(np.ptp(expected)), MIN_RANGE)
    return bool(np.abs(found - expected).max() <= ROUNDING * scale)


def check_parity(
    found: NDArray[np.float32],
    expected: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    probabilities: bool = False,
) -> ParityReport:
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
        difference, scale = np.abs(found - expected), max(float(np.ptp(expected)), MIN_RANGE)
    return ParityReport(
        images=len(labels),
        max_delta=float(difference.max() / scale),
        agreement=float((found.argmax(1) == expected.argmax(1)).mean()),
        top1=topk_accuracy(found, labels, 1),
        reference_top1=topk_accuracy(expected, labels, 1),
    )


def refusal(report: ParityReport, precision: str, max_drop: float) -> str:
    """Say why a file must not be published; empty if it may.

    In floating point the logits must be the same within rounding. In 8 bits they are not, so
    there the accuracy counts: no more than `max_drop` of it may be lost.
    """
    if precision == "int8":
        drop = report.reference_top1 - report.top1
        # A share of images is a whole number of them: 0.01 of 200 means two.
        allowed = round(drop * report.images) <= max_drop * report.images + 1e-9
        return "" if allowed else f"top-1 falls by {drop:.4f}, at most {max_drop:g} is allowed"
    tolerance = TOLERANCE[precision]
    if not report.max_delta <= tolerance:
        return (
            f"logits differ by {report.max_delta:.1e} of their range, "
            f"at most {tolerance:g} is allowed"
        )
    if report.agreement < MIN_AGREEMENT:
        return (
            f"the best class agrees with the checkpoint's on {100 * report.agreement:.1f}% of the "
            f"images, at least {100 * MIN_AGREEMENT:g}% must"
        )
    return ""
