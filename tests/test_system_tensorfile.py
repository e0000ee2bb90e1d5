"""Files of tensors: what is read, what is refused, and in which words."""

import errno
import os
import pickle
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from mnet_cli.errors import MachineError, WeightsError
from mnet_cli.system.tensorfile import read_tensors, write_tensors

CONTENT = {"weight": torch.arange(600.0).reshape(20, 30), "epoch": 3, "names": ["daisy", "rose"]}


class Malice:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def same(one: dict, other: dict) -> bool:
    return (
        one.keys() == other.keys()
        and torch.equal(one["weight"], other["weight"])
        and one["epoch"] == other["epoch"]
        and one["names"] == other["names"]
    )


def refusal(path: Path) -> str:
    """The one line with which `read_tensors` refuses a file."""
    with pytest.raises(WeightsError) as caught:
        read_tensors(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert "weights_only" not in line
    return line


def test_what_was_written_is_read_back(tmp_path):
    write_tensors(tmp_path / "a.pt", CONTENT)
    assert same(read_tensors(tmp_path / "a.pt"), CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_equal_content_makes_equal_bytes(tmp_path):
    write_tensors(tmp_path / "a.pt", CONTENT)
    write_tensors(tmp_path / "b.pt", CONTENT)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_tensors(tmp_path / "a.pt", CONTENT)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        write_tensors(tmp_path / "a.pt", CONTENT | {"epoch": 4})
    assert same(read_tensors(tmp_path / "a.pt"), CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_the_older_pickle_format_is_read(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(OrderedDict(CONTENT), path, _use_new_zipfile_serialization=False)
    assert same(read_tensors(path), CONTENT)


def test_safetensors_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "a.safetensors"
    safetensors.save_file({"weight": CONTENT["weight"]}, path)
    assert torch.equal(read_tensors(path)["weight"], CONTENT["weight"])
    path.write_bytes(path.read_bytes()[:-7])
    assert "truncated, damaged" in refusal(path)


def test_safetensors_without_the_package_name_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MachineError, match=r'pip install "mnet-cli\[timm\]"'):
        read_tensors(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (bytes(4096), "filled with zeros"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "a Git LFS pointer"),
        (b"just some words", "not a PyTorch file"),
        (b"\x80\x02broken", "damaged"),
        (b"PK\x03\x04broken", "truncated or damaged"),
    ],
)
def test_what_stands_in_a_files_place_is_named(tmp_path, data, words):
    for name in ("a.pth", "a.safetensors"):
        path = tmp_path / name
        path.write_bytes(data)
        line = refusal(path)
        assert words in line or (name == "a.safetensors" and "not a safetensors file" in line)


def test_what_is_not_a_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "no such file" in refusal(tmp_path / "absent.pth")
    assert "a directory" in refusal(tmp_path)
    assert "not a regular file" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize("zipped", [True, False])
def test_every_truncation_is_found(tmp_path, zipped):
    path, cut = tmp_path / "a.pth", tmp_path / "cut.pth"
    torch.save(CONTENT, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for length in range(0, len(data) - 1, 61):
        cut.write_bytes(data[:length])
        refusal(cut)


def test_no_flipped_byte_changes_what_is_read(tmp_path):
    path, bad = tmp_path / "a.pth", tmp_path / "bad.pth"
    write_tensors(path, CONTENT)
    data = path.read_bytes()
    refused = 0
    for position in range(0, len(data), 13):
        flipped = bytearray(data)
        flipped[position] ^= 0x10
        bad.write_bytes(flipped)
        try:
            content = read_tensors(bad)
        except WeightsError:
            refused += 1
        else:  # padding and dates in the zip's own records mean nothing
            assert same(content, CONTENT), position
    assert refused > len(data) / 13 / 2


def test_a_flipped_byte_of_a_tensor_is_told_as_such(tmp_path):
    path = tmp_path / "a.pth"
    write_tensors(path, CONTENT)
    data = bytearray(path.read_bytes())
    data[data.index(CONTENT["weight"].numpy().tobytes()) + 100] ^= 1
    path.write_bytes(data)
    assert "the checksum of archive/data/0 differs" in refusal(path)


@pytest.mark.parametrize("forced", ["0", "1"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, monkeypatch, zipped, forced):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    path, marker = tmp_path / "a.pth", tmp_path / "marker"
    evil = {"weight": torch.zeros(2), "evil": Malice(marker)}
    torch.save(evil, path, _use_new_zipfile_serialization=zipped)
    assert "a pickle of Python objects, which could run code (it calls posix.mkdir)" in refusal(
        path
    )
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    path, marker = tmp_path / "a.pth", tmp_path / "marker"
    path.write_bytes(pickle.dumps(Malice(marker), protocol=protocol))
    refusal(path)
    assert not marker.exists()


def test_a_whole_module_is_refused_with_advice(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    line = refusal(tmp_path / "a.pth")
    assert "torch.nn.modules.linear.Linear" in line
    assert "only the model's state_dict" in line


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.ReLU()), tmp_path / "a.pth")
    assert "a TorchScript archive" in refusal(tmp_path / "a.pth")


def test_a_tar_of_early_torch_is_refused(tmp_path):
    (tmp_path / "storages").write_bytes(b"\x80\x02")
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        archive.add(tmp_path / "storages", "storages")
    assert "a tar archive" in refusal(tmp_path / "a.pth")


def test_another_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("model.json", "{}")
    assert "a zip that torch.save did not write" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [torch.zeros(2), [torch.zeros(2)], {0: torch.zeros(2)}])
def test_what_is_not_a_dict_by_name_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    assert "not tensors by name" in refusal(tmp_path / "a.pth")
