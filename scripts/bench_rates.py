"""Measure the rate of one core at each part of the work, and what a second process adds.

Usage: .venv/bin/python scripts/bench_rates.py ROOT WEIGHTS [--seconds 4] [--json FILE]

ROOT is a folder with train/ and val/, WEIGHTS a state dict of MobileNetV2 with torchvision's
names. Each part runs in one process on one core, then in two processes on two cores at the same
time, each with one thread. The efficiency is the rate of two divided by twice the rate of one. The
rates are what the time and the machines for a large data set can be computed with.
"""

import argparse
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np

from mnet_cli.cli import console
from mnet_cli.system.atomic import write_json
from mnet_cli.system.plugins import ARCHITECTURES

SIZES = (96, 160, 224)
FORWARD = "forward, {} at {} px"
UNFROZEN = "training without frozen layers, V2 at 96 px"
APART = f"{UNFROZEN}, two networks"
HEAD = "training the classifier on cached features, V2"
RECIPE = """\
schema: 1
model: {{arch: mobilenet_v2, weights: {weights}, freeze: {freeze}}}
data: {{root: {root}, image_size: {size}, batch_size: 32, workers: 0}}
train: {{epochs: {epochs}, lr: 1.0e-3}}
"""

Work = Callable[[], int]


def photographs(root: Path, weights: Path) -> Iterator[tuple[str, Work]]:
    """The parts that read photographs; each does some work and returns its number of images."""
    import torch

    from mnet_cli.data.augment import Augmentation
    from mnet_cli.data.image_files import FileImage
    from mnet_cli.data.loader import ViewDataset
    from mnet_cli.data.preprocess import Preprocess
    from mnet_cli.data.sources import open_checked
    from mnet_cli.data.validate import check_images
    from mnet_cli.features.boundary import find_boundary
    from mnet_cli.features.extract import FeatureRequest, cached_features
    from mnet_cli.inference.predict import predict
    from mnet_cli.models.architecture import IMAGENET_MEAN, IMAGENET_STD
    from mnet_cli.models.forward import compile_forward
    from mnet_cli.models.freeze import freeze, split_frozen
    from mnet_cli.models.registry import build_model

    class Unknown(FileImage):
        """A file that is checked again each time."""

        def stamp(self) -> None:
            return None

    cpu = torch.device("cpu")
    preprocess = Preprocess(224, 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD, (255, 255, 255))
    images = [FileImage(Path(one.where)) for one in open_checked(str(root))["val"]]
    unknown = [Unknown(image.path) for image in images]
    sha256 = check_images(images).sha256
    labels = np.zeros(len(images), np.int64)
    model = build_model("mobilenet_v2", 1000).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    classify = compile_forward(model, cpu)
    freeze(model, "features")
    boundary = find_boundary(split_frozen(model)[0], "rates", 224, cpu)
    numbers = iter(range(1, 1_000_000))

    def views(augmentation: Augmentation) -> ViewDataset:
        return ViewDataset(images, labels, sha256, preprocess, augmentation, next(numbers))

    def decode(augmentation: Augmentation) -> int:
        some = views(augmentation)
        return len([some[(1, index)] for index in range(len(images))])

    def extract(numbers_of_views: int = 1) -> int:
        wanted = FeatureRequest(boundary, views(crops), range(1, numbers_of_views + 1))
        return cached_features([wanted], 0, cpu)[0].fresh

    crops, none = Augmentation("crop_flip", 0.08), Augmentation("none", 1.0)
    [stored] = cached_features([FeatureRequest(boundary, views(crops), [1])], 0, cpu)
    random = np.random.default_rng(0)

    def rows() -> int:
        for _ in range(100):
            stored.take(0, random.integers(0, len(images), 256))
        return 25_600

    yield "check (read, hash, decode)", lambda: len(check_images(unknown).sha256)
    yield "training view, 224 px", lambda: decode(crops)
    yield "evaluation view, 224 px", lambda: decode(none)
    yield "features of V2 into the cache", extract
    yield "rows from the cache", rows
    yield "predict, V2", lambda: len([*predict(classify, preprocess, images)])


def networks() -> Iterator[tuple[str, Work]]:
    """The forward pass of every architecture, in batches of 8 on one thread."""
    import torch

    from mnet_cli.models.forward import compile_forward
    from mnet_cli.models.registry import build_model

    for arch in ARCHITECTURES.names():
        forward = compile_forward(build_model(arch, 1000).eval(), torch.device("cpu"))
        for size in SIZES:
            noise = np.random.default_rng(0).normal(size=(8, 3, size, size)).astype(np.float32)
            yield FORWARD.format(arch, size), partial(_batches, forward, noise)


def _batches(forward: Callable[[Any], Any], noise: Any) -> int:
    for _ in range(4):
        forward(noise)
    return 4 * len(noise)


def one_process(
    core: int, root: Path, weights: Path, seconds: float, barrier: Barrier, results: Any
) -> None:
    """Measure every part on one core, at the same time as the other processes."""
    import torch

    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for parts in (photographs(root, weights), networks()):
            for name, work in parts:
                work()
                barrier.wait()
                done, started = 0, time.perf_counter()
                while (elapsed := time.perf_counter() - started) < seconds:
                    done += work()
                found[name] = done / elapsed
                barrier.wait()
    results.put(found)


def rates(count: int, *arguments: Any) -> dict[str, float]:
    """Images a second of each part, with `count` processes that run at the same time."""
    context = multiprocessing.get_context("spawn")
    results, barrier = context.Queue(), context.Barrier(count)
    cores = sorted(os.sched_getaffinity(0))[:count]
    processes = [
        context.Process(target=one_process, args=(core, *arguments, barrier, results))
        for core in cores
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return {name: sum(one[name] for one in found) for name in found[0]}


def training_rates(groups: list[set[int]], **settings: Any) -> list[float]:
    """Images a second of several trainings that run at the same time, in their last epoch.

    Args:
        groups: The cores of each training; `torchrun` starts a process of one thread on each.
        settings: Fill the gaps of `RECIPE`.
    """
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder, "unfrozen.yaml")
        recipe.write_text(RECIPE.format(**settings), encoding="utf-8")
        runs = [Path(folder, f"run{number}") for number in range(len(groups))]
        started = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                    *("--nproc-per-node", str(len(cores))),
                    *("-m", "mnet_cli", "train", str(recipe), "--out", str(run), "-q"),
                ],
                stdout=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
                preexec_fn=partial(os.sched_setaffinity, 0, cores),
            )
            for cores, run in zip(groups, runs, strict=True)
        ]
        codes = [process.wait() for process in started]
        if any(codes):
            raise SystemExit("a training failed")
        return [_last_rate(run / "metrics.csv") for run in runs]


def _last_rate(metrics: Path) -> float:
    rows = metrics.read_text(encoding="utf-8").splitlines()
    return float(rows[-1].split(",")[rows[0].split(",").index("images_per_second")])


def main() -> None:
    """Read the command line, measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description="Rates of one core, and of two processes.")
    parser.add_argument("root", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--json", type=Path, default=Path("runs/rates.json"))
    options = parser.parse_args()
    root, weights = options.root.resolve(), options.weights.resolve()
    one, two = (rates(count, root, weights, options.seconds) for count in (1, 2))
    files = {"root": root, "weights": weights}
    unfrozen = {**files, "freeze": "none", "size": 96, "epochs": 2}
    first, second = sorted(os.sched_getaffinity(0))[:2]
    [one[UNFROZEN]] = training_rates([{first}], **unfrozen)
    [two[UNFROZEN]] = training_rates([{first, second}], **unfrozen)
    # What these cores give where no process waits for another.
    one[APART], two[APART] = one[UNFROZEN], sum(training_rates([{first}, {second}], **unfrozen))
    # The classifier is trained by one process, however many there are.
    [head] = training_rates([{first}], **files, freeze="features", size=224, epochs=20)
    table = [
        (name, f"{one[name]:,.0f}", f"{two[name]:,.0f}", f"{two[name] / one[name] / 2:.2f}")
        for name in one
    ]
    table.append((HEAD, f"{head:,.0f}", "", ""))
    console.table(("part", ">one process", ">two", ">efficiency"), table)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "python": platform.python_version()}
    write_json(
        options.json,
        {"date": time.strftime("%Y-%m-%d"), **machine, "one": one, "two": two, HEAD: head},
    )


if __name__ == "__main__":
    main()
