"""Show that the cache is not paid for with accuracy: top-1 with it and without it.

Usage: .venv/bin/python scripts/bench_accuracy.py ROOT RECIPE WEIGHTS [SEEDS]      (5 seeds)

Trains RECIPE on ROOT from WEIGHTS once a seed with `cached_views: auto` and once with 0, and
prints the best epoch's top-1 of each, and how the means compare.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from mnet_cli import console

MNET = str(Path(sys.executable).with_name("mnet"))


def top1(root: str, recipe: str, weights: str, seed: int, views: str) -> float:
    """Top-1 of the best epoch of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        given = {
            "data.root": root,
            "model.weights": weights,
            "train.seed": seed,
            "data.cached_views": views,
        }
        pairs = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
        command = [MNET, "train", "-r", recipe, *pairs, "--out", f"{scratch}/run", "--json", "-q"]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return float(json.loads(printed)["best"]["top1"])


def main(root: str, recipe: str, weights: str, seeds: int) -> None:
    """Train each seed both ways and print the table."""
    found: dict[str, list[float]] = {"auto": [], "0": []}
    for seed in range(seeds):
        for views, scores in found.items():
            scores.append(top1(root, recipe, weights, seed, views))
        console.note(f"seed {seed}: {found['auto'][-1]:.3f} with, {found['0'][-1]:.3f} without")
    console.table(
        ("cached_views", ">mean top-1", ">standard deviation", ">each seed"),
        [
            (views, f"{mean(s):.3f}", f"{stdev(s):.3f}", " ".join(f"{one:.3f}" for one in s))
            for views, s in found.items()
        ],
        title=recipe,
    )


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]) if len(sys.argv) > 4 else 5)
