"""Image sources of other packages: everything works on them as it does on folders."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from mnet_cli.data import sources
from mnet_cli.errors import DataError
from mnet_cli.recipe import load_recipe
from mnet_cli.training.data_root import with_validation

# A package as a stranger would write it; the zip file is opened by each process and read.
PACKAGE = """
import zipfile
import numpy as np
from mnet_cli.data.paths import Names
from mnet_cli.data.sources.base import ImageSource

class ZipSource(ImageSource):
    layout = "a zip file with members such as train/daisy/1.jpg"

    @classmethod
    def matches(cls, root):
        return root.endswith(".zip")

    @classmethod
    def open(cls, root):
        with zipfile.ZipFile(root) as file:
            members = sorted(file.namelist())
        found = {}
        for split in ("train", "val"):
            names = [name for name in members if name.startswith(split)]
            labels = [name.split("/")[1] for name in names]
            classes = sorted(set(labels))
            found[split] = cls(
                root, f"{root}/{split}", tuple(classes), Names(names),
                np.asarray([classes.index(label) for label in labels]),
            )
        return found

    def read(self, index):
        with zipfile.ZipFile(self.root) as file:
            return file.read(self.names[index])
"""
RECIPE = """\
schema: 1
model:
  {arch: mobilenet_v3_small, width_mult: 0.05, reduced_tail: true, weights: none, freeze: FREEZE}
data: {root: ROOT, image_size: 32, batch_size: 8, workers: 2}
train: {epochs: 1, lr: 1.0e-2}
"""


@pytest.fixture
def package(tmp_path) -> Path:
    """The folder of an installed package that declares the source `zip`."""
    site = tmp_path / "site"
    info = site / "zipped-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "zipped.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zipped\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mnet_cli.sources]\nzip = zipped:ZipSource\n")
    return site


@pytest.fixture
def archive(photos, tmp_path) -> Path:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for path in sorted(photos.rglob("*.jpg")):
            file.write(path, path.relative_to(photos))
    return tmp_path / "photos.zip"


STORY = """\
import json, sys
from mnet_cli.cli import run
if __name__ == "__main__":
    for command in json.loads(sys.argv[1]):
        code = run(command)
        print("@@", flush=True)
        if code:
            sys.exit(code)
"""


def mnet(site: Path, *commands: list[str]) -> list[str]:
    """Run commands in one process that can import the package; what each printed on stdout."""
    done = subprocess.run(
        [sys.executable, "-c", STORY, json.dumps(commands)],
        cwd=site.parent,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("@@\n")[:-1]


@pytest.mark.parametrize("freeze", ["features", "none"])
def test_a_source_of_another_package_trains_and_evaluates_as_a_folder_does(
    package, archive, photos, tmp_path, freeze
):
    roots = {"folder": photos, "zip": archive}
    for name, root in roots.items():
        recipe = RECIPE.replace("FREEZE", freeze).replace("ROOT", str(root))
        (tmp_path / f"{name}.yaml").write_text(recipe)
    trained = [["train", f"{name}.yaml", "--out", name, "-q"] for name in roots]
    scored = [
        ["eval", "-c", "zip", *data, "--json"]
        for data in ((), ("--data", str(archive), "--split", "val"),
                     ("--data", str(photos), "--split", "val"))
    ]  # fmt: skip
    predicted = [
        ["predict", "-c", "zip", "--json", str(path)]
        for path in (archive, photos / "val/red/0.jpg")
    ]
    _, _, *scores, every, one = mnet(package, *trained, *scored, *predicted)

    states = [
        torch.load(tmp_path / name / "best.pt", weights_only=True)["state_dict"] for name in roots
    ]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    manifests = [(tmp_path / name / "split.csv").read_text() for name in roots]
    assert manifests[0] == manifests[1]

    again = [json.loads(score) for score in scores]
    assert again[0]["images"] == 12
    assert again[0]["loss"] == again[1]["loss"] == again[2]["loss"]

    by_path = {record["path"]: record["probs"] for record in map(json.loads, every.splitlines())}
    assert len(by_path) == 36
    [record] = map(json.loads, one.splitlines())
    assert by_path[f"{archive}/val/red/0.jpg"] == pytest.approx(record["probs"], abs=1e-6)


def test_a_part_is_split_off_for_validation_from_every_kind_that_is_not_split(monkeypatch):
    class Flat(sources.ImageSource):
        @classmethod
        def matches(cls, root):
            return root.startswith("flat://")

        @classmethod
        def open(cls, root):
            return {"train": None, "val": None} if root.endswith("split") else {"all": None}

    monkeypatch.setattr(sources, "_sources", lambda: {"flat": Flat})
    recipe = load_recipe("v2_flowers", ["data.root=flat://photos", "data.val_fraction=null"])
    notes: list[str] = []
    assert with_validation(recipe, notes.append).data.val_fraction == 0.2
    assert "flat://photos has no train/ and val/: 20% of each class" in notes[0]
    recipe = load_recipe("v2_flowers", ["data.root=flat://split", "data.val_fraction=null"])
    assert with_validation(recipe, notes.append).data.val_fraction is None
    assert len(notes) == 1


def test_a_root_of_no_known_kind_lists_the_kinds(tmp_path):
    (tmp_path / "x.txt").touch()
    with pytest.raises(
        DataError, match=r"is not a data set of a known kind.*folder: class folders"
    ):
        sources.open_source(str(tmp_path / "x.txt"))
    with pytest.raises(DataError, match="does not exist"):
        sources.open_source(str(tmp_path / "gone"))


def test_two_kinds_that_match_are_both_named_and_a_general_one_gives_way(tmp_path, monkeypatch):
    class One(sources.ImageSource):
        layout = "one"

        @classmethod
        def matches(cls, root):
            return True

    folder = sources._sources()["folder"]
    monkeypatch.setattr(sources, "_sources", lambda: {"folder": folder, "one": One})
    assert sources.find_source(str(tmp_path)) is One
    monkeypatch.setattr(sources, "_sources", lambda: {"one": One, "two": One})
    with pytest.raises(DataError, match="image sources one and two both match"):
        sources.find_source(str(tmp_path))


def test_listing_sources_imports_no_torch():
    code = (
        "import sys; from mnet_cli.data import sources; "
        "assert 'folder' in sources.SOURCES.names(); sources._sources(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
