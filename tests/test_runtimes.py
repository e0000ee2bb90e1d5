import json
import pickle
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from mnet_cli.errors import UsageError, WeightsError
from mnet_cli.models.onnx_graph import to_onnx
from mnet_cli.runtimes import choose_device, open_classifier


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(WeightsError):
        open_classifier(tmp_path, "cpu")


def test_missing_device_is_refused_not_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda"):
        choose_device("cuda")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="--device gpu"):
        choose_device("gpu")


OF_EXTRAS = {".tflite": "ai_edge_litert", ".pte": "executorch"}
SUFFIXES = [
    *(".onnx", ".torchscript", ".pt2"),
    *(suffix for suffix, package in OF_EXTRAS.items() if find_spec(package)),
]


def archive(path, **entries):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(f"model/{name}", content)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"PK\3\4 no zip", b"<html>", None])
def test_damaged_files_are_refused_in_one_line(suffix, content, tmp_path):
    path = tmp_path / f"model{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=str(path)):
        open_classifier(path, "cpu")


def test_an_onnx_model_from_elsewhere_lacks_the_contract(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(to_onnx(nn.Sequential(nn.Conv2d(3, 4, 1))))
    with pytest.raises(WeightsError, match="no class names"):
        open_classifier(path, "cpu")


class Marker:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "name", ["data/sample_inputs/model.pt", "data/aotinductor/model/kernel.so", "data.pkl"]
)
def test_an_archive_with_code_in_it_is_refused_and_not_run(name, tmp_path):
    marker = tmp_path / "marker"
    hostile = pickle.dumps(Marker(marker))
    content = {name: hostile, "archive_format": "pt2", "models/model.json": "{}"}
    path = archive(tmp_path / "model.pt2", **content)
    with pytest.raises(WeightsError):
        open_classifier(path, "cpu")
    assert not marker.exists()


def test_an_archive_that_asks_for_pickle_is_refused(tmp_path):
    config = json.dumps({"config": {"weight": {"path_name": "weight_0", "use_pickle": True}}})
    path = archive(tmp_path / "model.pt2", **{"data/weights/model_weights_config.json": config})
    with pytest.raises(WeightsError, match="could run code"):
        open_classifier(path, "cpu")


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_other_devices_are_refused_where_there_is_none(suffix, tmp_path):
    with pytest.raises(UsageError, match="runs on the CPU"):
        open_classifier(tmp_path / f"model{suffix}", "cuda")
