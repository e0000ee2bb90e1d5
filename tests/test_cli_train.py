"""The ways to start `mnet train`: by recipe, by images, with a download; and to continue a run."""

import csv
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from mnet_cli.cli import run
from mnet_cli.data.sources import flower_photos
from mnet_cli.recipe import load_recipe, shipped_recipes

SMALL = {
    "model.arch": "mobilenet_v2", "model.width_mult": 0.35, "model.weights": "none",
    "model.freeze": "none", "data.image_size": 32, "data.batch_size": 5, "data.workers": 0,
    "train.epochs": 1,
}  # fmt: skip
FAST = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def resolved(run_directory: str) -> dict:
    return yaml.safe_load((Path(run_directory) / "recipe.yaml").read_text())


@pytest.mark.parametrize(
    "arguments", [["tiny"], ["tiny.yaml"], ["--recipe", "tiny"], ["-r", "tiny"]]
)
def test_a_recipe_is_an_argument_or_an_option(tiny_recipe, arguments):
    assert run(["train", *arguments, "--set", "train.epochs=1"]) == 0
    assert resolved("runs/latest")["train"]["epochs"] == 1
    assert Path("runs/tiny").is_dir()


def test_images_alone_are_trained_with_the_frozen_v2_recipe(photos, capsys):
    assert run(["train", "--data", str(photos), *FAST]) == 0
    assert f"recipe: v2_flowers, the default, with data.root: {photos}" in capsys.readouterr().err
    recipe, shipped = resolved("runs/latest"), load_recipe("v2_flowers")
    assert recipe["data"]["root"] == str(photos)
    assert "download" not in recipe["data"] or recipe["data"]["download"] is None
    assert recipe["train"]["label_smoothing"] == shipped.train.label_smoothing
    assert recipe["data"]["crop_scale_min"] == shipped.data.crop_scale_min
    assert Path(f"runs/{photos.name}").is_dir()  # named after the images


def test_the_default_recipe_is_the_shipped_one(photos, capsys):
    Path("v2_flowers.yaml").write_text("not a recipe")
    assert run(["train", "--data", str(photos), *FAST]) == 0


def test_images_replace_those_of_a_recipe(tiny_recipe, photos, draw_photos):
    other = draw_photos(Path("other"), train=3, val=2)
    assert run(["train", "tiny", "--data", "other", "--set", "train.epochs=1"]) == 0
    assert resolved("runs/tiny")["data"]["root"] == "other"
    assert json.loads(Path("runs/tiny/summary.json").read_text())["images"] == {
        "train": 9, "val": 6,
    }  # fmt: skip
    assert other.is_dir()


def test_a_folder_that_is_not_split_is_split_and_said(photos, capsys):
    shutil.copytree(photos / "train", "flat images")
    assert run(["train", "--data", "flat images", *FAST]) == 0
    notes = [one for one in capsys.readouterr().err.splitlines() if "val_fraction" in one]
    assert notes == [
        "flat images has no train/ and val/: 20% of each class is used for validation "
        "(data.val_fraction: 0.2)"
    ]
    folder = Path("runs/flat-images")
    assert resolved(folder)["data"]["val_fraction"] == 0.2
    with (folder / "split.csv").open(newline="") as file:
        splits = [row["split"] for row in csv.DictReader(file)]
    assert 0 < splits.count("val") < splits.count("train")
    assert run(["eval", "--checkpoint", str(folder)]) == 0


def test_a_run_that_was_split_so_can_be_continued_with_the_same_recipe(tiny_recipe, photos, capsys):
    shutil.copytree(photos / "train", "flat")
    assert run(["train", "tiny", "--data", "flat", "--set", "train.epochs=1"]) == 0
    Path("runs/tiny/summary.json").unlink()
    again = ["train", "tiny", "--resume", "runs/tiny", "--set", "train.epochs=1"]
    assert run([*again, "--data", "flat"]) == 0, capsys.readouterr().err


def test_a_stored_download_is_no_other_recipe_at_a_resume(tiny_recipe):
    assert run(["train", "tiny", "--set", "train.epochs=1"]) == 0
    Path("runs/tiny/summary.json").unlink()
    stored = Path("runs/tiny/recipe.yaml")
    stored.write_text("".join(
        one for one in stored.read_text().splitlines(keepends=True) if "download" not in one
    ))  # fmt: skip
    options = ["--set", "train.epochs=1", "--set", "data.download=flowers"]
    assert run(["train", "tiny", "--resume", "runs/tiny", *options]) == 0


@pytest.fixture
def flowers_server(photos, tmp_path_factory, monkeypatch):
    """A server on this machine in the place of the flower photographs' own."""
    folder = tmp_path_factory.mktemp("server")
    with tarfile.open(folder / "flower_photos.tgz", "w:gz") as archive:
        archive.add(photos / "train", "flower_photos")
    content = (folder / "flower_photos.tgz").read_bytes()
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/flower_photos.tgz"
        monkeypatch.setattr(flower_photos, "URL", url)
        monkeypatch.setattr(flower_photos, "SHA256", hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(flower_photos, "SIZE", len(content))
        yield asked
        server.shutdown()
        thread.join()


def test_a_recipe_downloads_its_images_where_they_are_missing(flowers_server, capsys):
    assert run(["train", "v2_flowers", *FAST]) == 0
    said = capsys.readouterr().err
    assert said.index("downloading flowers (3,670 photographs, ") < said.index("train loss")
    assert flower_photos.URL in said
    assert {path.name for path in Path("data_set/flowers").iterdir()} >= {"train", "val"}
    assert resolved("runs/v2_flowers")["data"]["download"] == "flowers"
    assert flowers_server == ["/flower_photos.tgz"]
    assert run(["train", "v2_flowers", *FAST]) == 0
    assert len(flowers_server) == 1  # the folder is there: nothing is downloaded
    assert run(["data", "fetch", "flowers"]) == 0  # it is the same data set
    assert "already split" in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--data", "mine"], ["--set", "data.root=mine"]])
def test_named_images_are_never_replaced_by_a_download(flowers_server, capsys, option):
    assert run(["train", "v2_flowers", *option, *FAST]) == 3
    assert "mine" in capsys.readouterr().err.splitlines()[-1]
    assert flowers_server == []
    assert list(Path().iterdir()) == []


def test_a_wrong_download_is_an_error_that_says_what_to_do(flowers_server, capsys, monkeypatch):
    monkeypatch.setattr(flower_photos, "SHA256", "0" * 64)
    assert run(["train", "v2_flowers", *FAST]) == 5
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"mnet: error: {flower_photos.URL}: ")
    assert "data_set/flower_photos.tgz" in line
    assert "--data DIR" in line
    assert not Path("data_set/flowers").exists()
    assert not Path("runs").exists()


def test_every_flower_recipe_can_download_its_images():
    for path in shipped_recipes():
        recipe = load_recipe(path)
        is_flowers = recipe.data.root == "data_set/flowers"
        assert recipe.data.download == ("flowers" if is_flowers else None), path.name


def test_python_m_mnet_cli_is_mnet():
    command = [sys.executable, "-m", "mnet_cli"]
    done = subprocess.run([*command, "train", "--nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("mnet: error: mnet train: ")
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("mnet ")


def test_completion_works_in_bash(tmp_path):
    mnet = Path(sys.executable).with_name("mnet")
    script = subprocess.run(
        [mnet, "--show-completion", "bash"], capture_output=True, text=True, check=True
    ).stdout
    program = f"""
        PATH={mnet.parent}:$PATH
        {script}
        COMP_WORDS=(mnet exp) COMP_CWORD=1
        _mnet_completion mnet exp mnet
        echo "${{COMPREPLY[@]}}"
        COMP_WORDS=(mnet train --res) COMP_CWORD=2
        _mnet_completion mnet --res train
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["export", "--resume"], done.stderr


def test_completion_is_installed_for_bash(tmp_path):
    mnet = Path(sys.executable).with_name("mnet")
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [mnet, "--install-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "mnet" in (tmp_path / ".bashrc").read_text()


def test_the_picture_is_opened_where_there_is_a_display(
    tiny_recipe, photos, tmp_path, monkeypatch, capsys
):
    opened = tmp_path / "opened"
    viewer = tmp_path / "viewer"
    viewer.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    viewer.chmod(0o755)
    assert run(["train", "tiny", "--set", "train.epochs=1"]) == 0
    predict = ["predict", str(photos / "val" / "red" / "0.jpg"), "--show"]
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("BROWSER", f"{viewer} %s")
    capsys.readouterr()
    assert run([*predict, "--plot", "a.png"]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert notes[-2:] == [
        "picture: a.png",
        "note: no display to open the picture on: open a.png yourself",
    ]
    assert not opened.exists()
    monkeypatch.setenv("DISPLAY", ":0")
    assert run([*predict, "--plot", "b.png"]) == 0
    assert "note:" not in capsys.readouterr().err
    assert opened.read_text().strip() == (tmp_path / "b.png").as_uri()
    assert run(predict) == 2
    assert "--plot FILE.png" in capsys.readouterr().err
