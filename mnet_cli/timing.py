"""How long classifiers take, measured in turns so that a busy machine hits all of them."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mnet_cli.machine import BATCH, cores
from mnet_cli.runtimes import Classifier

WARM_UP = 3  # calls before any that counts


@dataclass(frozen=True)
class Timing:
    """What one classifier takes.

    Attributes:
        median_ms: Of one image alone, on one thread, in milliseconds.
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
    with ThreadPoolExecutor(cores()) as pool:
        for number in range(-WARM_UP, rounds):
            for name, classifier in classifiers.items():
                side = classifier.preprocess.image_size
                image = np.random.default_rng(0).random((1, 3, side, side), np.float32)
                started = time.perf_counter()
                classifier.classify(image)
                seconds = time.perf_counter() - started
                if number >= 0:
                    latencies[name].append(1000 * seconds)
                if number % 10 == 0:
                    batch = np.repeat(image, BATCH, axis=0)
                    started = time.perf_counter()
                    list(pool.map(classifier.classify, [batch] * 2 * cores()))
                    rates[name].append(2 * cores() * BATCH / (time.perf_counter() - started))
            if on_progress and number >= 0:
                on_progress(number + 1, rounds)
    return {
        name: Timing(
            float(np.median(values)),
            float(np.percentile(values, 95)),
            float(np.median(rates[name])),
        )
        for name, values in latencies.items()
    }
