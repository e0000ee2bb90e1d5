"""A run finds its data set from any working folder, and after both have been moved together."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from mnet_cli.cli import console, run
from mnet_cli.training.run_directory import find_data, write_data_root

RECIPE = """\
schema: 1
model:
  {arch: mobilenet_v3_small, width_mult: 0.05, reduced_tail: true, weights: none, freeze: features}
data: {root: photos, image_size: 32, batch_size: 8, workers: 0}
train: {epochs: 1, lr: 1.0e-2}
"""
VALUES = ("data.image_size=32", "data.batch_size=8", "data.workers=0", "train.epochs=1")
SMALL = [word for value in VALUES for word in ("--set", value)]


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A project folder with photographs and a run that names them by a relative path."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(photos, project / "photos")
    (project / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr(console, "settings", console.Settings(quiet=True))
        assert run(["train", "-r", "tiny.yaml"]) == 0
    return project


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of the project, to which the working folder does not belong."""
    shutil.copytree(trained, tmp_path / "project", symlinks=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def test_a_run_records_where_its_data_is_relative_to_itself(project):
    assert json.loads((project / "runs" / "tiny" / "data.json").read_text()) == {
        "root": "../../photos"
    }


def test_eval_and_export_find_the_data_from_another_folder(project, capsys):
    checkpoint = project / "runs" / "tiny"
    assert run(["eval", "-c", str(checkpoint), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["data"]) == (12, str(project / "photos"))
    assert run(["export", os.path.relpath(checkpoint)]) == 0
    assert run(["eval", "-c", str(checkpoint / "mobilenet_v3_small.onnx"), "--json"]) == 0


def test_in_its_own_working_folder_the_data_is_called_as_in_the_recipe(
    project, capsys, monkeypatch
):
    monkeypatch.chdir(project)
    assert run(["eval", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == "photos"


def test_the_recorded_place_comes_before_the_working_folder(project, capsys, tmp_path):
    shutil.copytree(project / "photos", tmp_path / "elsewhere" / "photos")
    shutil.rmtree(tmp_path / "elsewhere" / "photos" / "val" / "red")
    assert run(["eval", "-c", str(project / "runs" / "tiny"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12
    shutil.rmtree(project / "photos")
    assert run(["eval", "-c", str(project / "runs" / "tiny"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 8


@pytest.mark.parametrize("command", [["eval", "-c"], ["export"], ["train", "--resume"]])
def test_the_error_names_both_places(command, project, capsys):
    tiny = project / "runs" / "tiny"
    (tiny / "summary.json").unlink()
    shutil.rmtree(project / "photos")
    before = sorted(tiny.iterdir())
    assert run([*command, str(tiny)]) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("mnet: error: photos: ")
    assert str(project / "photos") in line
    assert ("data.root=DIR" if command[0] == "train" else "--data DIR") in line
    assert sorted(tiny.iterdir()) == before


def test_a_run_without_the_record_looks_in_the_working_folder_alone(project, capsys, monkeypatch):
    tiny = project / "runs" / "tiny"
    (tiny / "data.json").unlink()
    assert run(["eval", "-c", str(tiny)]) == 3
    assert "photos: the data set of the run does not exist" in capsys.readouterr().err
    monkeypatch.chdir(project)
    assert run(["eval", "-c", str(tiny)]) == 0


@pytest.mark.parametrize("content", ["", "[]", '{"root": 3}', "{}", '"\udcff"'])
def test_a_damaged_record_is_said(content, project, capsys):
    path = project / "runs" / "tiny" / "data.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert run(["eval", "-c", str(path.parent)]) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"mnet: error: {path}: ")
    assert "--data DIR" in line


def test_a_run_goes_on_from_another_folder(project, capsys):
    tiny = project / "runs" / "tiny"
    (tiny / "summary.json").unlink()
    files = [tiny / name for name in ("recipe.yaml", "data.json", "split.csv", "best.pt")]
    before = [file.read_bytes() for file in files]
    assert run(["train", "--resume", os.path.relpath(tiny)]) == 0
    assert "resumed" in capsys.readouterr().err
    assert (tiny / "summary.json").exists()
    assert [file.read_bytes() for file in files] == before
    names = ("recipe.yaml", "data.json", "summary.json", "report.html", "metrics.csv")
    assert not [name for name in names if str(project.parent) in (tiny / name).read_text()]


def test_a_place_that_is_named_at_a_resume_comes_first_and_is_recorded(project, tmp_path):
    tiny = project / "runs" / "tiny"
    (tiny / "summary.json").unlink()
    (project / "photos").rename(tmp_path / "moved")
    assert run(["train", "--resume", str(tiny), "--set", "data.root=../moved"]) == 0
    assert json.loads((tiny / "data.json").read_text()) == {"root": "../../../moved"}


def test_a_resume_with_the_recipe_takes_the_runs_default_of_val_fraction(
    photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos / "train", "flat")
    start = ["train", "quickstart", *SMALL, "--data", "flat", "--out", "runs/flat", "-q"]
    assert run(start) == 0
    Path("runs/flat/summary.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = ["train", "quickstart", "--resume", "../runs/flat", *SMALL]
    assert run([*again, "--set", "data.root=flat"]) == 0, capsys.readouterr().err
    again += ["--set", "data.root=flat", "--set", "data.val_fraction=0.4"]
    assert run(again) == 2
    assert "data.val_fraction" in capsys.readouterr().err


def test_without_a_relative_path_the_absolute_one_is_recorded(tmp_path, monkeypatch):
    def other_drive(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    (tmp_path / "run").mkdir()
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "relpath", other_drive)
        write_data_root(tmp_path / "run", str(tmp_path / "photos"))
    monkeypatch.chdir(tmp_path / "run")
    found = find_data(tmp_path / "run", str(tmp_path / "nowhere"), "--data DIR")
    assert found == str(tmp_path / "photos")


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 exist on Linux")
def test_a_folder_whose_name_is_not_utf8_is_found_again(tmp_path, monkeypatch):
    root = tmp_path / os.fsdecode(b'photos\xff"\\')
    for folder in (root, tmp_path / "run", tmp_path / "elsewhere"):
        folder.mkdir()
    write_data_root(tmp_path / "run", str(root))
    found = find_data(tmp_path / "run", str(tmp_path / "nowhere"), "--data DIR")
    assert Path(found).samefile(root)
