"""From a recipe to a job: data, model and weights, and a new run directory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from mnet_cli.data.class_indices import write_class_indices
from mnet_cli.data.dataset import DataSet, open_dataset
from mnet_cli.data.preprocess import BACKGROUNDS, Preprocess
from mnet_cli.errors import DataError, RecipeError
from mnet_cli.features.cache import cache_cap
from mnet_cli.models.architecture import IMAGENET_MEAN, IMAGENET_STD
from mnet_cli.models.forward import is_own
from mnet_cli.models.freeze import check_pieces, freeze, split_frozen
from mnet_cli.models.registry import build_model
from mnet_cli.models.weights import FoundWeights, LoadReport, find_weights, load_matching
from mnet_cli.recipe import Recipe, dump_recipe
from mnet_cli.system.atomic import atomic_write, write_csv
from mnet_cli.system.process_group import ProcessGroup
from mnet_cli.system.text import listing
from mnet_cli.training.exact import last_linear
from mnet_cli.training.job import Job
from mnet_cli.training.run_directory import (
    claim_run,
    create_run,
    lock_run,
    point_latest,
    write_data_root,
    write_launch,
)

Progress = Callable[[int, int], None]


def prepare_data(
    recipe: Recipe, on_progress: Progress | None = None, root: str | None = None
) -> DataSet:
    """Scan, check and split the recipe's data set.

    Args:
        recipe: The resolved recipe.
        on_progress: Called with (done, total) while images are checked.
        root: Where the data set is; None for the place that the recipe names.

    Raises:
        DataError: The data set cannot be trained on.
    """
    data = open_dataset(
        root or recipe.data.root,
        val_fraction=recipe.data.val_fraction,
        seed=recipe.train.seed,
        skip_bad=recipe.data.skip_bad,
        on_progress=on_progress,
    )
    if not {"train", "val"} <= data.splits.keys():
        raise DataError(
            recipe.data.root,
            "one folder of classes, without a validation part",
            next_step="Set data.val_fraction, as in --set data.val_fraction=0.2",
        )
    gone = data.without_images("train")
    if gone:
        raise DataError(
            recipe.data.root,
            f"no usable training image of {listing(gone)}",
            next_step="Add images, or remove the class",
        )
    return data


def prepare_model(
    recipe: Recipe, class_names: Sequence[str], on_progress: Progress | None = None
) -> tuple[nn.Module, dict[str, Any], Preprocess, LoadReport | None]:
    """Build the recipe's network and load its weights where they fit.

    Returns:
        The network, its options, the preprocessing and the report on the weights.

    Raises:
        WeightsError, RecipeError, MachineError: See `find_weights` and `load_matching`.
    """
    options = recipe.model
    found = find_weights(options.weights, options.arch, options.width_mult, on_progress=on_progress)
    model_args: dict[str, Any] = {
        "width_mult": options.width_mult,
        "reduced_tail": options.reduced_tail,
        "dropout": options.dropout,
        "norm_eps": found.norm_eps if found else None,
    }
    if options.round_nearest is not None:
        model_args["round_nearest"] = options.round_nearest
    if options.head != "linear":  # files without it stay as they were
        model_args["head"] = options.head
    torch.manual_seed(recipe.train.seed)  # the head's first weights
    model = build_model(options.arch, len(class_names), **model_args)
    weights = load_matching(model, found, class_names) if found else None
    return model, model_args, prepare_preprocess(recipe, found), weights


def prepare_preprocess(recipe: Recipe, found: FoundWeights | None) -> Preprocess:
    """Make evaluation's preprocessing from the recipe and what its weights were trained with."""
    size = recipe.data.image_size
    background = BACKGROUNDS[recipe.data.background]
    if found is None:
        return Preprocess(size, size, "bilinear", IMAGENET_MEAN, IMAGENET_STD, background)
    return Preprocess(
        image_size=size,
        resize=round(size / found.crop_ratio),
        interpolation=found.interpolation,
        mean=found.mean,
        std=found.std,
        background=background,
    )


def prepare_job(
    recipe: Recipe,
    data: DataSet,
    device: torch.device,
    out: Path | None = None,
    on_progress: Progress | None = None,
    launch: str = "",
) -> Job:
    """Build the model, load its weights and make the run directory.

    The run directory comes last, so that an error before it leaves nothing behind.

    Args:
        recipe: The resolved recipe.
        data: The recipe's data, as `prepare_data` gave it.
        device: Where to train.
        out: The run directory; None for a new one under the recipe's `output`.
        on_progress: Called with (done, total) bytes while weights are downloaded.
        launch: Of the processes that train; see `ProcessGroup`.

    Raises:
        RecipeError, WeightsError, MachineError, UsageError: See the parts.
    """
    model, model_args, preprocess, weights = prepare_model(recipe, data.class_names, on_progress)
    _check_phases(recipe, model)
    run, lock, note = prepare_run(recipe, data, out, launch)
    return Job(recipe, data, model, model_args, preprocess, weights, device, run, lock, note=note)


def share_job(group: ProcessGroup, prepare: Callable[[], Job | None]) -> Job | None:
    """Prepare a job in process 0 alone, and give it to all processes of a group.

    Args:
        group: The processes, all of which must call this.
        prepare: Gives the job, or None if there is nothing to do.

    Returns:
        The job, with the group and the device of this process.
    """
    own: Job | None = None

    def parts() -> tuple[Job, dict[str, Tensor]] | None:
        nonlocal own
        own = prepare()
        # A network of another package may be one that cannot be pickled.
        if own is None:
            return None
        return replace(own, model=nn.Module(), lock=None), own.model.state_dict()

    shared = group.from_main(parts)
    if shared is None:
        return None
    job, tensors = shared
    if own is None:
        model = build_model(job.recipe.model.arch, len(job.data.class_names), **job.model_args)
        model.load_state_dict(tensors)
        own = replace(job, model=model)
    return replace(own, group=group, device=group.device(own.device))


def _check_phases(recipe: Recipe, model: nn.Module) -> None:
    """Refuse a wrong name, or a cache without effect or space, before training starts."""
    cache_cap()
    if not is_own(model):
        check_pieces(model, recipe.data.image_size)
    fronts = []
    for phase in recipe.phases:
        freeze(model, phase.freeze)
        front, rest = split_frozen(model)
        fronts.append(len(front))
        if recipe.train.solver == "exact" and not (len(front) and last_linear(rest)):
            raise RecipeError(
                "train.solver",
                f"exact, but the last linear layer of {recipe.model.arch} cannot be divided off, "
                "or has no bias",
                next_step="Set train.solver: sgd",
            )
    if recipe.data.cached_views not in ("auto", 0) and not any(fronts):
        raise RecipeError(
            "data.cached_views",
            f"{recipe.data.cached_views}, but no part of the network is frozen from its start on",
            next_step="Remove it, or freeze features[:N]",
        )


def prepare_run(
    recipe: Recipe, data: DataSet, out: Path | None = None, launch: str = ""
) -> tuple[Path, FileLock, str]:
    """Make the run directory, lock it, and write what is known before training.

    Returns:
        The run directory, its lock, and why `latest` does not lead to it; empty if it does.

    Raises:
        UsageError: `out` is not empty.
        MachineError: The folder cannot be written, or another process uses it.
    """
    root, name = Path(recipe.output.root), recipe.output.name or recipe.model.arch
    run = claim_run(out) if out else create_run(root, name)
    lock = lock_run(run)
    if launch:
        write_launch(run, launch)
    note = point_latest(root, run)
    write_known(run, recipe, data)
    return run, lock, note


def write_known(run: Path, recipe: Recipe, data: DataSet) -> None:
    """Write what is known before training: recipe, data set, classes, splits, skipped images."""
    with atomic_write(run / "recipe.yaml", "w") as file:
        file.write(dump_recipe(recipe))
    write_data_root(run, data.root)
    write_class_indices(run, data.class_names)
    write_csv(run / "split.csv", ("path", "class", "split", "sha256"), data.manifest())
    if data.skipped:
        skipped = [{"path": path, "fault": fault} for path, fault in data.skipped]
        write_csv(run / "skipped.csv", ("path", "fault"), skipped)
