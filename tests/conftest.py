"""What several tests share: a tiny data set, a tiny recipe, and a cache folder of their own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnet_cli.cli import console
from mnet_cli.system.atomic import atomic_write

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def no_users_cache(tmp_path_factory):
    """Keep what mnet remembers between runs away from the user's folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(autouse=True)
def own_cache(no_users_cache, tmp_path_factory, monkeypatch):
    """Give each test a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
    """Give each test the settings of a command line without options."""
    monkeypatch.setattr(console, "settings", console.Settings())


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A split data set of three classes that colour alone tells apart; do not change it."""
    return write_photos(tmp_path_factory.mktemp("photos"), train=8, val=4)


@pytest.fixture
def draw_photos():
    """The function that writes such a data set of any size."""
    return write_photos


def write_photos(root: Path, **counts: int) -> Path:
    """Write noisy one-colour JPEGs of 40x48 pixels, `counts` images a class in each split."""
    noise = np.random.default_rng(0)
    for split, count in counts.items():
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = noise.normal(colour, 25, (48, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return root


TINY = """\
schema: 1
model: {arch: mobilenet_v2, width_mult: 0.35, weights: none, freeze: none}
data: {root: ROOT, image_size: 32, batch_size: 5, workers: 0}
train: {epochs: 2, lr: 3.0e-3}
"""


@pytest.fixture(scope="session")
def tiny_text(photos) -> str:
    """The content of `tiny_recipe`."""
    return TINY.replace("ROOT", str(photos))


@pytest.fixture
def tiny_recipe(tmp_path, tiny_text) -> Path:
    """A recipe that trains a small random V2 on `photos` in a second."""
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_text, encoding="utf-8")
    return path


@pytest.fixture
def host_in_names(tmp_path_factory):
    """The function that tells what temporary names of this host have after the pid."""

    def look() -> str:
        folder = tmp_path_factory.mktemp("names")
        with atomic_write(folder / "seen"):
            [path] = folder.glob(".seen.*.tmp")
        return path.suffixes[-2].rpartition("-")[2]

    return look


needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the folder of real photographs and weights is not here"
)
