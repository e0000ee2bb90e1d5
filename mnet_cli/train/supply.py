"""What the learning part of a network learns from: images, or features at the frozen boundary."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mnet_cli.data.loaders import EpochBatches, ViewDataset, loaded, view_loader
from mnet_cli.evaluate import Evaluation, evaluate, score
from mnet_cli.features.boundary import Boundary, find_boundary
from mnet_cli.features.extract import Features, cached_features
from mnet_cli.machine import BATCH, cores
from mnet_cli.models.forward import Forward, compile_forward
from mnet_cli.models.freeze import split_frozen
from mnet_cli.train.setup import Job, Progress

Batches = Iterable[tuple[Tensor, Tensor]]

# `cached_views: auto` takes about so many views in all, up to MOST_VIEWS an image, the first of
# them evaluation's own: alone it teaches more than one random view does, and with two random
# ones as much as eight.
VIEWS_IN_ALL, MOST_VIEWS = 1000, 3
PLAIN = 0  # the number of evaluation's view; those of random views are counted from 1


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
        batches: Gives an epoch's inputs of `module` (N, …) and labels (N,).
        evaluate: Scores `module`, or a copy of it, on the validation images.
        cache: What came from the cache; None where it is not used.
    """

    module: nn.Module
    batches: Callable[[], Batches]
    evaluate: Callable[[nn.Module], Evaluation]
    cache: CacheUse | None = None


def build_supply(
    job: Job, batches: EpochBatches, epochs: range, on_features: Progress | None = None
) -> Supply:
    """Choose how a phase is supplied, now that its frozen part is frozen.

    Args:
        job: The run.
        batches: The keys of an epoch's batches.
        epochs: The epochs of the phase, counted from 1.
        on_features: Called with (done, total) while features are computed.

    Raises:
        DataError, MachineError: As `cached_features` does.
    """
    front, rest = split_frozen(job.model)
    mixing = job.recipe.train.mixup or job.recipe.train.cutmix
    if not len(front) or mixing:  # images are mixed before they enter the network
        return _from_images(job, batches)
    if cycle := views_in_turn(job):
        view_of = {epoch: cycle[(epoch - 1) % len(cycle)] for epoch in epochs}
        return _from_cache(job, batches, view_of, front, rest, on_features)
    if job.device.type == "cpu":
        return _from_workers(job, batches, front, rest)
    return _from_images(job, batches)


def views_in_turn(job: Job) -> list[int]:
    """The numbers of the views that the epochs take turns with; none where the cache is off."""
    data = job.recipe.data
    if data.cached_views != "auto":
        random = list(range(1, data.cached_views + 1))
        return random if data.augment != "none" else random and [PLAIN]
    if data.augment == "none":
        return [PLAIN]
    images = len(job.data.splits["train"])
    return list(range(PLAIN, max(1, min(MOST_VIEWS, round(VIEWS_IN_ALL / images)))))


def _from_images(job: Job, batches: EpochBatches) -> Supply:
    """Every epoch takes new views through the whole network."""
    loader = view_loader(job.random_views(), batches, job.workers, job.device)
    return Supply(
        job.model,
        batches=lambda: loaded(loader),
        evaluate=lambda model: _evaluate_images(job, compile_forward(model, job.device)),
    )


def _from_workers(job: Job, batches: EpochBatches, front: nn.Module, rest: nn.Module) -> Supply:
    """Every epoch takes new views through the frozen part, in the workers, without gradients."""
    below = compile_forward(front, job.device)
    loader = view_loader(job.random_views(), batches, job.workers, job.device, below)

    def evaluate_rest(module: nn.Module) -> Evaluation:
        above = compile_forward(module, job.device, None)
        return _evaluate_images(job, lambda images: above(below(images)))

    return Supply(rest, batches=lambda: loaded(loader), evaluate=evaluate_rest)


def _from_cache(
    job: Job,
    batches: EpochBatches,
    view_of: Mapping[int, int],
    front: nn.Sequential,
    rest: nn.Module,
    on_features: Progress | None,
) -> Supply:
    """Each view goes through the frozen part once; `view_of` gives an epoch's view."""
    boundary = find_boundary(front, _title(job, front), job.preprocess.image_size, job.device)

    def features(views: ViewDataset, numbers: Sequence[int], where: Boundary) -> Features:
        return cached_features(where, views, numbers, job.workers, job.device, on_features)

    used = set(view_of.values())
    every: list[Features] = []
    rows: dict[int, tuple[Features, int]] = {}  # of each view's number: where its rows are
    for views, numbers in (
        (job.plain_views("train"), used & {PLAIN}),
        (job.random_views(), used - {PLAIN}),
    ):
        if numbers:
            every.append(found := features(views, sorted(numbers), boundary))
            rows |= {number: (found, place) for place, number in enumerate(sorted(numbers))}
    # What is scored is exact: it is never rounded to half precision.
    every.append(val := features(job.plain_views("val"), [PLAIN], boundary.exact()))
    labels = torch.as_tensor(job.data.splits["train"].labels)

    def epoch_batches() -> Batches:
        found, place = rows[view_of[batches.epoch]]
        for keys in batches:
            images = np.asarray([index for _, index in keys])
            yield torch.from_numpy(found.take(place, images)), labels[images]

    return Supply(
        rest,
        batches=epoch_batches,
        evaluate=lambda module: _evaluate_features(job, module, val),
        cache=CacheUse(
            boundary=boundary.network["title"],
            views=len(used),
            rows=sum(found.index.size for found in every),
            fresh=sum(found.fresh for found in every),
            row_bytes=boundary.row_bytes,
        ),
    )


def _title(job: Job, front: nn.Sequential) -> str:
    """The frozen part's name: `mobilenet_v2 features[:14]`."""
    stages = len(list(job.model.get_submodule("features").children()))
    inner = f"[:{len(front)}]" if len(front) < stages else ""
    return f"{job.recipe.model.arch} features{inner}"


def _evaluate_images(job: Job, classify: Forward) -> Evaluation:
    val = job.data.splits["val"]
    return evaluate(
        classify, job.preprocess, job.data.files("val"), val.labels, job.data.class_names
    )


def _evaluate_features(job: Job, module: nn.Module, val: Features) -> Evaluation:
    """Score `module` on the validation images' features, on every core."""
    forward = compile_forward(module, job.device, None)
    labels = job.data.splits["val"].labels
    images = np.arange(len(labels))
    with ThreadPoolExecutor(cores()) as pool:
        logits = pool.map(
            lambda start: forward(val.take(0, images[start : start + BATCH])),
            range(0, len(labels), BATCH),
        )
        return score(
            np.concatenate(list(logits)), labels, job.data.class_names, job.data.files("val")
        )
