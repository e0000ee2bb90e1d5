"""Where a phase of training gets its batches: from images, or from cached features."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mnet_cli.data.loader import EpochBatches, load_views
from mnet_cli.errors import MachineError
from mnet_cli.features.boundary import Boundary, find_boundary
from mnet_cli.features.extract import FeatureRequest, Features, cached_features
from mnet_cli.inference.evaluate import Evaluation, evaluate, score, summarize_logits
from mnet_cli.inference.metrics import Predictions
from mnet_cli.models.forward import Forward, TorchForward, is_own
from mnet_cli.models.freeze import frozen_title, split_frozen
from mnet_cli.models.onnx_forward import OnnxForward
from mnet_cli.system.machine import BATCH, cores
from mnet_cli.training.job import Job

Batches = Iterable[tuple[Tensor, Tensor]]
Progress = Callable[[int, int], None]

# `cached_views: auto` where only the classifier learns: MAX_VIEWS views an image, and fewer where
# that would be more than TOTAL_VIEWS. A few hundred images gain more than a point of top-1 by four
# views, some thousands hardly anything (scripts/bench_accuracy.py).
TOTAL_VIEWS, MAX_VIEWS = 20_000, 4
# Where convolutions learn, they overfit to views that are repeated, so each epoch has a new one;
# beyond so many the cache would take more disk than it saves time.
MAX_MAPS = 10


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


class BatchSource(Protocol):
    """Where one phase of training gets its batches and its scores.

    Attributes:
        module: What is trained: the network, or what lies above the frozen boundary.
        steps: Batches of an epoch.
        cache: What came from the cache; None where it is not used.
        note: What is unusual about it; empty if nothing is.
    """

    module: nn.Module
    steps: int
    cache: CacheUse | None
    note: str

    def batches(self, epoch: int, start: int) -> Batches:
        """Give an epoch's inputs of `module` (N, …) and labels (N,).

        Args:
            epoch: Counted from 1; to be called with each epoch of the phase in turn.
            start: The first batch to give, counted from 0.
        """

    def evaluate(self, module: nn.Module, on_progress: Progress) -> Evaluation:
        """Score `module`, or a copy of it, on the validation images."""


class LiveBatches:
    """Every epoch takes new views of the images.

    Args:
        job: The run.
        order: The keys of an epoch's batches.
        epochs: The epochs of the phase, counted from 1.
        start: The epoch that training starts in, and the batches of it that are done.
        frozen: Take images through the frozen part in the worker processes, without gradients.
        note: As in `BatchSource`.
    """

    module: nn.Module
    below: OnnxForward | TorchForward | None
    cache: CacheUse | None = None

    def __init__(
        self,
        job: Job,
        order: EpochBatches,
        epochs: range,
        start: tuple[int, int],
        *,
        frozen: bool,
        note: str = "",
    ) -> None:
        self.job, self.steps, self.note = job, len(order), note
        self.module, self.below = job.model, None
        if frozen:
            front, self.module = split_frozen(job.model)
            self.below = job.compile(front)
            self.note = note or self.below.note
        first, done = start
        keys = chain.from_iterable(map(order.keys, range(first, epochs.stop)))
        # The workers go on from one epoch to the next without a pause.
        self.stream = load_views(
            job.train_views(), islice(keys, done, None), job.workers, job.device, self.below
        )

    def batches(self, epoch: int, start: int) -> Batches:
        """As in `BatchSource`."""
        return islice(self.stream, self.steps - start)

    def evaluate(self, module: nn.Module, on_progress: Progress) -> Evaluation:
        """As in `BatchSource`."""
        if (below := self.below) is None:
            return self._score(self.job.compile(module), on_progress)
        above = self.job.compile_above(module)
        return self._score(lambda images: above(below(images)), on_progress)

    def _score(self, classify: Forward, on_progress: Progress) -> Evaluation:
        job, val = self.job, self.job.data.splits["val"]
        on_cpu = job.device.type == "cpu"
        return evaluate(
            classify,
            job.preprocess,
            job.data.files("val"),
            val.labels,
            job.data.class_names,
            batch_size=BATCH if on_cpu else job.recipe.data.batch_size,
            parallel=on_cpu,
            on_progress=on_progress,
        )


class CachedBatches:
    """Views go through the frozen part once, and epochs take turns with them.

    Args:
        job: The run.
        order: The keys of an epoch's batches.
        boundary: The frozen part.
        view_of: For each epoch the view of each image that it takes.
        on_features: Called with (done, total) while features are computed.

    Raises:
        DataError, MachineError: As `cached_features` does.
    """

    def __init__(
        self,
        job: Job,
        order: EpochBatches,
        boundary: Boundary,
        view_of: Mapping[int, int],
        on_features: Progress,
    ) -> None:
        self.job, self.order, self.view_of = job, order, view_of
        self.steps, self.note = len(order), boundary.note
        self.module: nn.Module = split_frozen(job.model)[1]
        self.views = sorted(set(view_of.values()))
        self.train, self.val = cached_features(
            [
                FeatureRequest(boundary, job.train_views(), self.views),
                # What is scored is exact: it is never rounded to half precision.
                FeatureRequest(boundary.exact(), job.val_views(), [1]),
            ],
            job.workers,
            job.device,
            on_features,
        )
        self.cache: CacheUse | None = CacheUse(
            boundary=boundary.network["title"],
            views=len(self.views),
            rows=self.train.index.size + self.val.index.size,
            fresh=self.train.fresh + self.val.fresh,
            row_bytes=boundary.row_bytes,
        )

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As in `BatchSource`."""
        labels = torch.as_tensor(self.job.data.splits["train"].labels)
        view = self.views.index(self.view_of[epoch])
        for keys in islice(self.order.keys(epoch), start, None):
            images = np.asarray([index for _, index in keys])
            yield torch.from_numpy(self.train.take(view, images)), labels[images]

    def evaluate(self, module: nn.Module, on_progress: Progress) -> Evaluation:
        """As in `BatchSource`; on every core."""
        forward = self.job.compile_above(module)
        labels, val = self.job.data.splits["val"].labels, self.val
        starts = range(0, len(labels), BATCH)

        def predict(start: int) -> Predictions:
            return _predictions(forward, val, labels, start)

        def counted(blocks: Iterable[Predictions]) -> Iterator[Predictions]:
            for start, block in zip(starts, blocks, strict=True):
                yield block
                on_progress(min(start + BATCH, len(labels)), len(labels))

        with ThreadPoolExecutor(cores()) as pool:
            blocks = counted(pool.map(predict, starts))
            data = self.job.data
            return score(blocks, labels, data.class_names, data.files("val"))


def _predictions(
    forward: Forward, val: Features, labels: np.ndarray[tuple[int], np.dtype[np.int64]], start: int
) -> Predictions:
    """What `forward` makes of the features of `BATCH` images from `start` on."""
    chosen = np.arange(start, min(start + BATCH, len(labels)))
    return summarize_logits(forward(val.take(0, chosen)), labels[chosen])


def choose_source(
    job: Job,
    order: EpochBatches,
    epochs: range,
    start: tuple[int, int],
    cached: int | None,
    on_features: Progress,
) -> BatchSource:
    """Choose where a phase gets its batches, now that its frozen part is frozen.

    Args:
        job: The run.
        order: The keys of an epoch's batches.
        epochs: The epochs of the phase, counted from 1.
        start: The epoch that training starts in, and the batches of it that are done.
        cached: Views of each image in the cache that the phase began with, 0 for none, which a
            resumed one must use too; None for a phase that begins.
        on_features: Called with (done, total) while features are computed.

    Raises:
        DataError, MachineError: As `cached_features` does.
    """
    front, _ = split_frozen(job.model)
    cached_views = job.recipe.data.cached_views
    mixing = job.recipe.train.mixup or job.recipe.train.cutmix
    if not len(front) or mixing:  # images are mixed before they enter the network
        return LiveBatches(job, order, epochs, start, frozen=False)
    note = ""
    if cached_views and cached != 0:
        title = f"{job.recipe.model.arch} {frozen_title(job.model, front)}"
        known = is_own(job.model)
        size = job.preprocess.image_size
        boundary = find_boundary(front, title, size, job.device, is_known=known)
        views = choose_views(job, boundary, epochs, cached)
        try:
            if views:
                return CachedBatches(job, order, boundary, views, on_features)
        except MachineError as error:
            if cached_views != "auto" or cached:
                raise
            note = f"without the cache: {error}"
    # Elsewhere autograd skips the frozen part as well, and nothing has to leave the device.
    return LiveBatches(job, order, epochs, start, frozen=job.device.type == "cpu", note=note)


def choose_views(
    job: Job, boundary: Boundary, epochs: range, cached: int | None = None
) -> dict[int, int]:
    """The view of each image that each epoch takes from the cache; empty to use no cache.

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
        views = len(epochs) if len(epochs) <= MAX_MAPS else 0
    else:
        views = auto_views(len(job.data.splits["train"]))
    return {epoch: (epoch - 1) % views + 1 for epoch in epochs} if views else {}


def auto_views(images: int) -> int:
    """How many views of each of so many training images `auto` keeps for a classifier."""
    return max(1, min(MAX_VIEWS, TOTAL_VIEWS // images))
