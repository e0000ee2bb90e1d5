"""The package of docs/extending.md: it trains, exports and predicts as the page says."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

from mnet_cli.data.sample import draw_sample

STORY = """\
import json, sys
from mnet_cli.cli import run
for command in json.loads(sys.argv[1]):
    assert run(command) == 0, command
    print("@@", flush=True)
"""
EXAMPLES = Path(__file__).resolve().parents[1] / "docs/examples"


@pytest.fixture
def mnet(tmp_path):
    """Run commands in `tmp_path`, where the package is installed as pip would install it.

    They run in one process: importing torch takes seconds. What each printed is returned.
    """
    project = tomllib.loads((EXAMPLES / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = tmp_path / "site" / "mnet_examples-1.0.dist-info"
    about.mkdir(parents=True)
    about.with_name("mnet_examples").symlink_to(EXAMPLES / "mnet_examples")
    (about / "METADATA").write_text(f"Name: {project['name']}\nVersion: 1.0\n", encoding="utf-8")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (about / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": str(about.parent),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def run(*commands: str) -> list[str]:
        result = subprocess.run(
            [sys.executable, "-c", STORY, json.dumps([command.split() for command in commands])],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout.split("@@\n")[:-1]

    return run


def test_the_package_of_the_documentation_trains_exports_and_predicts(mnet, tmp_path):
    draw_sample(tmp_path / "drawn", train_per_class=4, val_per_class=2, size=32)
    with ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted((tmp_path / "drawn").glob("*/*/*.jpg")):
            archive.write(path, path.relative_to(tmp_path / "drawn"))
    changes = {
        "model.arch": "small_resnet", "model.width_mult": 0.25, "model.weights": "none",
        "model.freeze": "features[:2]", "data.root": "photos.zip", "data.image_size": 32,
        "train.epochs": 2, "output.name": "small",
    }  # fmt: skip
    settings = " ".join(f"--set {key}={value}" for key, value in changes.items())
    info, trained, exported, of_checkpoint, of_file = mnet(
        "info small_resnet --image-size 32",
        f"train --recipe quickstart {settings}",
        "export runs/small --format onnx_gz",
        *(
            f"predict drawn/tulip.jpg --checkpoint runs/small/{name} --quiet"
            for name in ("best.pt", "small_resnet.onnxgz")
        ),
    )
    assert "SmallResNet" in info
    assert "20 train, 10 val" in trained
    assert "small_resnet.onnxgz" in exported
    assert "class: " in of_checkpoint
    assert of_checkpoint == of_file
