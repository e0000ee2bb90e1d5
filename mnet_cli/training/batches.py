"""What the learning part of a network learns from: images, or features at the frozen boundary."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor, nn

from mnet_cli.data.loader import EpochBatches, load_views
from mnet_cli.errors import MachineError
from mnet_cli.features.boundary import Boundary, find_boundary
from mnet_cli.features.extract import FeatureRequest, Features, cached_features
from mnet_cli.inference.evaluate import Evaluation, evaluate, score, summarize_logits
from mnet_cli.inference.metrics import Predictions
from mnet_cli.models.forward import Forward, compile_forward
from mnet_cli.models.freeze import frozen_title, split_frozen
from mnet_cli.system.machine import BATCH, cores
from mnet_cli.training.setup import Job, Progress

Batches = Iterable[tuple[Tensor, Tensor]]

# `cached_views: auto` where only the classifier learns: MOST_VIEWS views an image, and fewer where
# that would be more than VIEWS_IN_ALL. A few hundred images gain more than a point of top-1 by four
# views, some thousands hardly anything (scripts/bench_accuracy.py).
VIEWS_IN_ALL, MOST_VIEWS = 20_000, 4
# Where convolutions learn, they overfit to views that come again, so each epoch has a new one;
# beyond so many the cache would take more disk than it saves time.
MOST_MAPS = 10


@dataclass(frozen=True)
class CacheUse:
    """What a phase took from the cache.

    Attributes:
        boundary: What is frozen, such as `features[:14]`.
        views: Views of each training image.
        rows: Views of all images, validation included.
        fresh: How many of them had to be computed.
        row_bytes: Bytes a training row.
    """

    boundary: str
    views: int
    rows: int
    fresh: int
    row_bytes: int


@dataclass(frozen=True)
class Supply:
    """Where one phase of training gets its batches and its scores.

    Attributes:
        module: What is trained: the network, or what lies above the frozen boundary.
        batches: Gives an epoch's inputs of `module` (N, …) and labels (N,), from a batch on
            that is counted from 0; to be called with each epoch of the phase in turn.
        steps: Batches of an epoch.
        evaluate: Scores `module`, or a copy of it, on the validation images.
        cache: What came from the cache; None where it is not used.
        note: Why it is not, where that is a surprise.
    """

    module: nn.Module
    batches: Callable[[int, int], Batches]
    steps: int
    evaluate: Callable[[nn.Module], Evaluation]
    cache: CacheUse | None = None
    note: str = ""


def build_supply(
    job: Job,
    batches: EpochBatches,
    epochs: range,
    position: tuple[int, int],
    cached: int | None = None,
    on_features: Progress | None = None,
) -> Supply:
    """Choose how a phase is supplied, now that its frozen part is frozen.

    Args:
        job: The run.
        batches: The keys of an epoch's batches.
        epochs: The epochs of the phase, counted from 1.
        position: The epoch that training starts in, and the batches of it that are done.
        cached: Views of each image in the cache that the phase began with, 0 for none, with which
            a resumed one must go on; None for a phase that begins.
        on_features: Called with (done, total) while features are computed.

    Raises:
        DataError, MachineError: As `cached_features` does.
    """
    front, rest = split_frozen(job.model)
    cached_views = job.recipe.data.cached_views
    mixing = job.recipe.train.mixup or job.recipe.train.cutmix
    if not len(front) or mixing:  # images are mixed before they enter the network
        return _from_images(job, batches, epochs, position)
    note = ""
    if cached_views and cached != 0:
        title = f"{job.recipe.model.arch} {frozen_title(job.model, front)}"
        boundary = find_boundary(front, title, job.preprocess.image_size, job.device)
        views = choose_views(job, boundary, epochs, cached)
        try:
            if views:
                supply = _from_cache(job, batches, boundary, views, rest, on_features)
                return replace(supply, note=boundary.note)
        except MachineError as error:
            if cached_views != "auto" or cached:
                raise
            note = f"without the cache: {error}"
    # Elsewhere autograd skips the frozen part as well, and nothing has to leave the device.
    live = _from_workers if job.device.type == "cpu" else _from_images
    return replace(live(job, batches, epochs, position), note=note)


def choose_views(
    job: Job, boundary: Boundary, epochs: range, cached: int | None = None
) -> dict[int, int]:
    """The view of each image that each epoch takes from the cache; empty where none are kept.

    A phase that an earlier version began may have fewer views than `auto` would take now.
    """
    data = job.recipe.data
    if cached and cached < len(epochs):
        views = cached
    elif data.augment == "none":
        views = 1
    elif data.cached_views != "auto":
        views = data.cached_views
    elif boundary.is_map:
        views = len(epochs) if len(epochs) <= MOST_MAPS else 0
    else:
        views = auto_views(len(job.data.splits["train"]))
    return {epoch: (epoch - 1) % views + 1 for epoch in epochs} if views else {}


def auto_views(images: int) -> int:
    """How many views of each of so many training images `auto` keeps for a classifier."""
    return max(1, min(MOST_VIEWS, VIEWS_IN_ALL // images))


def _from_images(
    job: Job, batches: EpochBatches, epochs: range, position: tuple[int, int]
) -> Supply:
    """Every epoch takes new views through the whole network."""
    return Supply(
        job.model,
        batches=_live(job, batches, epochs, position),
        steps=len(batches),
        evaluate=lambda model: _evaluate_images(
            job, compile_forward(model, job.device, image_size=job.preprocess.image_size)
        ),
    )


def _live(
    job: Job,
    batches: EpochBatches,
    epochs: range,
    position: tuple[int, int],
    transform: Forward | None = None,
) -> Callable[[int, int], Batches]:
    """New views for every epoch; the workers go on from one to the next without a pause."""
    first, done = position
    remaining = range(first, epochs.stop)
    keys = islice(chain.from_iterable(map(batches.keys, remaining)), done, None)
    stream = load_views(job.train_views(), keys, job.workers, job.device, transform)
    return lambda epoch, start: islice(stream, len(batches) - start)


def _from_workers(
    job: Job, batches: EpochBatches, epochs: range, position: tuple[int, int]
) -> Supply:
    """Every epoch takes new views through the frozen part, in the workers, without gradients."""
    front, rest = split_frozen(job.model)
    below = job.compile(front)

    def evaluate_rest(module: nn.Module) -> Evaluation:
        above = compile_forward(module, job.device, None)
        return _evaluate_images(job, lambda images: above(below(images)))

    return Supply(rest, _live(job, batches, epochs, position, below), len(batches), evaluate_rest)


def _from_cache(
    job: Job,
    batches: EpochBatches,
    boundary: Boundary,
    view_of: Mapping[int, int],
    rest: nn.Module,
    on_features: Progress | None,
) -> Supply:
    """Views go through the frozen part once, and epochs take turns with them."""
    numbers = sorted(set(view_of.values()))
    train, val = cached_features(
        [
            FeatureRequest(boundary, job.train_views(), numbers),
            # What is scored is exact: it is never rounded to half precision.
            FeatureRequest(boundary.exact(), job.val_views(), [1]),
        ],
        job.workers,
        job.device,
        on_features,
    )
    labels = torch.as_tensor(job.data.splits["train"].labels)

    def epoch_batches(epoch: int, start: int) -> Batches:
        view = numbers.index(view_of[epoch])
        for keys in islice(batches.keys(epoch), start, None):
            images = np.asarray([index for _, index in keys])
            yield torch.from_numpy(train.take(view, images)), labels[images]

    return Supply(
        rest,
        batches=epoch_batches,
        steps=len(batches),
        evaluate=lambda module: _evaluate_features(job, module, val),
        cache=CacheUse(
            boundary=boundary.network["title"],
            views=len(numbers),
            rows=train.index.size + val.index.size,
            fresh=train.fresh + val.fresh,
            row_bytes=boundary.row_bytes,
        ),
    )


def _evaluate_images(job: Job, classify: Forward) -> Evaluation:
    val, on_cpu = job.data.splits["val"], job.device.type == "cpu"
    return evaluate(
        classify,
        job.preprocess,
        job.data.files("val"),
        val.labels,
        job.data.class_names,
        batch_size=BATCH if on_cpu else job.recipe.data.batch_size,
        parallel=on_cpu,
    )


def _evaluate_features(job: Job, module: nn.Module, val: Features) -> Evaluation:
    """Score `module` on the validation images' features, on every core."""
    forward = compile_forward(module, job.device, None)
    labels = job.data.splits["val"].labels
    images = np.arange(len(labels))

    def answer(start: int) -> Predictions:
        chosen = images[start : start + BATCH]
        return summarize_logits(forward(val.take(0, chosen)), labels[chosen])

    with ThreadPoolExecutor(cores()) as pool:
        blocks = pool.map(answer, range(0, len(labels), BATCH))
        return score(blocks, labels, job.data.class_names, job.data.files("val"))
