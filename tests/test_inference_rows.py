"""`mnet predict --out` and `mnet embed` on this machine, and `mnet cache fill`."""

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest

from mnet_cli.cli import run
from mnet_cli.inference import parts


@pytest.fixture
def trained(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    fast = ["--set", "train.epochs=1"]
    assert run(["train", str(tiny_recipe), *fast, "--out", str(out)]) == 0
    return out


def rows_of(folder):
    return pyarrow.parquet.read_table(folder).to_pylist()


def test_predictions_in_files_are_those_that_are_printed(photos, trained, tmp_path, capsys):
    capsys.readouterr()
    command = ["predict", str(photos), "-c", str(trained)]
    assert run([*command, "--json"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    written = rows_of(tmp_path / "out")
    assert [{**row, "error": None} for row in printed] == [
        {**row, "probs": dict(sorted(row["probs"].items(), key=lambda one: -one[1]))}
        for row in written
    ]


def test_the_same_command_adds_what_is_missing(photos, trained, tmp_path, capsys, monkeypatch):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(photos / "val", pictures / "val")
    command = ["predict", str(pictures), "-c", str(trained), "--out", str(out), "--json"]
    monkeypatch.setattr(parts, "ROWS", 5)
    assert run(command) == 0
    before = {path.name: path.read_bytes() for path in out.glob("part-*")}
    assert len(before) == 3
    (out / "part-00001.parquet").unlink()
    (pictures / "val" / "red" / "new.jpg").write_bytes((photos / "val/red/0.jpg").read_bytes())
    (pictures / "val" / "red" / "bad.jpg").write_bytes(b"no image")
    capsys.readouterr()
    assert run(command) == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["fresh"], document["errors"]) == (14, 7, 1)
    rows = rows_of(out)
    assert len({row["path"] for row in rows}) == len(rows) == 14
    [bad] = [row for row in rows if row["error"]]
    assert bad["path"].endswith("bad.jpg") and bad["class"] is None
    assert (out / "part-00000.parquet").read_bytes() == before["part-00000.parquet"]
    assert run(command) == 3  # it is tried again
    capsys.readouterr()
    (pictures / "val" / "red" / "bad.jpg").write_bytes((photos / "val/red/1.jpg").read_bytes())
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["fresh"] == 1
    assert [row["error"] for row in rows_of(out)] == [None] * 14
    assert len({row["path"] for row in rows_of(out)}) == 14


def test_arguments_without_images_are_named_and_are_no_rows(photos, trained, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    image, out = str(photos / "val" / "red" / "0.jpg"), tmp_path / "out"
    command = ["predict", image, str(empty), "-c", str(trained), "--out", str(out)]
    assert run(command) == 3
    assert f"{empty}: no images in this folder" in capsys.readouterr().err
    assert [row["path"] for row in rows_of(out)] == [image]


def test_a_place_that_cannot_hold_answers_is_refused(photos, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    shutil.copytree(photos / "val", pictures)
    for command in ("predict", "embed"):
        assert run([command, str(pictures), "--out", str(pictures / "answers")]) == 2
        assert "is inside" in capsys.readouterr().err
        assert run([command, str(pictures), "--out", "s3://bucket/answers"]) == 2
        assert "cannot be written to a URL" in capsys.readouterr().err
    assert not list(tmp_path.rglob("answers"))


def test_features_never_replace_the_list_of_their_images(photos, tmp_path, capsys):
    listed = tmp_path / "a.paths.csv"
    listed.write_text(f"path\n{photos / 'val' / 'red' / '0.jpg'}\n")
    before = listed.read_bytes()
    assert run(["embed", str(listed), "--out", str(tmp_path / "a.npy"), "--force"]) == 2
    assert "would replace" in capsys.readouterr().err
    assert listed.read_bytes() == before


def test_a_path_that_is_given_twice_is_one_row(photos, trained, tmp_path):
    image = str(photos / "val" / "red" / "0.jpg")
    command = ["predict", image, image, "-c", str(trained), "--out", str(tmp_path / "out")]
    assert run(command) == 0
    assert len(rows_of(tmp_path / "out")) == 1


def test_what_was_computed_before_an_error_is_kept(photos, trained, tmp_path, monkeypatch):
    from mnet_cli.data.image_files import FileImage
    from mnet_cli.errors import MachineError

    read = FileImage.read

    def fail(image):
        if image.name.endswith("blue/3.jpg"):
            raise MachineError(image.name, "the network is down")
        return read(image)

    command = ["predict", str(photos / "val"), "-c", str(trained), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(FileImage, "read", fail)
        assert run([*command, "--batch-size", "1"]) == 5
    assert run(command) == 0
    assert len(rows_of(tmp_path / "out")) == 12


def test_a_folder_of_other_answers_is_refused(photos, trained, tmp_path, capsys):
    image, out = str(photos / "val" / "red" / "0.jpg"), tmp_path / "out"
    command = ["predict", image, "-c", str(trained), "--out", str(out)]
    assert run(command) == 0
    assert run([*command, "--reject", "0.9"]) == 2
    assert "holds answers that differ in reject" in capsys.readouterr().err
    (out / "part-00000.parquet").write_bytes(b"PAR1")
    assert run(command) == 3
    assert "part-00000.parquet: is damaged" in capsys.readouterr().err
    (out / "_about.json").write_text("[")
    assert run(command) == 3
    (out / "_about.json").unlink()
    assert run(command) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--csv"], ["--topk", "2"], ["--plot", "a.png"], ["--force"]])
def test_options_without_effect_are_refused(photos, tmp_path, capsys, option):
    assert run(["predict", str(photos), "--out", str(tmp_path / "out"), *option]) == 2
    assert "has no effect with --out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_features_are_what_the_head_gets(photos, trained, tmp_path):
    import torch

    from mnet_cli.data.image_files import FileImage
    from mnet_cli.data.images import read_image
    from mnet_cli.data.preprocess import eval_array
    from mnet_cli.formats.checkpoint import build_from, load_checkpoint

    pictures = tmp_path / "pictures"
    shutil.copytree(photos / "val", pictures)
    (pictures / "red" / "bad.jpg").write_bytes(b"no image")
    out = tmp_path / "features.npy"
    command = ["embed", str(pictures), "-c", str(trained), "--out", str(out)]
    assert run(command) == 3
    array, rows = (
        np.load(out),
        list(csv.DictReader(out.with_suffix(".paths.csv").read_text().splitlines())),
    )
    assert array.shape == (13, 1280) and len(rows) == 13
    checkpoint = load_checkpoint(trained)
    model = build_from(checkpoint).eval()
    seen = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for vector, row in zip(array, rows, strict=True):
        if row["error"]:
            assert row["path"].endswith("bad.jpg") and np.isnan(vector).all()
            continue
        image = eval_array(read_image(FileImage(pictures / row["path"])), checkpoint.preprocess)
        with torch.inference_mode():
            model(torch.from_numpy(image)[None])
        assert np.allclose(vector, seen[-1][0].numpy(), atol=1e-4)
    assert run(command) == 2  # the file exists
    assert run([*command, "--force"]) == 3


def test_features_in_files_are_those_of_the_array(photos, trained, tmp_path):
    command = ["embed", str(photos / "val"), "-c", str(trained), "--out"]
    assert run([*command, str(tmp_path / "one.npy")]) == 0
    assert run([*command, str(tmp_path / "parts")]) == 0
    array = np.load(tmp_path / "one.npy")
    assert np.array_equal([row["vector"] for row in rows_of(tmp_path / "parts")], array)


def test_training_finds_the_features_that_were_computed_before(tiny_recipe, capsys, tmp_path):
    options = ["--set", "model.freeze=features", "--set", "train.epochs=2", "--json"]
    assert run(["cache", "fill", "--recipe", str(tiny_recipe), *options]) == 0
    [filled] = json.loads(capsys.readouterr().out)
    assert filled["fresh"] == filled["rows"]
    assert run(["train", str(tiny_recipe), *options, "--out", str(tmp_path / "run")]) == 0
    [cache] = json.loads(capsys.readouterr().out)["cache"]
    assert (cache["fresh"], cache["rows"]) == (0, filled["rows"])
    assert run(["cache", "fill", "--recipe", str(tiny_recipe)]) == 2
    assert "no phase of this recipe takes features" in capsys.readouterr().err


def test_eval_takes_its_images_as_an_argument(photos, trained, capsys):
    capsys.readouterr()
    assert run(["eval", str(photos / "val"), "-c", str(trained), "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert run(["eval", "--data", str(photos / "val"), "-c", str(trained), "--json"]) == 0
    assert one == json.loads(capsys.readouterr().out)
    assert run(["eval", str(photos), "--data", str(photos)]) == 2
