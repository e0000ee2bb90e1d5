"""Time mnet against the loops of others, and against what the machine allows.

Usage: .venv/bin/python scripts/bench.py ROOT WEIGHTS [--rounds 3] [--times 1] [--only NAME …]
                                         [--json FILE]

ROOT is a data set with train/ and val/, WEIGHTS a state dict of MobileNetV2 with torchvision's
names. The contenders take turns, each as a whole process from its start to its exit, so that
whatever else the machine does hits all of them; the medians of their times and ratios are what
to quote. --times 4 makes a larger data set first: each photograph four times, a pixel changed.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from mnet_cli.cli import console
from mnet_cli.data.sources.folder import IMAGE_EXTENSIONS
from mnet_cli.system.atomic import write_json
from mnet_cli.system.machine import cores

HERE = Path(__file__).parent
MNET = [str(Path(sys.executable).with_name("mnet"))]
PARTLY = ("model.freeze=features[:14]", "train.epochs=3")


@dataclass(frozen=True)
class Setting:
    """What the contenders work on."""

    root: Path
    weights: Path
    scratch: Path

    def train(self, *overrides: str) -> list[str]:
        """`mnet train` of the recipe to start with."""
        out = self.scratch / "run"
        shutil.rmtree(out, ignore_errors=True)
        given = (f"data.root={self.root}", f"model.weights={self.weights}", *overrides)
        pairs = [part for override in given for part in ("--set", override)]
        return [*MNET, "train", "--recipe", "v2_flowers", *pairs, "--out", str(out), "--json"]

    def classifier(self) -> Path:
        """A run directory to predict with, trained the first time."""
        kept = self.scratch / "kept"
        if not kept.exists():
            subprocess.run(self.train(), check=True, capture_output=True)
            (self.scratch / "run").rename(kept)
        return kept

    def peer(self, name: str) -> list[str]:
        """A loop of `peers.py`."""
        return [sys.executable, str(HERE / "peers.py"), name, str(self.root), str(self.weights)]

    def forget(self) -> None:
        """Empty the cache that mnet is given here."""
        shutil.rmtree(self.scratch / "cache", ignore_errors=True)


@dataclass(frozen=True)
class Contender:
    """A command to time.

    Attributes:
        title: What it is, for the table.
        command: Builds it; called before each run, outside the time.
        against: The contender whose time is divided by this one's.
        package: What must be installed for it; empty if nothing else.
    """

    title: str
    command: Callable[[Setting], list[str]]
    against: str = ""
    package: str = ""


def _cold(*overrides: str) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        setting.forget()
        return setting.train(*overrides)

    return command


def _imports(modules: str) -> Callable[[Setting], list[str]]:
    return lambda setting: [sys.executable, "-c", f"import {modules}"]


CONTENDERS = {  # in the order of a round; `warm` has the cache that `cold` has filled
    "classic": Contender("the classic loop", lambda s: s.peer("classic")),
    "tuned": Contender("the classic loop, tuned", lambda s: s.peer("tuned"), "classic"),
    "fastai": Contender("fastai, frozen", lambda s: s.peer("fastai"), "classic", "fastai"),
    "timm": Contender("timm's pipeline", lambda s: s.peer("timm"), "classic", "timm"),
    "ultralytics": Contender(
        "Ultralytics, frozen", lambda s: s.peer("ultralytics"), "classic", "ultralytics"
    ),
    "cold": Contender("mnet train, cold cache", _cold(), "classic"),
    "warm": Contender("mnet train, warm cache", lambda s: s.train(), "classic"),
    "reference": Contender("one unfrozen epoch, torchvision", lambda s: s.peer("unfrozen")),
    "unfrozen": Contender(
        "one unfrozen epoch, mnet",
        _cold("model.freeze=none", "train.epochs=1", "train.optimizer=sgd"),
        "reference",
    ),
    "partly live": Contender(
        "features[:14] frozen, no cache", _cold(*PARTLY, "data.cached_views=0")
    ),
    "partly": Contender("features[:14] frozen, cold cache", _cold(*PARTLY), "partly live"),
    "script": Contender("predict, plain torchvision", lambda s: s.peer("predict")),
    "predict": Contender(
        "mnet predict",
        lambda s: [*MNET, "predict", "-c", str(s.classifier()), str(s.root), "--json"],
        "script",
    ),
    "imports": Contender("import torch, torchvision", _imports("torch, torchvision")),
    "help": Contender("mnet --help", lambda s: [*MNET, "--help"], "imports"),
    "parts": Contender(
        "decode, forward, extraction",
        lambda s: [sys.executable, str(HERE / "bench_parts.py"), str(s.root), str(s.weights)],
    ),
}


def run(command: list[str], setting: Setting) -> dict[str, Any]:
    """Run a command to its end; its figures, and what it printed last as JSON."""
    environment = os.environ | {"XDG_CACHE_HOME": str(setting.scratch / "cache")}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        output.seek(0)
        errors.seek(0)
        printed, said = output.read().decode(), errors.read().decode(errors="replace")
    if status:
        console.note(f"{' '.join(command)} failed:\n{said[-2000:]}")
        return {}
    return {"wall": wall, "peak_mb": usage.ru_maxrss / 1024, **_result(printed)}


def _result(printed: str) -> dict[str, Any]:
    """Images and top-1 from what a contender printed: its own line, or mnet's document."""
    try:
        result = json.loads(printed)
    except ValueError:  # the lines of `predict`, a help text, or what a peer said before
        last = printed.splitlines()[-1:] or [""]
        if not last[0].startswith("{"):
            return {}
        return (
            {"images": len(printed.splitlines())} if '"probs"' in last[0] else json.loads(last[0])
        )
    if "best" in result:
        trained = result["epochs"] * (result["images"]["train"] + result["images"]["val"])
        return {
            "images": trained,
            "top1": result["best"]["top1"],
            "training_rate": result["images_per_second"],
            "cache": result["cache"],
        }
    return dict(result)


def enlarge(root: Path, target: Path, times: int) -> Path:
    """Copy a data set with each photograph `times` times, a pixel changed in each copy."""
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in IMAGE_EXTENSIONS:
            continue
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        for number in range(times):
            copy = target / path.relative_to(root).with_stem(f"{path.stem}-{number}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            image.putpixel((0, 0), (number, number, number))
            image.save(copy, quality=95)
    return target


def compare(rounds: int, chosen: list[str], setting: Setting) -> dict[str, list[dict[str, Any]]]:
    """Run the contenders in turn, round by round."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with console.bar("benchmark", unit="run") as on_progress:
        for number in range(rounds):
            for place, name in enumerate(chosen, 1):
                figures = run(CONTENDERS[name].command(setting), setting)
                on_progress(number * len(chosen) + place, rounds * len(chosen))
                if figures:
                    runs[name].append(figures)
                    console.note(f"{CONTENDERS[name].title}: {figures['wall']:.1f} s")
    return dict(runs)


def ratios(runs: dict[str, list[dict[str, Any]]], name: str) -> list[float]:
    """The times of the contender it is compared with, divided by its own, round by round."""
    against = CONTENDERS[name].against
    pairs = zip(runs.get(against, ()), runs[name], strict=False)
    return [theirs["wall"] / ours["wall"] for theirs, ours in pairs]


def rows(runs: dict[str, list[dict[str, Any]]]) -> list[tuple[str, ...]]:
    """The table: medians of each contender."""

    def middle(name: str, key: str, form: str) -> str:
        values = [one[key] for one in runs[name] if key in one]
        return format(median(values), form) if values else ""

    return [
        (
            CONTENDERS[name].title,
            middle(name, "wall", ".1f"),
            format(median(found), ".1f") + "x" if (found := ratios(runs, name)) else "",
            f"{median(one['images'] / one['wall'] for one in runs[name]):,.0f}"
            if "images" in runs[name][0]
            else "",
            middle(name, "training_rate", ",.0f"),
            middle(name, "peak_mb", ",.0f"),
            middle(name, "top1", ".3f"),
        )
        for name in runs
    ]


def main() -> None:
    """Read the command line, run, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description="Time mnet against the loops of others.")
    parser.add_argument("root", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--json", type=Path, default=Path("runs/bench.json"))
    options = parser.parse_args()
    installed = {
        name
        for name in options.only
        if not (package := CONTENDERS[name].package) or importlib.util.find_spec(package)
    }
    chosen = [name for name in CONTENDERS if name in installed]
    with tempfile.TemporaryDirectory() as scratch:
        root = options.root.resolve()
        if options.times > 1:
            root = enlarge(root, Path(scratch) / "larger", options.times)
        setting = Setting(root, options.weights.resolve(), Path(scratch))
        runs = compare(options.rounds, chosen, setting)
    columns = ("seconds", "ratio", "images/s", "in training", "peak MB", "top-1")
    console.table(("contender", *(f">{column}" for column in columns)), rows(runs))
    for name, value in runs.get("parts", [{}])[-1].items():
        if name not in ("wall", "peak_mb"):
            console.line(f"{name}: {value:,.0f}" if value > 10 else f"{name}: {value:.2f}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        options.json,
        {
            "date": time.strftime("%Y-%m-%d"),
            "cores": cores(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""),
            "times": options.times,
            "runs": runs,
            "ratios": {name: ratios(runs, name) for name in runs if ratios(runs, name)},
        },
    )


if __name__ == "__main__":
    main()
