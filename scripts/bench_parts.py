"""How fast each part is by itself, in images a second, and how near the whole comes to them.

Usage: python scripts/bench_parts.py ROOT WEIGHTS

Prints one line of JSON. `bench.py` runs it; the parts take turns here too.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from mnet_cli.data.augment import Augmentation
from mnet_cli.data.check import check_images
from mnet_cli.data.images import read_image
from mnet_cli.data.loaders import KeyBatches, ViewDataset, loaded, view_loader
from mnet_cli.data.preprocess import Preprocess, eval_array
from mnet_cli.data.scan import scan_classes
from mnet_cli.features.boundary import find_boundary
from mnet_cli.features.extract import cached_features
from mnet_cli.machine import BATCH, cores
from mnet_cli.models.freeze import freeze, split_frozen
from mnet_cli.models.published import IMAGENET_MEAN, IMAGENET_STD
from mnet_cli.models.registry import build_model

CPU = torch.device("cpu")
PREPROCESS = Preprocess(224, 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD, (255, 255, 255))
ROUNDS, SOME = 3, 150


def rate(work: Callable[[], int]) -> float:
    """Images a second of `work`, which returns how many it did."""
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def parts_of(root: Path, weights: Path) -> dict[str, Callable[[], int]]:
    """The parts, each a function that does its work once and returns its number of images."""
    found = scan_classes(root / "train")
    paths = [found.root / path for path in found.paths]
    sha256 = check_images(paths).sha256
    model = build_model("mobilenet_v2", 1000).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    freeze(model, "features")
    boundary = find_boundary(split_frozen(model)[0], "bench", PREPROCESS.image_size, CPU)
    noise = np.random.default_rng(0).normal(size=(BATCH, 3, 224, 224)).astype(np.float32)
    seed = iter(range(1_000_000))

    def views() -> ViewDataset:
        labels = np.zeros(len(paths), np.int64)
        crops = Augmentation("crop_flip", 0.08)
        return ViewDataset(paths, labels, sha256, PREPROCESS, crops, next(seed))

    def decode() -> int:
        keys = np.stack([np.ones(len(paths), np.int64), np.arange(len(paths))], axis=1)
        loader = view_loader(
            views(), KeyBatches(keys, BATCH), cores(), CPU, transform=lambda x: x[:, 0, 0, :1]
        )
        return sum(len(batch) for batch, _ in loaded(loader))

    def forward() -> int:
        with ThreadPoolExecutor(cores()) as pool:
            return sum(map(len, pool.map(boundary.forward, [noise] * (4 * SOME // BATCH))))

    def extraction() -> int:
        return cached_features(boundary, views(), [1], cores(), CPU).fresh

    return {
        "decode": decode,
        "forward": forward,
        "extraction": extraction,
        **input_parts(paths[:SOME]),
    }


def input_parts(paths: list[Path]) -> dict[str, Callable[[], int]]:
    """From the file to the network's input on one core: ours, and the classic script's."""
    normalize = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    classic = {
        "train": transforms.Compose(
            [
                transforms.RandomResizedCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                normalize,
            ]
        ),
        "val": transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                normalize,
            ]
        ),
    }

    def theirs(transform: Callable[[Image.Image], Any]) -> Callable[[], int]:
        def work() -> int:
            for path in paths:
                with Image.open(path) as image:
                    transform(image.convert("RGB"))
            return len(paths)

        return work

    def ours_train() -> int:
        sha256 = np.zeros((len(paths), 32), np.uint8)
        labels = np.zeros(len(paths), np.int64)
        crops = Augmentation("crop_flip", 0.08)
        views = ViewDataset(paths, labels, sha256, PREPROCESS, crops, 0)
        for index in range(len(paths)):
            views[(1, index)]
        return len(paths)

    def ours_val() -> int:
        for path in paths:
            eval_array(read_image(path), PREPROCESS)
        return len(paths)

    return {
        "train view a core, mnet": ours_train,
        "train view a core, classic": theirs(classic["train"]),
        "val view a core, mnet": ours_val,
        "val view a core, classic": theirs(classic["val"]),
    }


def main(root: Path, weights: Path) -> dict[str, float]:
    """Time all parts in turn."""
    parts = parts_of(root, weights)
    measured = [{name: rate(work) for name, work in parts.items()} for _ in range(ROUNDS)]
    rates = {name: median(one[name] for one in measured) for name in parts}
    combined = 1 / (1 / rates["decode"] + 1 / rates["forward"])
    rates["decode and forward sharing the cores"] = combined
    rates["extraction as a share of that"] = rates["extraction"] / combined
    return rates


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        sys.stdout.write(json.dumps(main(*map(Path, sys.argv[1:3]))) + "\n")
