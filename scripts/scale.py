"""Show that time grows in step with the number of images, and memory hardly at all.

Usage: .venv/bin/python scripts/scale.py [COUNT …]          (1000 10000 100000 unless given)

Draws data sets of small pictures, packs each into tar shards, trains on folder and shards with a
cold and a warm cache, predicts all of it, and prints seconds, images a second and the largest
memory of each command's main process: in all, and without the pages of files, such as the cache's
rows, which the system takes back when it needs them (seen every 20 ms, Linux only).
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from mnet_cli.cli import console

MNET = str(Path(sys.executable).with_name("mnet"))
CLASSES, SIZE = 10, 48
RECIPE = """\
schema: 1
model: {arch: mobilenet_v2, width_mult: 0.35, weights: starter, freeze: features}
data: {root: pictures, image_size: 32, cached_views: 1}
train: {epochs: 1}
"""


def draw(root: Path, count: int) -> None:
    """Draw `count` pictures of noise in ten colours, a tenth of them for validation."""
    for split in ("train", "val"):
        for label in range(CLASSES):
            (root / split / f"class{label}").mkdir(parents=True)

    def one(number: int) -> None:
        noise = np.random.default_rng(number)
        label = number % CLASSES
        colour = np.random.default_rng(10_000_000 + label).integers(40, 215, 3)
        pixels = noise.normal(colour, 30, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
        split = "val" if number // CLASSES % 10 == 0 else "train"
        Image.fromarray(pixels).save(root / split / f"class{label}" / f"{number}.jpg")

    with ThreadPoolExecutor() as pool, console.bar("drawing") as on_progress:
        for done, _ in enumerate(pool.map(one, range(count)), 1):
            on_progress(done, count)


def measure(arguments: list[str], folder: Path, cache: str) -> tuple[float, float, float]:
    """Seconds of an mnet command, its peak megabytes, and those that belong to no file."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / cache)}
    started = time.perf_counter()
    process = subprocess.Popen(
        [MNET, *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL
    )
    own = 0.0
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        own = max(own, _anonymous(process.pid))
        time.sleep(0.02)
    if status:
        raise SystemExit(f"mnet {' '.join(arguments)} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 1024, own


def _anonymous(process: int) -> float:
    """Megabytes that a process holds besides pages of files; 0 where that cannot be told."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def main(counts: list[int]) -> None:
    """Measure each command at each size."""
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            draw(folder / "pictures", count)
            (folder / "scale.yaml").write_text(RECIPE, encoding="utf-8")
            pack = ["data", "pack", "pictures", "shards", "--quiet"]
            rows.append(("pack", "", *figures(count, *measure(pack, folder, "pack"))))
            for layout in ("pictures", "shards"):
                train = ["train", "scale.yaml", "--data", layout, "--quiet"]
                commands = {
                    "train, cold cache": train,
                    "train, warm cache": train,
                    "predict": ["predict", layout, "--json"],
                }
                for title, arguments in commands.items():
                    measured = measure(arguments, folder, f"cache-{layout}")
                    rows.append((title, layout, *figures(count, *measured)))
    columns = ("images", "seconds", "images/s", "peak MB", "without files")
    console.table(("command", "from", *(f">{column}" for column in columns)), sorted(rows))


def figures(count: int, seconds: float, megabytes: float, own: float) -> tuple[str, ...]:
    """What `measure` has found, as cells of the table."""
    rate = f"{count / seconds:,.0f}"
    return f"{count:,}", f"{seconds:.1f}", rate, f"{megabytes:,.0f}", f"{own:,.0f}"


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or [1_000, 10_000, 100_000])
