"""`mnet eval` as a user meets it, on a model that always gives the same class."""

import json
import re
import shutil
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from mnet_cli import console
from mnet_cli.checkpoint import Checkpoint, save_checkpoint
from mnet_cli.cli import run
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.models.registry import build_model

SMALL = {"width_mult": 0.05, "reduced_tail": True}


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
    monkeypatch.setattr(console, "settings", console.Settings())


@pytest.fixture
def terminal(monkeypatch):
    """A function that makes stdout a terminal of so many columns."""

    def narrow(columns):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        for name, value in {"COLUMNS": str(columns), "LINES": "40", "TERM": "dumb"}.items():
            monkeypatch.setenv(name, value)

    return narrow


def save_model(folder, class_names, answer=0):
    """Write `best.pt` of a model that takes every image for the class at place `answer`."""
    model = build_model("mobilenet_v3_small", len(class_names), **SMALL)
    with torch.no_grad():
        model.classifier[-1].weight.zero_()
        model.classifier[-1].bias.zero_()[answer] = 5
    path = folder / "best.pt"
    checkpoint = Checkpoint(
        arch="mobilenet_v3_small",
        model_args=SMALL,
        state_dict=model.state_dict(),
        class_names=tuple(class_names),
        preprocess=Preprocess(32, 32, "bilinear", (0.5,) * 3, (0.5,) * 3, (255,) * 3),
        recipe={},
        metrics={},
    )
    save_checkpoint(path, checkpoint)
    return path


def draw(root, counts):
    """Write so many small images of each class."""
    noise = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = noise.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def evaluated(tmp_path, capsys, counts, *options, classes=None, answer=0):
    """What `mnet eval` prints on stdout for a new model and new images."""
    best = save_model(tmp_path, classes or sorted(counts), answer)
    data = draw(tmp_path / "data", counts)
    capsys.readouterr()
    assert run(["eval", "-c", str(best), "--data", str(data), *options]) == 0
    return capsys.readouterr().out


def numbered(count):
    return [f"kind-of-flower-{number:04}" for number in range(count)]


def test_a_matrix_off_a_terminal_shows_every_name_and_count_whole(tmp_path, capsys):
    counts = dict.fromkeys(numbered(30), 1) | {"kind-of-flower-0007": 123}
    lines = evaluated(tmp_path, capsys, counts).splitlines()
    header = next(line for line in lines if "predicted" in line and line.count("kind-of") == 30)
    assert "…" not in header
    row = next(line for line in lines if re.match(r" ?kind-of-flower-0007 +123 +·", line))
    assert row.split()[2:] == ["·"] * 29


def test_more_classes_than_the_matrix_takes_show_the_confused_pairs(tmp_path, capsys):
    counts = dict.fromkeys(numbered(31), 1) | {"kind-of-flower-0007": 12}
    output = evaluated(tmp_path, capsys, counts)
    assert "true \\ predicted" not in output
    assert "the 20 most confused pairs; 10 are not shown" in output
    assert "the 20 classes of lowest F1; 11 are not shown" in output
    pairs = re.findall(r"(kind-\S+) +(kind-\S+) +(\d+) +(\S+)%", output)
    assert pairs[0] == ("kind-of-flower-0007", "kind-of-flower-0000", "12", "100.0")
    assert len(pairs) == 20


def test_a_thousand_classes_are_shown_at_once_and_briefly(tmp_path, capsys):
    names = numbered(1000)
    started = time.process_time()
    output = evaluated(tmp_path, capsys, {names[5]: 2, names[8]: 1}, classes=names)
    assert time.process_time() - started < 3  # the whole command; the matrix alone took 14
    assert len(output) < 10_000
    assert "the 20 classes of lowest F1; 980 are not shown" in output


@pytest.mark.parametrize("columns", [70, 100])
def test_a_terminal_that_is_too_narrow_for_the_matrix_gets_the_pairs(
    tmp_path, capsys, terminal, columns
):
    terminal(columns)
    output = evaluated(tmp_path, capsys, dict.fromkeys(numbered(12), 1))
    assert "wider than this terminal" in output
    assert "true \\ predicted" not in output
    assert re.search(r"kind-of-flower-0011 +kind-of-flower-0000 +1 +100\.0%", output)
    assert "…" not in output
    tables = [line for line in output.splitlines() if "kind-of" in line and "/" not in line]
    assert max(map(len, tables)) <= columns


def test_a_matrix_that_fits_the_terminal_is_shown(tmp_path, capsys, terminal):
    terminal(80)
    output = evaluated(tmp_path, capsys, {"daisy": 2, "rose": 1, "[bold]": 1})
    assert re.search(r"true \\ predicted +\[bold\] +daisy +rose", output)


def test_json_names_the_pairs_and_has_the_matrix_of_up_to_a_hundred_classes(tmp_path, capsys):
    output = evaluated(tmp_path, capsys, {"a": 2, "b": 3, "c": 1}, "--json", answer=1)
    document = json.loads(output)
    assert document["confusion"] == [[0, 2, 0], [0, 3, 0], [0, 1, 0]]
    assert document["confused"] == [
        {"true": "a", "predicted": "b", "count": 2, "share": 1.0},
        {"true": "c", "predicted": "b", "count": 1, "share": 1.0},
    ]
    shutil.rmtree(tmp_path / "data")
    names = numbered(101)
    document = json.loads(evaluated(tmp_path, capsys, {names[5]: 1}, "--json", classes=names))
    assert document["confusion"] is None
    assert document["classes"].keys() == set(names)
    assert [pair["true"] for pair in document["confused"]] == [names[5]]


def test_classes_without_images_are_named_and_left_out_of_macro_f1(tmp_path, capsys):
    names = ["daisy", "rose", "tulip"]
    output = evaluated(tmp_path, capsys, {"daisy": 3, "rose": 1}, classes=names)
    assert "over 2 of 3 classes" in output
    assert "no images of 'tulip'" in output
    capsys.readouterr()
    options = ["-c", str(tmp_path / "best.pt"), "--data", str(tmp_path / "data"), "--json"]
    assert run(["eval", *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["classes_without_images"] == ["tulip"]
    assert document["macro_f1"] == pytest.approx((2 * 3 / 7 + 0) / 2)


def test_nothing_is_said_of_classes_where_all_have_images(tmp_path, capsys):
    output = evaluated(tmp_path, capsys, {"daisy": 1, "rose": 1})
    assert "classes" not in output
    assert "no images" not in output
