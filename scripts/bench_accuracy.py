"""Show what the cache costs in accuracy: top-1 by the number of cached views, over several splits.

Usage: .venv/bin/python scripts/bench_accuracy.py ROOT RECIPE WEIGHTS [--seeds 5]
           [--views auto 0] [--set KEY=VALUE …] [--json FILE]

ROOT is a data set with train/ and val/. Its photographs are put together and divided anew by
each seed, class by class and in the same proportion, for one split of a few hundred photographs
cannot tell half a point. Each seed trains RECIPE from WEIGHTS once for each setting of
`data.cached_views`, so that the settings are compared on the same splits. Printed are top-1 of
the best and of the last epoch, and the difference of the last epoch's top-1 to that of the last
setting, with its standard error over the seeds.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from mnet_cli.cli import console
from mnet_cli.data.sources import open_checked
from mnet_cli.data.sources.folder import SPLITS
from mnet_cli.system.atomic import write_json

MNET = [sys.executable, "-c", "from mnet_cli.cli import main; main()"]


def pool(root: Path, target: Path) -> float:
    """Link the photographs of train and val into one folder of classes; val's share of them."""
    counts = {}
    for split, images in open_checked(str(root)).items():
        counts[split] = len(images)
        for image in images if split in SPLITS[:2] else ():
            path = Path(image.where).relative_to(root / split)
            link = target / path.with_stem(f"{split}-{path.stem}")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(image.where).resolve())
    return counts["val"] / (counts["train"] + counts["val"])


def train(recipe: str, given: dict[str, object], folder: Path) -> tuple[float, float]:
    """Top-1 of the best and of the last epoch of one run in a folder of its own."""
    pairs = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    command = [*MNET, "train", "-r", recipe, *pairs, "--out", str(folder), "--json", "-q"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    return float(json.loads(printed)["best"]["top1"]), float(last["top1"])


def compare(options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Train every setting of every seed; the pairs of best and last top-1."""
    found: dict[str, list[tuple[float, float]]] = {views: [] for views in options.views}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        share = pool(options.root.resolve(), scratch / "photographs")
        for seed in range(options.seeds):
            for views, scores in found.items():
                given: dict[str, object] = {
                    "data.root": scratch / "photographs",
                    "data.val_fraction": share,
                    "model.weights": options.weights.resolve(),
                    "train.seed": seed,
                    "data.cached_views": views,
                    **dict(pair.split("=", 1) for pair in options.set),
                }
                run = scratch / f"{seed}-{views}"
                scores.append(train(options.recipe, given, run))
                best, last = scores[-1]
                console.note(f"seed {seed}, {views} views: {best:.3f} best, {last:.3f} last")
    return found


def rows(found: dict[str, list[tuple[float, float]]]) -> list[tuple[str, ...]]:
    """The table: a row a setting."""
    against = list(found.values())[-1]
    table = []
    for views, scores in found.items():
        best, last = zip(*scores, strict=True)
        differences = [one[1] - other[1] for one, other in zip(scores, against, strict=True)]
        error = stdev(differences) / len(differences) ** 0.5
        table.append(
            (
                views,
                f"{mean(best):.4f}",
                f"{mean(last):.4f}",
                f"{stdev(last):.4f}",
                f"{mean(differences):+.4f} ± {error:.4f}",
                " ".join(f"{one:.3f}" for one in last),
            )
        )
    return table


def main() -> None:
    """Read the command line, train, print the table."""
    parser = argparse.ArgumentParser(description="Top-1 by the number of cached views.")
    parser.add_argument("root", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--views", nargs="+", default=["auto", "0"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: two at least, for a standard error")
    found = compare(options)
    columns = (
        "cached_views", ">best epoch", ">last epoch", ">deviation", ">difference", ">each seed",
    )  # fmt: skip
    console.table(columns, rows(found), title=options.recipe)
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
