"""Compare recipes, or settings of one, by their accuracy over several splits of a data set.

Usage: .venv/bin/python scripts/bench_accuracy.py ROOT WEIGHTS RECIPE[,KEY=VALUE…] …
           [--seeds 5] [--json FILE]

ROOT is a data set with train/ and val/. Its photographs are put together and divided anew by
each seed, class by class and in the same proportion, for one split of a few hundred photographs
cannot tell half a point. Each seed trains each setting from WEIGHTS, so that they are compared on
the same splits. Printed are top-1 of the best and of the last epoch, log loss of the last one, and
the difference of the last epoch's top-1 to that of the last setting, with its standard error
over the seeds. Where a recipe is solved exactly, top-1 and log loss by cross-validation within the
training part are printed as well.
"""

import argparse
import csv
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
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


@dataclass(frozen=True)
class Scores:
    """What one run scored on the validation images, and by cross-validation on the others."""

    best: float
    last: float
    loss: float
    inside_top1: float
    inside_loss: float


def train(setting: str, given: Mapping[str, object], folder: Path) -> Scores:
    """Train a setting in a folder of its own."""
    recipe, *pairs = setting.split(",")
    pairs += [f"{key}={value}" for key, value in given.items()]
    sets = [part for pair in pairs for part in ("--set", pair)]
    command = [*MNET, "train", "-r", recipe, *sets, "--out", str(folder), "--json", "-q"]
    summary = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    inside = summary["solver"] or {"top1": None, "loss": None}
    return Scores(
        float(summary["best"]["top1"]),
        float(last["top1"]),
        float(last["val_loss"]),
        *(math.nan if inside[name] is None else inside[name] for name in ("top1", "loss")),
    )


def compare(options: argparse.Namespace) -> dict[str, list[Scores]]:
    """Train every setting of every seed."""
    found: dict[str, list[Scores]] = {setting: [] for setting in options.settings}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        share = pool(options.root.resolve(), scratch / "photographs")
        for seed in range(options.seeds):
            for number, (setting, scores) in enumerate(found.items()):
                given = {
                    "data.root": scratch / "photographs",
                    "data.val_fraction": share,
                    "model.weights": options.weights.resolve(),
                    "train.seed": seed,
                }
                scores.append(train(setting, given, scratch / f"{seed}-{number}"))
                console.note(f"seed {seed}, {setting}: {scores[-1]}")
    return found


def rows(found: dict[str, list[Scores]]) -> list[tuple[str, ...]]:
    """The table: a row a setting."""
    against = list(found.values())[-1]
    table = []
    for setting, scores in found.items():
        differences = [one.last - other.last for one, other in zip(scores, against, strict=True)]
        error = stdev(differences) / len(differences) ** 0.5
        table.append(
            (
                setting,
                *(
                    f"{mean(getattr(one, field.name) for one in scores):.4f}"
                    for field in fields(Scores)
                ),
                f"{mean(differences):+.4f} ± {error:.4f}",
                " ".join(f"{one.last:.3f}" for one in scores),
            )
        )
    return table


def main() -> None:
    """Read the command line, train, print the table."""
    parser = argparse.ArgumentParser(description="Accuracy of recipes over several splits.")
    parser.add_argument("root", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("settings", nargs="+", metavar="RECIPE[,KEY=VALUE…]")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: two at least, for a standard error")
    found = compare(options)
    columns = (
        "recipe", ">best epoch", ">last epoch", ">loss", ">inside top-1", ">inside loss",
        ">difference", ">each seed",
    )  # fmt: skip
    console.table(columns, rows(found))
    if options.json:
        write_json(options.json, {name: [*map(asdict, scores)] for name, scores in found.items()})


if __name__ == "__main__":
    main()
