"""The drawn data set: the same every time, never in the way of a user's files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnet_cli.data.sample import CLASS_NAMES, draw_flower, draw_sample
from mnet_cli.data.sources import open_checked
from mnet_cli.errors import DataError

SMALL = {"train_per_class": 3, "val_per_class": 2, "size": 48}


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_set_has_both_splits_five_classes_and_a_tulip_apart(tmp_path):
    steps = []
    assert draw_sample(tmp_path / "s", **SMALL, on_progress=lambda *step: steps.append(step))
    assert steps == [(k, 26) for k in range(1, 27)]
    found = open_checked(str(tmp_path / "s"))
    assert found["train"].class_names == CLASS_NAMES
    assert found["train"].labels.tolist() == [k for k in range(5) for _ in range(3)]
    assert found["val"].labels.tolist() == [k for k in range(5) for _ in range(2)]
    assert found["train"].names[0] == "train/daisy/000.jpg"
    for path in (tmp_path / "s").rglob("*.jpg"):
        with Image.open(path) as image:
            side = 320 if path.name == "tulip.jpg" else 48
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (side, side))
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_the_same_seed_gives_the_same_bytes_and_no_picture_stands_twice(tmp_path):
    draw_sample(tmp_path / "a", **SMALL)
    draw_sample(tmp_path / "b", **SMALL)
    draw_sample(tmp_path / "c", **SMALL, seed=1)
    a, b, c = (tree(tmp_path / name) for name in "abc")
    assert a == b
    assert len(set(a.values()) | set(c.values())) == 2 * len(a)


def test_a_larger_set_contains_the_smaller(tmp_path):
    draw_sample(tmp_path / "a", train_per_class=1, val_per_class=1, size=32)
    draw_sample(tmp_path / "b", train_per_class=2, val_per_class=2, size=32)
    small, large = tree(tmp_path / "a"), tree(tmp_path / "b")
    del small["sample.json"]
    assert small.items() <= large.items()


def test_drawing_again_changes_nothing(tmp_path):
    draw_sample(tmp_path / "s", **SMALL)
    (tmp_path / "s" / "val" / "roses" / "000.jpg").write_bytes(b"mine")
    before = tree(tmp_path / "s")
    assert draw_sample(tmp_path / "s", **SMALL) is False
    assert tree(tmp_path / "s") == before


@pytest.mark.parametrize("other", [{"seed": 1}, {"size": 64}, {"val_per_class": 3}])
def test_another_sample_in_the_folder_is_refused(tmp_path, other):
    draw_sample(tmp_path / "s", **SMALL)
    before = tree(tmp_path / "s")
    with pytest.raises(DataError, match="holds another sample"):
        draw_sample(tmp_path / "s", **(SMALL | other))
    assert tree(tmp_path / "s") == before


@pytest.mark.parametrize("name", ["thesis.txt", "sample.json"])
def test_a_folder_of_something_else_is_never_touched(tmp_path, name):
    (tmp_path / name).write_text("three years")
    with pytest.raises(DataError, match="holds other files"):
        draw_sample(tmp_path, **SMALL)
    assert tree(tmp_path) == {name: b"three years"}


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "s").write_text("mine")
    with pytest.raises(DataError):
        draw_sample(tmp_path / "s", **SMALL)
    assert (tmp_path / "s").read_text() == "mine"


def test_an_empty_folder_is_filled_and_missing_parents_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "deep"):
        draw_sample(folder, train_per_class=1, val_per_class=1, size=16)
        assert json.loads((folder / "sample.json").read_text())["size"] == 16


def test_a_stop_halfway_leaves_nothing(tmp_path):
    def stop(done, _total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_sample(tmp_path / "s", **SMALL, on_progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_a_flower_is_drawn_the_same_for_a_seed_and_differs_between_seeds(name):
    first = draw_flower(name, 7, 64)
    assert (first.mode, first.size) == ("RGB", (64, 64))
    assert first.tobytes() == draw_flower(name, 7, 64).tobytes()
    assert first.tobytes() != draw_flower(name, 8, 64).tobytes()


def shape_and_colour(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture's spread of edge directions and strengths, and its mean colour.

    Edges are binned by direction relative to the middle of a clear picture, so radial petals,
    rings and upright cups differ; colour says nothing of shape.
    """
    rgb = np.asarray(draw_flower(name, seed, 64, clear=True), dtype=float)
    dy, dx = np.gradient(rgb.mean(2))
    y, x = np.mgrid[:64, :64] - 31.5
    distance = np.hypot(x, y - -3)
    radial = np.arctan2(dy, dx) - np.arctan2(y + 3, x)
    strength = np.hypot(dx, dy)
    shape = np.histogram2d(
        distance.ravel(),
        (radial % np.pi).ravel(),
        bins=(6, 6),
        range=((0, 24), (0, np.pi)),
        weights=strength.ravel(),
    )[0]
    return (shape / shape.sum()).ravel(), rgb.mean((0, 1)) / 255


def test_shape_tells_the_classes_apart_better_than_colour():
    train, test = range(14), range(100, 106)
    known = [
        (label, *shape_and_colour(name, seed))
        for label, name in enumerate(CLASS_NAMES)
        for seed in train
    ]
    labels = np.array([label for label, *_ in known])
    right = np.zeros(2)
    for label, name in enumerate(CLASS_NAMES):
        for seed in test:
            for kind, value in enumerate(shape_and_colour(name, seed)):
                gaps = np.linalg.norm(np.stack([row[1 + kind] for row in known]) - value, axis=1)
                nearest = labels[np.argsort(gaps)[:5]]
                right[kind] += np.bincount(nearest, minlength=5).argmax() == label
    shape, colour = right / (len(test) * len(CLASS_NAMES))
    assert shape > 0.6
    assert colour < shape
