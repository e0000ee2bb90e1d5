"""What a run leaves for scripts and readers: `summary.json` and `report.html`."""

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from mnet_cli import __version__
from mnet_cli.data.class_indices import CLASS_INDICES
from mnet_cli.system.atomic import write_json
from mnet_cli.system.hashing import file_sha256
from mnet_cli.training.setup import Job
from mnet_cli.training.state import Fit


def write_results(job: Job, result: Fit) -> dict[str, Any]:
    """Write `summary.json` into the run directory and return its content."""
    summary = summarize(job, result)
    write_json(job.run / "summary.json", summary)
    return summary


def summarize(job: Job, result: Fit) -> dict[str, Any]:
    """Put a finished run into plain values: metrics, seconds, versions, hashes."""
    assert result.best is not None, "a recipe has at least one epoch"
    train_seconds = sum(1 / row["images_per_second"] for row in result.rows)
    return {
        "run": job.run.name,
        "arch": job.recipe.model.arch,
        "width_mult": job.recipe.model.width_mult,
        "class_names": list(job.data.class_names),
        "classes_without_images": result.best.without_images(),  # in the validation part
        "images": {split: len(samples) for split, samples in job.data.splits.items()},
        "skipped": len(job.data.skipped),
        "epochs": len(result.rows),
        "best": {
            "epoch": result.best_epoch,
            **result.best.figures(),
            "top1_interval": list(result.best.interval),
        },
        "seconds": result.seconds,
        "images_per_second": len(result.rows) / train_seconds,  # while training
        "weights": {
            "source": job.account.origin,
            "sha256": job.account.sha256,
            "loaded": len(job.account.loaded),
            "replaced": list(job.account.replaced),
            "missing": list(job.account.missing),
            "unexpected": list(job.account.unexpected),
        }
        if job.account
        else None,
        "cache": [asdict(use) for use in result.caches],
        "frozen": {"tensors": result.frozen, "moved": result.moved},
        "device": str(job.device),
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
