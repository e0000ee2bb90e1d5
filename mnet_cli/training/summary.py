"""What a finished run tells scripts: `summary.json`."""

import json
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mnet_cli import __version__
from mnet_cli.data.class_indices import CLASS_INDICES
from mnet_cli.errors import MnetError
from mnet_cli.system.atomic import write_json
from mnet_cli.system.hashing import file_sha256
from mnet_cli.system.signals import StopSignal
from mnet_cli.training.job import Job
from mnet_cli.training.state import TrainState

SUMMARY = "summary.json"


def write_results(job: Job, state: TrainState) -> dict[str, Any]:
    """Write `summary.json` into the run directory and return its content."""
    summary = summarize(job, state)
    write_json(job.run / SUMMARY, summary)
    return summary


@contextmanager
def failure_in_summary(job: Job) -> Iterator[None]:
    """Write why the block failed into `summary.json`, where a launcher started several processes.

    The launcher's own exit code says only that one of them failed.
    """
    try:
        yield
    except (MnetError, StopSignal, KeyboardInterrupt) as error:
        if job.group.size > 1 and job.group.is_main:
            stop = StopSignal(signal.SIGINT) if isinstance(error, KeyboardInterrupt) else error
            reason = {"run": job.run.name, "exit_code": stop.exit_code, "error": str(stop)}
            with suppress(MnetError):
                write_json(job.run / SUMMARY, reason)
        raise


def read_summary(run: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None if the run is not finished."""
    try:
        summary: dict[str, Any] = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return None if summary.get("exit_code") else summary


def summarize(job: Job, state: TrainState) -> dict[str, Any]:
    """Put a finished run into plain values: metrics, seconds, versions, hashes."""
    assert state.best is not None, "a recipe has at least one epoch"
    train_seconds = sum(1 / row["images_per_second"] for row in state.rows)
    return {
        "run": job.run.name,
        "exit_code": 0,
        "arch": job.recipe.model.arch,
        "width_mult": job.recipe.model.width_mult,
        "class_names": list(job.data.class_names),
        "classes_without_images": state.best.without_images(),  # in the validation part
        "images": {split: len(samples) for split, samples in job.data.splits.items()},
        "skipped": len(job.data.skipped),
        "epochs": len(state.rows),
        "best": {
            "epoch": state.best_epoch,
            **state.best.figures(),
            "top1_interval": list(state.best.interval),
        },
        "seconds": state.seconds,
        "images_per_second": len(state.rows) / train_seconds,  # while training
        "weights": {
            "source": job.weights.origin,
            "sha256": job.weights.sha256,
            "loaded": len(job.weights.loaded),
            "replaced": list(job.weights.replaced),
            "missing": list(job.weights.missing),
            "unexpected": list(job.weights.unexpected),
        }
        if job.weights
        else None,
        "solver": state.choice and asdict(state.choice),
        "cache": [asdict(use) for use in state.caches],
        "frozen": {"tensors": state.frozen, "moved": state.moved},
        "device": str(job.device),
        "processes": job.group.size,
        "threads": torch.get_num_threads(),
        "versions": {
            "mnet": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
        },
        "sha256": {
            name: file_sha256(job.run / name)
            for name in ("best.pt", "last.pt", CLASS_INDICES, "split.csv")
        },
    }
