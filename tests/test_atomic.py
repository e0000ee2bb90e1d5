import os
from pathlib import Path

import pytest

from mnet_cli.atomic import atomic_folder, atomic_write, settle
from mnet_cli.errors import MachineError


def test_file_gets_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path, "w") as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path, "w") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_refusing_disk_is_the_machines_fault(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="No space left"), atomic_write(path, "w") as file:
        file.write("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError), atomic_folder(tmp_path / "a") as folder:
        (folder / "half").touch()
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "deep" / "a") as folder:
        (folder / "whole").touch()
    assert (tmp_path / "deep" / "a" / "whole").is_file()


def test_folder_with_content_is_not_replaced(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(MachineError), atomic_folder(tmp_path) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_settles_replaces_an_older_one_whole(tmp_path):
    scratch, path = tmp_path / "scratch", tmp_path / "a"
    for name in ("old", "new"):
        (scratch / "a" / "deep").mkdir(parents=True)
        (scratch / "a" / "deep" / name).touch()
        settle(scratch / "a", path)
        assert [file.name for file in path.rglob("*") if file.is_file()] == [name]
    assert list(scratch.iterdir()) == []


def test_a_folder_that_cannot_settle_leaves_the_older_one(tmp_path, monkeypatch):
    scratch, path = tmp_path / "scratch", tmp_path / "a"
    (scratch / "a").mkdir(parents=True)
    path.mkdir()
    (path / "old").touch()
    rename = Path.rename

    def refuse(self, target):
        if self == scratch / "a":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space left"):
        settle(scratch / "a", path)
    assert [file.name for file in path.iterdir()] == ["old"]
