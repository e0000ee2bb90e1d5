"""Another package adds an architecture, an image source and a file format; mnet uses them.

The package is installed with a dist-info folder of its own, beside mnet, which does not know it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

PACKAGE = Path(__file__).parent / "extension"
ENTRY_POINTS = """\
[mnet_cli.architectures]
cross_net = shapes_for_mnet:CROSS_NET

[mnet_cli.sources]
npz = shapes_for_mnet:NpzSource

[mnet_cli.formats]
onnxzip = shapes_for_mnet:ZippedOnnx
"""
RECIPE = """\
schema: 1
model: {arch: cross_net, width_mult: 0.5, weights: none}
data: {root: photos.npz, image_size: 32, batch_size: 8, workers: 0}
train: {epochs: 2, lr: 1.0e-2}
"""
STORY = """\
import json, sys
from mnet_cli.cli import run
for command in json.loads(sys.argv[1]):
    code = run(command)
    sys.stdout.flush()
    print(f"@@ {code}", flush=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, photos) -> Path:
    """A working folder with the installed package, a recipe and pictures in one file."""
    folder = tmp_path_factory.mktemp("extension")
    site = folder / "site" / "shapes_for_mnet-1.0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: shapes-for-mnet\nVersion: 1.0\n")
    (site / "entry_points.txt").write_text(ENTRY_POINTS)
    module = (PACKAGE / "shapes_for_mnet.py").read_text(encoding="utf-8")
    site.with_name("shapes_for_mnet.py").write_text(module, encoding="utf-8")
    pictures = {
        path.relative_to(photos).as_posix(): np.frombuffer(path.read_bytes(), np.uint8)
        for path in photos.rglob("*.jpg")
    }
    np.savez(folder / "photos.npz", **pictures)
    (folder / "cross.yaml").write_text(RECIPE)
    return folder


def environment(place: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(place / "site"), "NO_COLOR": "1"}


def mnet(place: Path, *commands: list[str]) -> list[tuple[int, str]]:
    """Run commands in one process; the exit code and what each printed on stdout."""
    done = subprocess.run(
        [sys.executable, "-c", STORY, json.dumps(commands)],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parts = done.stdout.split("@@ ")
    codes = [int(part.split("\n", 1)[0]) for part in parts[1:]]
    texts = [parts[0], *(part.split("\n", 1)[1] for part in parts[1:])]
    assert not any(codes), done.stderr
    return list(zip(codes, texts, strict=False))


def train(name: str, freeze: str, *settings: str) -> list[str]:
    sets = [part for one in (f"model.freeze={freeze}", *settings) for part in ("--set", one)]
    return ["train", "cross.yaml", *sets, "--out", name, "--json"]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_the_names_of_the_package_are_everywhere(place):
    (_, info), (_, schema), (_, help_text) = mnet(
        place,
        ["info", "cross_net", "--image-size", "32", "--json"],
        ["recipes", "schema"],
        ["export", "--help"],
    )
    assert json.loads(info)["arch"] == "cross_net"
    assert [row["name"] for row in json.loads(info)["layers"]][:2] == ["stem", "trunk.low"]
    assert "cross_net" in json.loads(schema)["$defs"]["Model"]["properties"]["arch"]["enum"]
    assert "onnxzip" in help_text


def test_it_trains_frozen_partly_frozen_and_whole_and_is_scored(place):
    (_, frozen), (_, partly), (_, middle), (_, whole), (_, scored) = mnet(
        place,
        train("frozen", "features"),
        train("partly", "features[:2]"),
        train("middle", "['trunk.middle']"),
        train("whole", "none"),
        ["eval", "--checkpoint", "frozen", "--json"],
    )
    assert json.loads(frozen)["cache"][0]["boundary"] == "cross_net features"
    # The shortcut joins three stages to one piece: with one of them frozen, the cut is below.
    assert json.loads(partly)["cache"][0]["boundary"] == "cross_net features[:1]"
    assert json.loads(partly)["frozen"]["tensors"] == 5
    # Nothing is frozen from the start on, so training takes images through the whole network.
    assert json.loads(middle)["cache"] == json.loads(whole)["cache"] == []
    assert json.loads(middle)["frozen"]["tensors"] == 3
    assert all(json.loads(one)["frozen"]["moved"] == [] for one in (frozen, partly, middle, whole))
    before, after = weights(place / "frozen" / "best.pt"), weights(place / "whole" / "best.pt")
    assert before.keys() == after.keys()
    assert not torch.equal(before["stem.weight"], after["stem.weight"])
    assert json.loads(scored)["top1"] == json.loads(frozen)["best"]["top1"]


def test_what_it_exports_gives_the_predictions_of_the_checkpoint(place, photos):
    picture = str(next((photos / "val" / "red").glob("*.jpg")))
    files = ("best.pt", "cross_net.onnx", "cross_net.torchscript", "cross_net.onnxzip")
    outcomes = mnet(
        place,
        train("exported", "features[:2]"),
        ["export", "exported", "--format", "onnx,torchscript,onnxzip", "--json"],
        *(["predict", picture, "--checkpoint", f"exported/{name}", "--json"] for name in files),
    )
    rows = json.loads(outcomes[1][1])["files"]
    assert [row["file"] for row in rows] == list(files[1:])
    assert all(row["agreement"] == 1 and row["max_delta"] < 1e-3 for row in rows)
    answers = [json.loads(text)["probs"] for _, text in outcomes[2:]]
    for answer in answers[1:]:
        assert answer == pytest.approx(answers[0], abs=1e-4)


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(place):
    settings = ("train.epochs=40", "train.ema=0.9")
    mnet(place, train("unstopped", "features[:2]", *settings))
    process = subprocess.Popen(
        [sys.executable, "-c", STORY, json.dumps([train("stopped", "features[:2]", *settings)])],
        cwd=place,
        env=environment(place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (place / "stopped" / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert not (place / "stopped" / "summary.json").exists(), "it was not stopped in time"
    mnet(place, ["train", "--resume", "stopped"])
    expected, found = (weights(place / name / "last.pt") for name in ("unstopped", "stopped"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
