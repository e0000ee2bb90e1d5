"""The package of docs/extending.md: it trains, exports and predicts as the page says."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

from mnet_cli.data.sample import draw_sample

EXAMPLES = Path(__file__).resolve().parents[1] / "docs/examples"


@pytest.fixture
def mnet(tmp_path):
    """Run mnet in `tmp_path`, where the package is installed as pip would install it."""
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

    def run(command: str) -> str:
        words = [sys.executable, "-c", "from mnet_cli.cli import main; main()", *command.split()]
        result = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    return run


def test_the_package_of_the_documentation_trains_exports_and_predicts(mnet, tmp_path):
    draw_sample(tmp_path / "drawn", train_per_class=4, val_per_class=2, size=32)
    with ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted((tmp_path / "drawn").glob("*/*/*.jpg")):
            archive.write(path, path.relative_to(tmp_path / "drawn"))
    assert "SmallResNet" in mnet("info small_resnet --image-size 32")
    changes = {
        "model.arch": "small_resnet", "model.width_mult": 0.25, "model.weights": "none",
        "model.freeze": "features[:2]", "data.root": "photos.zip", "data.image_size": 32,
        "train.epochs": 2, "output.name": "small",
    }  # fmt: skip
    settings = " ".join(f"--set {key}={value}" for key, value in changes.items())
    assert "20 train, 10 val" in mnet(f"train --recipe quickstart {settings}")
    assert "small_resnet.onnxgz" in mnet("export runs/small --format onnx_gz")
    drawn = "drawn/tulip.jpg"
    checkpoint, exported = (
        mnet(f"predict {drawn} --checkpoint runs/small/{name} --quiet")
        for name in ("best.pt", "small_resnet.onnxgz")
    )
    assert checkpoint == exported
