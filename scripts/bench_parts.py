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
from mnet_cli.data.image_files import FileImage
from mnet_cli.data.images import open_photograph, read_image, times_smaller
from mnet_cli.data.loader import ViewDataset, load_views
from mnet_cli.data.preprocess import Preprocess, eval_array
from mnet_cli.data.sources import open_checked
from mnet_cli.data.validate import check_images
from mnet_cli.features.boundary import find_boundary
from mnet_cli.features.extract import FeatureRequest, cached_features
from mnet_cli.models.architecture import IMAGENET_MEAN, IMAGENET_STD
from mnet_cli.models.freeze import freeze, split_frozen
from mnet_cli.models.registry import build_model
from mnet_cli.system.machine import BATCH, cores

CPU = torch.device("cpu")
PREPROCESS = Preprocess(224, 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD, (255, 255, 255))
ROUNDS, SOME = 3, 150


def rate(work: Callable[[], int]) -> float:
    """Images a second of `work`, which returns how many it did."""
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def parts_of(root: Path, weights: Path, scratch: Path) -> dict[str, Callable[[], int]]:
    """The parts, each a function that does its work once and returns its number of images."""
    images = open_checked(str(root / "train"))["all"]
    paths = [Path(image.where) for image in images]
    sha256 = check_images(images).sha256
    model = build_model("mobilenet_v2", 1000).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    freeze(model, "features")
    boundary = find_boundary(split_frozen(model)[0], "bench", PREPROCESS.image_size, CPU)
    noise = np.random.default_rng(0).normal(size=(BATCH, 3, 224, 224)).astype(np.float32)
    seed = iter(range(1_000_000))

    def views() -> ViewDataset:
        labels = np.zeros(len(paths), np.int64)
        crops = Augmentation("crop_flip", 0.08)
        return ViewDataset(images, labels, sha256, PREPROCESS, crops, next(seed))

    def decode() -> int:
        keys = [(1, index) for index in range(len(paths))]
        some = [keys[start : start + BATCH] for start in range(0, len(keys), BATCH)]
        batches = load_views(views(), some, cores(), CPU, transform=lambda x: x[:, 0, 0, :1])
        return sum(len(batch) for batch, _ in batches)

    def forward() -> int:
        with ThreadPoolExecutor(cores()) as pool:
            return sum(map(len, pool.map(boundary.forward, [noise] * (4 * SOME // BATCH))))

    def extraction() -> int:
        [found] = cached_features([FeatureRequest(boundary, views(), [1])], cores(), CPU)
        return found.fresh

    return {
        "decode": decode,
        "forward": forward,
        "extraction": extraction,
        **input_parts("", paths[:SOME]),
        **input_parts("12 megapixels, ", enlarged(paths[::70], scratch)),
    }


def enlarged(paths: list[Path], folder: Path) -> list[Path]:
    """Photographs of 4000 x 3000 pixels, with some grain in place of the detail they lack."""
    noise = np.random.default_rng(0)
    larger = []
    for number, path in enumerate(paths):
        image = read_image(FileImage(path)).resize((4000, 3000), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, np.int16) + noise.integers(-8, 9, (3000, 4000, 1), np.int16)
        larger.append(folder / f"{number}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(larger[-1], quality=90)
    return larger


def input_parts(what: str, paths: list[Path]) -> dict[str, Callable[[], int]]:
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

    images = [*map(FileImage, paths)]
    sha256 = check_images(images).sha256

    def ours_train() -> int:
        labels = np.zeros(len(paths), np.int64)
        crops = Augmentation("crop_flip", 0.08)
        views = ViewDataset(images, labels, sha256, PREPROCESS, crops, 0)
        return len([views[(1, index)] for index in range(len(paths))])

    def ours_val(fast: bool) -> int:
        for path in paths:
            photograph = open_photograph(FileImage(path), PREPROCESS.background)
            surplus = min(photograph.size) / PREPROCESS.resize
            eval_array(photograph.decode(times_smaller(surplus) if fast else 1), PREPROCESS)
        return len(paths)

    return {
        f"{what}train view a core, mnet": ours_train,
        f"{what}train view a core, classic": theirs(classic["train"]),
        f"{what}val view a core, mnet": lambda: ours_val(fast=False),
        f"{what}val view a core, mnet --fast-decode": lambda: ours_val(fast=True),
        f"{what}val view a core, classic": theirs(classic["val"]),
    }


def main(root: Path, weights: Path, scratch: Path) -> dict[str, float]:
    """Time all parts in turn."""
    parts = parts_of(root, weights, scratch)
    measured = [{name: rate(work) for name, work in parts.items()} for _ in range(ROUNDS)]
    rates = {name: median(one[name] for one in measured) for name in parts}
    combined = 1 / (1 / rates["decode"] + 1 / rates["forward"])
    rates["decode and forward sharing the cores"] = combined
    rates["extraction as a share of that"] = rates["extraction"] / combined
    return rates


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        rates = main(*map(Path, sys.argv[1:3]), Path(scratch))
        sys.stdout.write(json.dumps(rates) + "\n")
