"""What the learning part of a network learns from: images, or features at the frozen boundary."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mnet_cli.data.loaders import EpochBatches, loaded, view_loader
from mnet_cli.evaluate import Evaluation, evaluate, score
from mnet_cli.features.boundary import find_boundary
from mnet_cli.features.extract import Features, cached_features
from mnet_cli.machine import BATCH, cores
from mnet_cli.models.forward import Forward, compile_forward
from mnet_cli.models.freeze import split_frozen
from mnet_cli.train.setup import Job, Progress

Batches = Iterable[tuple[Tensor, Tensor]]

# `cached_views: auto` takes about so many in all, between one and MOST_VIEWS an image: a second
# view is worth half a point of top-1, and what comes after the fourth cannot be told from chance.
VIEWS_IN_ALL, MOST_VIEWS = 1000, 4


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
    if count_views(job):
        return _from_cache(job, batches, epochs, front, rest, on_features)
    if job.device.type == "cpu":
        return _from_workers(job, batches, front, rest)
    return _from_images(job, batches)


def count_views(job: Job) -> int:
    """How many views of each image are kept; 0 where the cache is off."""
    data = job.recipe.data
    if data.cached_views != "auto":
        return data.cached_views
    if data.augment == "none":
        return 1
    return max(1, min(MOST_VIEWS, round(VIEWS_IN_ALL / len(job.data.splits["train"]))))


def _from_images(job: Job, batches: EpochBatches) -> Supply:
    """Every epoch takes new views through the whole network."""
    loader = view_loader(job.train_views(), batches, job.workers, job.device)
    return Supply(
        job.model,
        batches=lambda: loaded(loader),
        evaluate=lambda model: _evaluate_images(job, compile_forward(model, job.device)),
    )


def _from_workers(job: Job, batches: EpochBatches, front: nn.Module, rest: nn.Module) -> Supply:
    """Every epoch takes new views through the frozen part, in the workers, without gradients."""
    below = compile_forward(front, job.device)
    loader = view_loader(job.train_views(), batches, job.workers, job.device, below)

    def evaluate_rest(module: nn.Module) -> Evaluation:
        above = compile_forward(module, job.device, None)
        return _evaluate_images(job, lambda images: above(below(images)))

    return Supply(rest, batches=lambda: loaded(loader), evaluate=evaluate_rest)


def _from_cache(
    job: Job,
    batches: EpochBatches,
    epochs: range,
    front: nn.Sequential,
    rest: nn.Module,
    on_features: Progress | None,
) -> Supply:
    """Views go through the frozen part once, and epochs take turns with them."""
    views = count_views(job)
    view_of = {epoch: (epoch - 1) % views + 1 for epoch in epochs}
    passes = sorted(set(view_of.values()))
    boundary = find_boundary(front, _title(job, front), job.preprocess.image_size, job.device)
    train, val = (
        cached_features(where, dataset, passes, job.workers, job.device, on_features)
        for where, dataset, passes in (
            (boundary, job.train_views(), passes),
            (boundary.exact(), job.val_views(), [0]),  # what is scored is never rounded
        )
    )
    labels = torch.as_tensor(job.data.splits["train"].labels)

    def epoch_batches() -> Batches:
        view = passes.index(view_of[batches.epoch])
        for keys in batches:
            images = np.asarray([index for _, index in keys])
            yield torch.from_numpy(train.take(view, images)), labels[images]

    return Supply(
        rest,
        batches=epoch_batches,
        evaluate=lambda module: _evaluate_features(job, module, val),
        cache=CacheUse(
            boundary.network["title"],
            len(passes),
            train.index.size + val.index.size,
            train.fresh + val.fresh,
            boundary.row_bytes,
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
