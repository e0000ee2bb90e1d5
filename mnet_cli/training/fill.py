"""Compute the features that a recipe will train on, without training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mnet_cli.data.dataset import DataSet
from mnet_cli.errors import MachineError, RecipeError, UsageError
from mnet_cli.features.boundary import facts_of_machine
from mnet_cli.features.extract import MissingViews, cached_features
from mnet_cli.models.device import choose_device
from mnet_cli.models.freeze import freeze, frozen_parameters, split_frozen
from mnet_cli.recipe import Recipe
from mnet_cli.system.cluster import connected, map_on_cluster
from mnet_cli.training.batches import (
    CacheUse,
    boundary_of,
    cache_use,
    choose_views,
    feature_requests,
)
from mnet_cli.training.job import Job
from mnet_cli.training.prepare import prepare_model

Progress = Callable[[int, int], None]


def fill_cache(
    recipe: Recipe,
    data: DataSet,
    device: torch.device,
    cluster: str | None = None,
    on_features: Progress | None = None,
    on_weights: Progress | None = None,
) -> list[CacheUse]:
    """Compute the features of each phase whose frozen part no phase before it changes.

    Args:
        recipe: The resolved recipe.
        data: The recipe's data, as `prepare_data` gave it.
        device: Where the features are computed, and the recipe will be trained.
        cluster: The address of a Ray cluster; None computes on this machine.
        on_features: Called with (done, total) views.
        on_weights: Called with (done, total) bytes while weights are downloaded.

    Returns:
        What the cache holds for each such phase.

    Raises:
        RecipeError: No phase takes features from the cache.
        UsageError: A cluster is to compute, and the device is no CPU.
        DataError, MachineError, WeightsError: See `cached_features` and `prepare_model`.
    """
    if cluster and device.type != "cpu":
        raise UsageError(
            "--ray",
            f"a cluster computes on CPUs, and features for {device.type} differ in their last bits",
            next_step="Add --device cpu, also when you train",
        )
    if recipe.train.mixup or recipe.train.cutmix:
        raise _nothing_to_fill()
    model, model_args, preprocess, weights = prepare_model(recipe, data.class_names, on_weights)
    job = Job(recipe, data, model, model_args, preprocess, weights, device, Path(), None)
    found: list[CacheUse] = []
    names = {name for name, _ in model.named_parameters()}
    learned: set[str] = set()  # by the phases so far
    start = 1
    for phase in recipe.phases:
        freeze(model, phase.freeze)
        front, _ = split_frozen(model)
        epochs, start = range(start, start + phase.epochs), start + phase.epochs
        frozen = set(frozen_parameters(model, phase.freeze))
        if len(front) and not frozen & learned and recipe.data.cached_views:
            boundary = boundary_of(job)
            views = sorted(set(choose_views(job, boundary, epochs).values()))
            if views:
                features = cached_features(
                    feature_requests(job, boundary, views),
                    job.workers,
                    job.device,
                    on_features,
                    compute=_on_cluster(cluster, job) if cluster else None,
                )
                found.append(cache_use(boundary, len(views), features))
        learned |= names - frozen
    if not found:
        raise _nothing_to_fill()
    return found


def _nothing_to_fill() -> RecipeError:
    return RecipeError(
        "data.cached_views",
        "no phase of this recipe takes features from the cache",
        next_step="Freeze features or features[:N], use neither mixup nor cutmix, and do not set "
        "data.cached_views to 0",
    )


@dataclass(frozen=True)
class RowsOfBatches:
    """The activations of missing views, for the workers of a cluster.

    Attributes:
        missing: The views.
        facts: What the last bits of activations depend on, of the machine that asks.
    """

    missing: MissingViews
    facts: dict[str, object]

    def __call__(self) -> Callable[[range], list[NDArray[np.float32]]]:
        """Check the machine, and return a function from numbers of batches to activations.

        Raises:
            MachineError: This machine would compute other last bits.
        """
        found = facts_of_machine(choose_device("cpu"))
        differing = [name for name, value in self.facts.items() if found[name] != value]
        if differing:
            raise MachineError(
                "a machine of the cluster",
                f"differs from this one in {', '.join(differing)}, so that features would differ "
                "in their last bits",
                next_step="Use machines with the same processor and packages",
            )
        return lambda numbers: [self.missing.rows(number) for number in numbers]


def _on_cluster(
    address: str, job: Job
) -> Callable[[MissingViews], Iterator[tuple[int, NDArray[np.float32]]]]:
    def compute(missing: MissingViews) -> Iterator[tuple[int, NDArray[np.float32]]]:
        work = RowsOfBatches(missing, facts_of_machine(job.device))
        with connected(address):
            for numbers, rows in map_on_cluster(work, len(missing), 1):
                yield from zip(numbers, rows, strict=True)

    return compute
