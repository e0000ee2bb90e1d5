"""`mnet eval` as a user meets it, on a model that always gives the same class."""

import json
import re
import shutil
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from mnet_cli.cli import run
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.formats.checkpoint import Checkpoint, save_checkpoint
from mnet_cli.formats.contract import Contract
from mnet_cli.models.onnx_graph import to_onnx
from mnet_cli.models.registry import build_model

SMALL = {"width_mult": 0.05, "reduced_tail": True}
OF_SMALL = [  # for mnet train: an epoch of such a model
    *("--set", "model.arch=mobilenet_v3_small", "--set", "model.width_mult=0.05"),
    *("--set", "model.reduced_tail=true", "--set", "train.epochs=1"),
]


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


UNLIKE = {  # what class_indices.json holds, and what the error says of it
    '{"0": "daisy", "1": "rose"': "not JSON",
    '["daisy", "rose"]': "no names by index",
    "[" * 100_000: "not JSON",
    '{"0": "daisy", "1": "rose", "1": "rose"}': "index 1 stands there twice",
    '{"0": "daisy", "1": "daisy"}': "index 1 is 'daisy'.* 'rose'",
    '{"0": "daisy", "2": "rose"}': "index 1 is missing",
    '{"0": "daisy"}': "index 1 is missing",
    '{"0": "rose", "1": "daisy"}': "index 0 is 'rose'.* 'daisy'",
    '{"0": "daisy", "1": "tulip"}': "index 1 is 'tulip'.* 'rose'",
    '{"0": "daisy", "1": "rose", "2": "tulip"}': "index 2 .*beyond the 2 classes",
    '{"0": "daisy", "1": 7}': "index 1 is '7'.* 'rose'",
    b"\xff\xfe": "not JSON",
}


@pytest.mark.parametrize("content", UNLIKE)
def test_class_indices_that_disagree_with_the_checkpoint_are_refused(content, tmp_path, capsys):
    best = save_model(tmp_path, ["daisy", "rose"])
    data = draw(tmp_path / "data", {"daisy": 1, "rose": 1})
    beside = tmp_path / "class_indices.json"
    beside.write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in (
        ["eval", "-c", str(best), "--data", str(data)],
        ["predict", "-c", str(tmp_path), str(data / "rose" / "0.png")],
    ):
        assert run(command) == 4
        output = capsys.readouterr()
        assert output.out == ""
        line = output.err.splitlines()[-1]
        assert re.match(rf"mnet: error: \S+class_indices\.json: {UNLIKE[content]}", line), line
        assert "delete it" in line


def test_class_indices_that_agree_or_are_missing_are_no_obstacle(tmp_path, capsys):
    best = save_model(tmp_path, ["daisy", "rose"])
    image = str(draw(tmp_path / "data", {"rose": 1}) / "rose" / "0.png")
    assert run(["predict", "-c", str(best), image]) == 0
    (tmp_path / "class_indices.json").write_text('\ufeff{"1": "rose", "0": "daisy"}', "utf-8")
    assert run(["predict", "-c", str(best), image]) == 0


@pytest.mark.parametrize("command", ["train", "export", "bench"])
def test_every_command_that_takes_a_run_refuses_unlike_class_indices(
    command, tiny_recipe, tmp_path, capsys
):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    best = save_model(run_folder, ["blue", "green", "red"])
    (run_folder / "class_indices.json").write_text('{"0": "red", "1": "green", "2": "blue"}')
    weights = ["--set", f"model.weights={best}"]
    commands = {
        "train": ["-r", str(tiny_recipe), "--out", str(tmp_path / "new"), *OF_SMALL, *weights],
        "export": [str(run_folder)],
        "bench": [str(best)],
    }
    assert run([command, *commands[command]]) == 4
    assert "index 0 is 'red', but 'blue'" in capsys.readouterr().err
    assert sorted(path.name for path in run_folder.iterdir()) == ["best.pt", "class_indices.json"]


def test_an_exported_file_must_agree_with_the_class_indices_beside_it(tmp_path, capsys):
    names = ("daisy", "rose")
    preprocess = Preprocess(32, 32, "bilinear", (0.5,) * 3, (0.5,) * 3, (255,) * 3)
    contract = Contract("mobilenet_v3_small", SMALL, names, preprocess, {}, {})
    model = onnx.load_from_string(to_onnx(build_model("mobilenet_v3_small", 2, **SMALL).eval()))
    onnx.helper.set_model_props(model, {"mnet": contract.to_json()})
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "class_indices.json").write_text('{"0": "daisy", "1": "rose"}')
    image = str(draw(tmp_path / "data", {"rose": 1}) / "rose" / "0.png")
    assert run(["predict", "-c", str(tmp_path / "model.onnx"), image]) == 0
    (tmp_path / "class_indices.json").write_text('{"0": "rose", "1": "daisy"}')
    assert run(["predict", "-c", str(tmp_path / "model.onnx"), image]) == 4
    assert "index 0 is 'rose', but 'daisy'" in capsys.readouterr().err


def test_a_run_with_unlike_class_indices_is_not_resumed(tiny_recipe, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(["train", "-r", str(tiny_recipe), "--out", str(out), *OF_SMALL]) == 0
    (out / "summary.json").unlink()
    (out / "class_indices.json").write_text("{}")
    assert run(["train", "--resume", str(out)]) == 4
    assert "index 0 is missing" in capsys.readouterr().err
    assert (out / "class_indices.json").read_text() == "{}"
