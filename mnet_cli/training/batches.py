"""Where a phase of training gets its batches: from images, or from cached features."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnet_cli.data.loader import EpochBatches, load_views
from mnet_cli.errors import MachineError
from mnet_cli.features.boundary import Boundary, find_boundary
from mnet_cli.features.extract import FeatureRequest, Features, cached_features
from mnet_cli.inference.evaluate import Evaluation, evaluate, score, summarize_logits
from mnet_cli.inference.metrics import Predictions, join_predictions
from mnet_cli.models.forward import Forward, TorchForward, is_own
from mnet_cli.models.freeze import frozen_title, split_frozen
from mnet_cli.models.onnx_forward import OnnxForward
from mnet_cli.system.machine import BATCH, cores
from mnet_cli.system.process_group import ProcessGroup
from mnet_cli.training.distributed import Part, images_of, part_of
from mnet_cli.training.job import Job


@dataclass(frozen=True)
class TrainBatch:
    """A batch of one training step.

    Attributes:
        inputs: Of the trained module (n, …): the images of `part`, with the one before the first
            in front of them where images are mixed.
        labels: Of the global batch (N,).
        part: What this process has of it.
    """

    inputs: Tensor
    labels: Tensor
    part: Part


Batches = Iterable[TrainBatch]
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


def cache_use(boundary: Boundary, views: int, features: Sequence[Features]) -> CacheUse:
    """Say what `features` of `views` views behind a boundary took from the cache."""
    return CacheUse(
        boundary=boundary.network["title"],
        views=views,
        rows=sum(some.index.size for some in features),
        fresh=sum(some.fresh for some in features),
        row_bytes=boundary.row_bytes,
    )


def feature_requests(job: Job, boundary: Boundary, views: Sequence[int]) -> list[FeatureRequest]:
    """The features of the training images in some views, and those of the validation images."""
    return [
        FeatureRequest(boundary, job.train_views(), views),
        # What is scored is exact: it is never rounded to half precision.
        FeatureRequest(boundary.exact(), job.val_views(), [1]),
    ]


class BatchSource(Protocol):
    """Where one phase of training gets its batches and its scores.

    Attributes:
        module: What is trained: the network, or what lies above the frozen boundary.
        steps: Batches of an epoch.
        cache: What came from the cache; None where it is not used.
        note: What is unusual about it; empty if nothing is.
        is_shared: Whether each process takes a part of every batch; otherwise process 0 trains
            alone.
    """

    module: nn.Module
    steps: int
    cache: CacheUse | None
    note: str
    is_shared: bool

    def batches(self, epoch: int, start: int) -> Batches:
        """Give this process's parts of an epoch's batches.

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
    is_shared = True

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
        self.order, is_mixed = order, job.recipe.train.mixup or job.recipe.train.cutmix
        keys = chain.from_iterable(map(order.keys, range(first, epochs.stop)))
        parts = ((part_of(len(some), job.group), some) for some in islice(keys, done, None))
        mine = (
            [some[place] for place in part.indices(part.extra if is_mixed else 0)]
            for part, some in parts
        )
        # The workers go on from one epoch to the next without a pause.
        self.stream = load_views(job.train_views(), mine, job.workers, job.device, self.below)

    def batches(self, epoch: int, start: int) -> Iterator[TrainBatch]:
        """As in `BatchSource`."""
        labels = torch.as_tensor(self.job.data.splits["train"].labels)
        for keys in islice(self.order.keys(epoch), start, None):
            inputs, _ = next(self.stream)
            images = [index for _, index in keys]
            yield TrainBatch(inputs, labels[images], part_of(len(keys), self.job.group))

    def evaluate(self, module: nn.Module, on_progress: Progress) -> Evaluation:
        """As in `BatchSource`."""
        if (below := self.below) is None:
            return self._score(self.job.compile(module), on_progress)
        above = self.job.compile_above(module)
        return self._score(lambda images: above(below(images)), on_progress)

    def _score(self, classify: Forward, on_progress: Progress) -> Evaluation:
        job, val = self.job, self.job.data.splits["val"]
        on_cpu = job.device.type == "cpu"

        def predict(images: range) -> Predictions:
            places = np.arange(len(val))
            some = val.take((images.start <= places) & (places < images.stop))
            return evaluate(
                classify,
                job.preprocess,
                some,
                some.labels,
                job.data.class_names,
                batch_size=BATCH if on_cpu else job.recipe.data.batch_size,
                parallel=on_cpu,
                on_progress=on_progress,
            ).predictions

        return score_together(job, predict)


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
            feature_requests(job, boundary, self.views),
            job.workers,
            job.device,
            on_features,
            job.group,
        )
        # A head on pooled features takes longer to tell others of than to train.
        self.is_shared = boundary.is_map
        self.cache: CacheUse | None = cache_use(boundary, len(self.views), [self.train, self.val])

    def batches(self, epoch: int, start: int) -> Iterator[TrainBatch]:
        """As in `BatchSource`."""
        labels = torch.as_tensor(self.job.data.splits["train"].labels)
        view = self.views.index(self.view_of[epoch])
        group = self.job.group if self.is_shared else ProcessGroup()
        for keys in islice(self.order.keys(epoch), start, None):
            images = np.asarray([index for _, index in keys])
            part = part_of(len(images), group)
            rows = self.train.take(view, images[part.start : part.stop])
            yield TrainBatch(torch.from_numpy(rows), labels[images], part)

    def train_rows(self) -> NDArray[np.float32]:
        """The features of all views of all training images (V, N, D)."""
        images = np.arange(len(self.job.data.splits["train"]))
        return np.stack([self.train.take(view, images) for view in range(len(self.views))])

    def evaluate(self, module: nn.Module, on_progress: Progress) -> Evaluation:
        """As in `BatchSource`; on every core."""
        forward = self.job.compile_above(module)
        labels, val = self.job.data.splits["val"].labels, self.val

        def predict(images: range) -> Predictions:
            starts = images[::BATCH]
            with ThreadPoolExecutor(cores()) as pool:
                blocks = pool.map(lambda start: _predictions(forward, val, labels, start), starts)
                return join_predictions(counted(starts, blocks))

        def counted(starts: range, blocks: Iterable[Predictions]) -> Iterator[Predictions]:
            for start, block in zip(starts, blocks, strict=True):
                yield block
                on_progress(min(start + BATCH, len(labels)), len(labels))

        return score_together(self.job, predict, is_shared=self.is_shared)


def score_together(
    job: Job, predict: Callable[[range], Predictions], *, is_shared: bool = True
) -> Evaluation:
    """Score the validation images, each by one process; all get the same `Evaluation`.

    Args:
        job: The run.
        predict: Classifies the images at some indices, at least one.
        is_shared: Each process takes a part of the images, and all must call this.
    """
    data, labels = job.data, job.data.splits["val"].labels
    group = job.group if is_shared else ProcessGroup()
    mine = images_of(len(labels), group)
    blocks = group.gather(predict(mine) if len(mine) else None)
    found = [block for block in blocks if block is not None]
    return score(found, labels, data.class_names, data.files("val"))


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
        boundary = boundary_of(job)
        views = choose_views(job, boundary, epochs, cached)
        try:
            if views:
                return CachedBatches(job, order, boundary, views, on_features)
        except MachineError as error:
            needed = job.recipe.train.solver == "exact" or cached_views != "auto" or cached
            if needed or job.group.size > 1:
                raise
            note = f"without the cache: {error}"
    # Elsewhere autograd skips the frozen part as well, and nothing has to leave the device.
    return LiveBatches(job, order, epochs, start, frozen=job.device.type == "cpu", note=note)


def boundary_of(job: Job) -> Boundary:
    """The frozen part of a job's network, as it is frozen now, ready to run."""
    front, _ = split_frozen(job.model)
    return find_boundary(
        front,
        f"{job.recipe.model.arch} {frozen_title(job.model, front)}",
        job.preprocess.image_size,
        job.device,
        is_known=is_own(job.model),
    )


def choose_views(
    job: Job, boundary: Boundary, epochs: range, cached: int | None = None
) -> dict[int, int]:
    """The view of each image that each epoch takes from the cache; empty to use no cache.

    A phase that an earlier version began may have fewer views than `auto` would take now.
    """
    data, most = job.recipe.data, job.augmentation.most_views
    if cached and cached < len(epochs):
        views = cached
    elif data.cached_views != "auto":
        views = data.cached_views
    elif most:
        views = most
    elif boundary.is_map:
        views = len(epochs) if len(epochs) <= MAX_MAPS else 0
    else:
        views = auto_views(len(job.data.splits["train"]))
    if job.recipe.train.solver == "exact":  # its one epoch takes all views
        epochs = range(1, views + 1)
    return {epoch: (epoch - 1) % views + 1 for epoch in epochs} if views else {}


def auto_views(images: int) -> int:
    """How many views of each of so many training images `auto` keeps for a classifier."""
    return max(1, min(MAX_VIEWS, TOTAL_VIEWS // images))
