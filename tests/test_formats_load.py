import pickle
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mnet_cli.errors import MachineError, UsageError, WeightsError
from mnet_cli.formats import registry
from mnet_cli.formats.base import Format
from mnet_cli.formats.checkpoint import load_checkpoint
from mnet_cli.inference.classifier import open_classifier
from mnet_cli.models.device import choose_device
from mnet_cli.models.onnx_graph import to_onnx
from mnet_cli.system import trusted_files


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


@pytest.mark.parametrize("suffix", [".torchscript", ".pt2"])
def test_archives_from_elsewhere_are_refused_before_torch_sees_them(suffix, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / f"model{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data/constants/opaque_obj_0", pickle.dumps(Marker(marker)))
    with pytest.raises(WeightsError, match="not written by this user's mnet export"):
        open_classifier(path, "cpu")
    assert not marker.exists()


def test_our_own_file_is_refused_once_it_is_changed(tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"as it was written")
    trusted_files.trust(path.read_bytes())
    assert trusted_files.read_trusted(path) == b"as it was written"
    path.write_bytes(b"as it was changed")
    with pytest.raises(WeightsError, match="not written by"):
        trusted_files.read_trusted(path)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_other_devices_are_refused_where_there_is_none(suffix, tmp_path):
    with pytest.raises(UsageError, match="runs on the CPU"):
        open_classifier(tmp_path / f"model{suffix}", "cuda")


@pytest.mark.parametrize(
    ("suffix", "extra", "package"),
    [(".xml", "openvino", "openvino"), (".tflite", "tflite", "ai_edge_litert")],
)
def test_a_missing_runtime_names_the_command_that_installs_it(
    suffix, extra, package, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(MachineError, match=rf'pip install "mnet-cli\[{extra}\]"'):
        open_classifier(tmp_path / f"model{suffix}", "cpu")


def test_a_format_that_cannot_be_used_disturbs_no_other(tmp_path, monkeypatch):
    class Old(Format):
        """Of a package that was made for another version."""

    kinds = {"new": type(registry.find_format("onnx")), "old": Old}
    formats = SimpleNamespace(names=lambda: (*kinds,), load=lambda name, where: kinds[name])
    monkeypatch.setattr(registry, "FORMATS", formats)
    registry._names_by_suffix.cache_clear()
    try:
        assert registry.format_of(tmp_path / "a.onnx").suffix == ".onnx"
        with pytest.raises(MachineError, match='"old" cannot be used'):
            registry.find_format("old")
    finally:
        registry._names_by_suffix.cache_clear()


def test_an_exported_file_is_no_checkpoint(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(WeightsError, match="an exported file, not a checkpoint"):
        load_checkpoint(tmp_path / "model.onnx")
    with pytest.raises(WeightsError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "gone.pt")


def test_all_formats_are_found_by_suffix_without_torch():
    code = (
        "import sys; from pathlib import Path; from mnet_cli.formats.registry import format_of\n"
        "assert format_of(Path('a.onnx')).suffix == '.onnx'\n"
        "assert format_of(Path('best.pt')) is None\n"
        "assert not {'torch', 'onnx', 'openvino'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
