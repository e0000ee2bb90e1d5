"""From a recipe to everything that the loop needs."""

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import nn

from mnet_cli.data.augment import Augmentation
from mnet_cli.data.class_indices import write_class_indices
from mnet_cli.data.dataset import DataSet, open_dataset
from mnet_cli.data.loader import ViewDataset
from mnet_cli.data.preprocess import BACKGROUNDS, Preprocess
from mnet_cli.errors import DataError, RecipeError, WeightsError
from mnet_cli.features.cache import cache_cap
from mnet_cli.formats.checkpoint import TRAINING_KEYS, Checkpoint, build_from, load_checkpoint
from mnet_cli.models.freeze import freeze, split_frozen
from mnet_cli.models.published import IMAGENET_MEAN, IMAGENET_STD
from mnet_cli.models.registry import build_model
from mnet_cli.models.weights import FoundWeights, WeightsAccount, find_weights, load_matching
from mnet_cli.recipe import Recipe, dump_recipe, plain_values
from mnet_cli.system.atomic import atomic_write, remove_leftovers, write_csv
from mnet_cli.system.machine import cores
from mnet_cli.system.text import listing, readable
from mnet_cli.training.run_directory import (
    claim_run,
    create_run,
    own_run,
    point_latest,
    write_data_root,
)

Progress = Callable[[int, int], None]
FREE = ("output.", "data.root", "data.workers", "train.save_minutes")  # may change at a resume


@dataclass(frozen=True)
class Job:
    """A training run that is ready to start.

    Attributes:
        recipe: The resolved recipe.
        data: Images with the splits `train` and `val`.
        model: The network, pretrained where the weights fit.
        model_args: What `build_model` got besides the number of classes.
        preprocess: Evaluation's preprocessing, which the weights had a say in.
        account: What the weights gave; None for a random start.
        device: Where to train.
        run: The run directory.
        lock: Held while the run is this process's own.
        kept: What an earlier process kept of this run; None for a new one.
        note: What is not as usual with the run directory.
    """

    recipe: Recipe
    data: DataSet
    model: nn.Module
    model_args: dict[str, Any]
    preprocess: Preprocess
    account: WeightsAccount | None
    device: torch.device
    run: Path
    lock: FileLock
    kept: Checkpoint | None = None
    note: str = ""

    @property
    def workers(self) -> int:
        """Processes that decode and augment."""
        workers = self.recipe.data.workers
        return min(8, cores()) if workers == "auto" else workers

    def train_views(self) -> ViewDataset:
        """The training images as the recipe augments them."""
        data = self.recipe.data
        if data.augment == "none":
            return self._views("train", Augmentation(), seed=0)
        augmentation = Augmentation(data.augment, data.crop_scale_min, data.random_erasing)
        return self._views("train", augmentation, self.recipe.train.seed)

    def val_views(self) -> ViewDataset:
        """The validation images as evaluation sees them."""
        return self._views("val", Augmentation(), seed=0)

    def _views(self, split: str, augmentation: Augmentation, seed: int) -> ViewDataset:
        samples, files = self.data.splits[split], self.data.files(split)
        return ViewDataset(
            files, samples.labels, samples.sha256, self.preprocess, augmentation, seed
        )


def prepare_data(
    recipe: Recipe, on_progress: Progress | None = None, root: Path | None = None
) -> DataSet:
    """Scan, check and split the recipe's data set.

    Args:
        recipe: The resolved recipe.
        on_progress: Called with (done, total) while images are checked.
        root: Where the data set is; None for where the recipe says.

    Raises:
        DataError: The data set cannot be trained on.
    """
    data = open_dataset(
        str(root or recipe.data.root),
        val_fraction=recipe.data.val_fraction,
        seed=recipe.train.seed,
        skip_bad=recipe.data.skip_bad,
        on_progress=on_progress,
    )
    if not {"train", "val"} <= data.splits.keys():
        raise DataError(
            recipe.data.root,
            "one folder of classes without a validation part",
            "train/ and val/ folders were expected",
            "Let mnet set some aside: --set data.val_fraction=0.2",
        )
    gone = data.without_images("train")
    if gone:
        raise DataError(
            recipe.data.root,
            f"no usable training image of {listing(gone)}",
            "at least one a class was expected",
            "Add images, or remove the class",
        )
    return data


def prepare_model(
    recipe: Recipe, class_names: Sequence[str], on_progress: Progress | None = None
) -> tuple[nn.Module, dict[str, Any], Preprocess, WeightsAccount | None]:
    """Build the recipe's network and load its weights where they fit.

    Returns:
        The network, its arguments, the preprocessing and the account of the loading.

    Raises:
        WeightsError, RecipeError, MachineError: See `find_weights` and `load_matching`.
    """
    wanted = recipe.model
    found = find_weights(wanted.weights, wanted.arch, wanted.width_mult, on_progress=on_progress)
    model_args: dict[str, Any] = {
        "width_mult": wanted.width_mult,
        "reduced_tail": wanted.reduced_tail,
        "dropout": wanted.dropout,
        "norm_eps": found.norm_eps if found else None,
    }
    torch.manual_seed(recipe.train.seed)  # the head's first weights
    model = build_model(wanted.arch, len(class_names), **model_args)
    account = load_matching(model, found, class_names) if found else None
    return model, model_args, prepare_preprocess(recipe, found), account


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
) -> Job:
    """Build the model, load its weights and make the run directory.

    The run directory comes last, so that nothing is left behind by what fails before.

    Args:
        recipe: The resolved recipe.
        data: The recipe's data, as `prepare_data` gave it.
        device: Where to train.
        out: The run directory; None for a new one under the recipe's `output`.
        on_progress: Called with (done, total) bytes while weights are downloaded.

    Raises:
        RecipeError, WeightsError, MachineError, UsageError: See the parts.
    """
    model, model_args, preprocess, account = prepare_model(recipe, data.class_names, on_progress)
    _check_phases(recipe, model)
    run, lock, note = prepare_run(recipe, data, out)
    return Job(recipe, data, model, model_args, preprocess, account, device, run, lock, note=note)


def resume_job(
    recipe: Recipe,
    data: DataSet,
    device: torch.device,
    run: Path,
    on_progress: Progress | None = None,
) -> Job:
    """Take up a run that was stopped, from its `last.pt`, or from the start if it has none yet.

    Args:
        recipe: The run's own.
        data: The recipe's data; the same images in the same splits as when the run began.
        device: Where to train.
        run: The run directory.
        on_progress: Called with (done, total) bytes while weights are downloaded.

    Raises:
        DataError: The data is not the same any more.
        WeightsError: `last.pt` is damaged or keeps too little to go on.
        MachineError: Another process owns the run.
    """
    lock = own_run(run)
    remove_leftovers(run, owned=True)
    _refuse_changed(run, data)
    kept = None
    if (run / "last.pt").exists():
        kept = load_checkpoint(run / "last.pt")
        _refuse_strange(run, kept, recipe, data)
        model, model_args = build_from(kept), dict(kept.model_args)
        preprocess, account = kept.preprocess, kept.training["account"]
        account = account and WeightsAccount(**account)
    else:
        model, model_args, preprocess, account = prepare_model(
            recipe, data.class_names, on_progress
        )
    write_known(run, recipe, data)  # a kill may have left a part of it
    return Job(recipe, data, model, model_args, preprocess, account, device, run, lock, kept)


def _refuse_strange(run: Path, kept: Checkpoint, recipe: Recipe, data: DataSet) -> None:
    """Refuse a `last.pt` that another run, or a version that kept less, has written."""
    differences = recipe_differences(kept.recipe, plain_values(recipe))
    whole = set(TRAINING_KEYS) <= kept.training.keys()
    if differences or kept.class_names != data.class_names or not whole:
        raise WeightsError(
            str(run / "last.pt"),
            "not the state of this run",
            "what this version of mnet train kept of it was expected",
            "Train again; best.pt is as it was",
            differences,
        )


def recipe_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys in which two recipes, as plain values, train differently; a line each."""
    flat, other = dict(_flat(before, "")), dict(_flat(now, ""))
    return [
        f"{key}: {flat.get(key)!r} in the run, {other.get(key)!r} now"
        for key in sorted(flat.keys() | other.keys())
        if flat.get(key) != other.get(key) and not key.startswith(FREE)
    ]


def _flat(values: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Nested values as dotted keys."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, values


def _refuse_changed(run: Path, data: DataSet) -> None:
    """Compare the data with the run's `split.csv`."""
    manifest = run / "split.csv"
    if not manifest.exists():
        return
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            before = _digests(row.values() for row in csv.DictReader(file))
    except (ValueError, csv.Error, TypeError) as error:
        raise DataError(
            str(manifest), f"no manifest of a run ({error})", "the run's own was expected"
        ) from error
    now = _digests(map(readable, row.values()) for row in data.manifest())
    both = len(before) + len(now) - len(np.unique(np.concatenate([before, now])))
    new, gone = len(now) - both, len(before) - both
    if new or gone:
        raise DataError(
            data.root,
            f"{new} images are new or changed, {gone} are gone",
            f"the images of {manifest} were expected",
            "Put them back, or train anew",
        )


def _digests(rows: Iterable[Iterable[str]]) -> NDArray[np.void]:
    """Digests of rows of text, sorted, each once: a million of them take 16 MB."""
    content = bytearray()
    for row in rows:
        line = "\0".join(value or "" for value in row)  # csv gives None where a row is too short
        content += hashlib.blake2b(line.encode(), digest_size=16).digest()
    return np.unique(np.frombuffer(content, "V16"))


def _check_phases(recipe: Recipe, model: nn.Module) -> None:
    """Find a wrong name, or a cache without use or size, now, not epochs later."""
    cache_cap()
    fronts = []
    for phase in recipe.phases:
        freeze(model, phase.freeze)
        fronts.append(len(split_frozen(model)[0]))
    if recipe.data.cached_views not in ("auto", 0) and not any(fronts):
        raise RecipeError(
            "data.cached_views",
            f"{recipe.data.cached_views}, but something learns in the network's first layer",
            "only what lies below all that learns can be computed once",
            "Remove it, or freeze features[:N]",
        )


def prepare_run(
    recipe: Recipe, data: DataSet, out: Path | None = None
) -> tuple[Path, FileLock, str]:
    """Make the run directory, own it, and write what is known before training.

    Returns:
        The run directory, its lock, and why `latest` does not lead to it; empty if it does.

    Raises:
        UsageError: `out` is not empty.
        MachineError: The folder cannot be written, or another process owns it.
    """
    root, name = Path(recipe.output.root), recipe.output.name or recipe.model.arch
    run = claim_run(out) if out else create_run(root, name)
    lock = own_run(run)
    note = point_latest(root, run)
    write_known(run, recipe, data)
    return run, lock, note


def write_known(run: Path, recipe: Recipe, data: DataSet) -> None:
    """Write what is known before training: recipe, data set, classes, splits, skipped images."""
    with atomic_write(run / "recipe.yaml", "w") as file:
        file.write(dump_recipe(recipe))
    write_data_root(run, Path(data.root))
    write_class_indices(run, data.class_names)
    write_csv(run / "split.csv", ("path", "class", "split", "sha256"), data.manifest())
    if data.skipped:
        skipped = [{"path": path, "fault": fault} for path, fault in data.skipped]
        write_csv(run / "skipped.csv", ("path", "fault"), skipped)
