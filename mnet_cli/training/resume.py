"""From the directory of a run that was stopped to a job that resumes it."""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnet_cli.data.dataset import DataSet
from mnet_cli.errors import DataError, WeightsError
from mnet_cli.formats.checkpoint import TRAINING_KEYS, Checkpoint, build_from, load_checkpoint
from mnet_cli.models.weights import LoadReport
from mnet_cli.recipe import Recipe, plain_values, restore_recipe
from mnet_cli.system.atomic import remove_leftovers
from mnet_cli.system.text import readable
from mnet_cli.training.job import Job
from mnet_cli.training.prepare import Progress, prepare_model, write_known
from mnet_cli.training.run_directory import lock_run

# Keys that may change when a run is resumed.
FREE = ("output.", "data.root", "data.download", "data.workers", "train.save_minutes")


def resume_job(
    recipe: Recipe,
    data: DataSet,
    device: torch.device,
    run: Path,
    on_progress: Progress | None = None,
) -> Job:
    """Resume a run that was stopped, from its `last.pt`, or from the start if it has none yet.

    Args:
        recipe: The run's own.
        data: The recipe's data; the same images in the same splits as when the run began.
        device: Where to train.
        run: The run directory.
        on_progress: Called with (done, total) bytes while weights are downloaded.

    Raises:
        DataError: The data is not the same any more.
        WeightsError: `last.pt` is damaged or holds too little to resume.
        MachineError: Another process uses the run.
    """
    lock = lock_run(run)
    remove_leftovers(run, owned=True)
    _check_images(run, data)
    state = None
    if (run / "last.pt").exists():
        state = load_checkpoint(run / "last.pt")
        _check_state(run, state, recipe, data)
        model, model_args = build_from(state), dict(state.model_args)
        preprocess, weights = state.preprocess, state.training["account"]
        weights = weights and LoadReport(**weights)
    else:
        model, model_args, preprocess, weights = prepare_model(
            recipe, data.class_names, on_progress
        )
    write_known(run, recipe, data)  # a killed process may have written only some of them
    return Job(recipe, data, model, model_args, preprocess, weights, device, run, lock, state)


def _check_state(run: Path, state: Checkpoint, recipe: Recipe, data: DataSet) -> None:
    """Refuse a `last.pt` of another run, or of a version that saved less."""
    stored = restore_recipe(state.recipe, str(run / "last.pt"))  # an earlier version has fewer keys
    differences = recipe_differences(plain_values(stored), plain_values(recipe))
    whole = set(TRAINING_KEYS) <= state.training.keys()
    if differences or state.class_names != data.class_names or not whole:
        raise WeightsError(
            str(run / "last.pt"),
            "not the state of this run",
            next_step="Train again; best.pt is unchanged",
            details=differences,
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


def _check_images(run: Path, data: DataSet) -> None:
    """Compare the data with the run's `split.csv`."""
    manifest = run / "split.csv"
    if not manifest.exists():
        return
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            before = _digests(row.values() for row in csv.DictReader(file))
    except (ValueError, csv.Error, TypeError) as error:
        raise DataError(
            str(manifest),
            f"not the split.csv of a run ({error})",
            next_step="Restore it, or train again",
        ) from error
    now = _digests(map(readable, row.values()) for row in data.manifest())
    both = len(before) + len(now) - len(np.unique(np.concatenate([before, now])))
    new, gone = len(now) - both, len(before) - both
    if new or gone:
        raise DataError(
            data.root,
            f"{new} images are new or changed and {gone} are missing, compared with {manifest}",
            next_step="Restore them, or start a new run",
        )


def _digests(rows: Iterable[Iterable[str]]) -> NDArray[np.void]:
    """Digests of rows of text, sorted, each once: a million of them take 16 MB."""
    content = bytearray()
    for row in rows:
        line = "\0".join(value or "" for value in row)  # csv gives None where a row is too short
        content += hashlib.blake2b(line.encode(), digest_size=16).digest()
    return np.unique(np.frombuffer(content, "V16"))
