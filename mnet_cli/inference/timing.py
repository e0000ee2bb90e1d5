"""How long classifiers take, measured in turns so that a busy machine hits all of them."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mnet_cli.inference.classifier import Classifier
from mnet_cli.system.machine import BATCH, cores

WARM_UP = 3  # calls before any that counts
BURSTS = 5  # measurements of the throughput


@dataclass(frozen=True)
class Timing:
    """What one classifier takes.

    Attributes:
        median_ms: Of one image alone, on one thread, in milliseconds; where the batch is fixed,
            of a batch divided by its images.
        p95_ms: The same, for the slowest twentieth.
        images_per_second: With a batch on every core at a time.
    """

    median_ms: float
    p95_ms: float
    images_per_second: float


def time_classifiers(
    classifiers: Mapping[str, Classifier],
    rounds: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Time each classifier on images of noise, decoding not included.

    Args:
        classifiers: By name.
        rounds: Calls of each with one image; they take turns.
        on_progress: Called with (done, total) rounds.
    """
    latencies: dict[str, list[float]] = {name: [] for name in classifiers}
    rates: dict[str, list[float]] = {name: [] for name in classifiers}
    inputs = {name: _noise(classifier) for name, classifier in classifiers.items()}
    for number in range(-WARM_UP, rounds):
        for name, classifier in classifiers.items():
            started = time.perf_counter()
            classifier.classify(inputs[name])
            seconds = time.perf_counter() - started
            if number >= 0:
                latencies[name].append(1000 * seconds / len(inputs[name]))
        if on_progress and number >= 0:
            on_progress(number + 1, rounds)
    with ThreadPoolExecutor(cores()) as pool:  # apart: it would leave cores warm or busy
        for number in range(-1, BURSTS):
            for name, classifier in classifiers.items():
                batches = [np.repeat(inputs[name][:1], BATCH, axis=0)] * 2 * cores()
                started = time.perf_counter()
                list(pool.map(classifier.classify, batches))
                if number >= 0:
                    images = len(batches) * BATCH
                    rates[name].append(images / (time.perf_counter() - started))
    return {
        name: Timing(
            float(np.median(values)),
            float(np.percentile(values, 95)),
            float(np.median(rates[name])),
        )
        for name, values in latencies.items()
    }


def _noise(classifier: Classifier) -> NDArray[np.float32]:
    """As many images of noise as the classifier computes at a time, or one."""
    side = classifier.preprocess.image_size
    return np.random.default_rng(0).random((classifier.batch or 1, 3, side, side), np.float32)
