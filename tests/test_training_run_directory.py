import csv
import errno
import io
import json
import os
from pathlib import Path

import pytest

from mnet_cli.errors import MachineError, UsageError, WeightsError
from mnet_cli.system.atomic import write_csv, write_json
from mnet_cli.training import run_directory
from mnet_cli.training.run_directory import (
    claim_run,
    create_run,
    follow_latest,
    latest_run,
    lock_run,
    point_latest,
)


def test_names_are_numbered_from_the_second_run(tmp_path):
    names = [create_run(tmp_path / "runs", "flowers").name for _ in range(3)]
    assert names == ["flowers", "flowers-2", "flowers-3"]


def test_a_run_is_never_named_like_the_link(tmp_path):
    assert create_run(tmp_path, "latest").name == "latest-2"


def test_latest_follows_the_newest_run_and_survives_a_move(tmp_path):
    root = tmp_path / "runs"
    for _ in range(2):
        point_latest(root, create_run(root, "a"))
    assert latest_run(root).name == "a-2"
    moved = root.rename(tmp_path / "moved")
    assert latest_run(moved) == moved / "a-2"


@pytest.fixture
def no_links(monkeypatch):
    """A file system, or a user of Windows, without symbolic links."""

    def refuse(self, target, target_is_directory=False):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(self))

    monkeypatch.setattr(Path, "symlink_to", refuse)


def test_latest_leads_to_a_run_elsewhere(tmp_path):
    elsewhere = claim_run(tmp_path / "elsewhere")
    assert point_latest(tmp_path / "runs", elsewhere) == ""
    assert latest_run(tmp_path / "runs") == elsewhere.resolve()


@pytest.mark.parametrize("content", ["mine", "run: \n", "run: a\0b\n", "run: a", "\xff\n" * 9999])
def test_a_file_of_others_called_latest_stays_and_is_told(content, tmp_path, no_links):
    latest = tmp_path / "latest"
    latest.write_text(content, encoding="latin-1")
    run = create_run(tmp_path, "a")
    note = point_latest(tmp_path, run)
    assert f"{latest}: not made by mnet" in note
    assert f"--checkpoint {run}" in note
    assert latest.read_text(encoding="latin-1") == content
    with pytest.raises(WeightsError, match="no run here"):
        latest_run(tmp_path)


def test_a_folder_of_others_called_latest_stays_and_is_told(tmp_path):
    (tmp_path / "latest" / "mine").mkdir(parents=True)
    assert "--checkpoint" in point_latest(tmp_path, create_run(tmp_path, "a"))
    assert (tmp_path / "latest" / "mine").is_dir()


def test_without_links_latest_is_a_text_file_that_leads_to_the_newest_run(tmp_path, no_links):
    root = tmp_path / "runs"
    for _ in range(2):
        assert point_latest(root, create_run(root, "a")) == ""
    assert (root / "latest").read_text() == "run: a-2\n"
    assert latest_run(root) == root / "a-2"
    moved = root.rename(tmp_path / "moved")
    assert latest_run(moved) == moved / "a-2"
    elsewhere = claim_run(tmp_path / "elsewhere")
    assert point_latest(moved, elsewhere) == ""
    assert latest_run(moved) == elsewhere.resolve()
    assert follow_latest(moved / "latest").resolve() == elsewhere.resolve()
    assert follow_latest(elsewhere) == elsewhere
    assert not list(moved.glob(".*"))


def test_a_link_takes_the_place_of_the_text_file_and_the_other_way_round(tmp_path, monkeypatch):
    def refuse(self, target, target_is_directory=False):
        raise NotImplementedError

    for number, refused in enumerate((False, True, False), 1):
        with monkeypatch.context() as patch:
            if refused:
                patch.setattr(Path, "symlink_to", refuse)
            run = create_run(tmp_path, f"run{number}")
            assert point_latest(tmp_path, run) == ""
        assert (tmp_path / "latest").is_symlink() is not refused
        assert latest_run(tmp_path) == run


def test_a_link_to_a_folder_that_no_call_replaces_is_removed_first(tmp_path, monkeypatch):
    replace = Path.replace

    def replace_no_folder(self, target):
        if Path(target).is_dir():
            raise PermissionError(errno.EACCES, "Access is denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_no_folder)
    for _ in range(2):
        run = create_run(tmp_path, "a")
        assert point_latest(tmp_path, run) == ""
    assert latest_run(tmp_path) == run
    assert (tmp_path / "latest").is_symlink()


def test_where_neither_link_nor_file_can_be_made_training_is_told_so(tmp_path):
    (tmp_path / "file").touch()
    run = claim_run(tmp_path / "run")
    assert f"--checkpoint {run}" in point_latest(tmp_path / "file", run)


def test_a_run_has_one_owner_that_others_can_read(tmp_path):
    run = claim_run(tmp_path / "run")
    lock = lock_run(run)
    assert (run / ".lock").read_text() == ""
    with pytest.raises(MachineError, match=f"in use by pid {os.getpid()} on host "):
        lock_run(run)
    lock.release()
    lock_run(run).release()


def test_a_run_whose_lock_nobody_else_can_open_is_owned_and_says_by_whom(tmp_path, monkeypatch):
    """On Windows the locked part of a file can be neither read nor written by others."""
    run, opened = claim_run(tmp_path / "run"), io.open

    def refuse_lock(file, *arguments, **options):
        if Path(file).name == ".lock":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(file, *arguments, **options)

    monkeypatch.setattr(io, "open", refuse_lock)
    lock = lock_run(run)
    with pytest.raises(MachineError, match="in use by pid"):
        lock_run(run)
    lock.release()


def test_an_owner_that_cannot_be_read_is_another_process(tmp_path):
    run = claim_run(tmp_path / "run")
    lock = lock_run(run)
    (run / ".owner").unlink()
    with pytest.raises(MachineError, match="in use by another process"):
        lock_run(run)
    lock.release()


def test_a_run_of_an_earlier_version_with_its_owner_in_the_lock_is_owned(tmp_path):
    (tmp_path / ".lock").write_text("pid 1 on host elsewhere")
    lock_run(tmp_path).release()
    assert f"pid {os.getpid()} on host" in (tmp_path / ".owner").read_text()


def test_a_folder_where_only_lock_and_owner_are_left_is_empty(tmp_path):
    lock_run(claim_run(tmp_path / "run")).release()
    assert claim_run(tmp_path / "run").is_dir()


def test_a_disk_that_is_full_when_a_run_is_owned_leaves_it_free(tmp_path, monkeypatch):
    run = claim_run(tmp_path / "run")

    def full(self, *arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(MachineError, match="No space left"):
            lock_run(run)
    lock_run(run).release()


def test_no_run_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(WeightsError, match="Train first"):
        latest_run(tmp_path)


def test_named_folder_must_be_empty(tmp_path):
    assert claim_run(tmp_path / "new").is_dir()
    (tmp_path / "new" / "mine.txt").touch()
    with pytest.raises(UsageError, match="not empty"):
        claim_run(tmp_path / "new")
    assert (tmp_path / "new" / "mine.txt").exists()


def test_unwritable_root_is_the_machines_fault(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError):
        create_run(tmp_path / "file", "a")


def test_files_hold_what_was_written(tmp_path):
    write_json(tmp_path / "a.json", {"0": "gänseblümchen"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"0": "gänseblümchen"}
    rows = [{"path": 'odd, "name"\n', "extra": 1}]
    write_csv(tmp_path / "a.csv", ["path"], rows)
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"path": 'odd, "name"\n'}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]


def test_a_run_directory_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="file"):
        claim_run(tmp_path / "file" / "run")


def test_a_latest_that_cannot_be_replaced_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise MachineError("latest", "cannot be written")

    monkeypatch.setattr(run_directory, "_point", refuse)
    note = point_latest(tmp_path, create_run(tmp_path, "a"))
    assert "cannot be written" in note
    assert f"--checkpoint {tmp_path / 'a'}" in note


def test_a_run_on_another_drive_is_pointed_to_by_its_whole_path(tmp_path, monkeypatch):
    def other_drive(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    run = create_run(tmp_path, "a")
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "relpath", other_drive)
        assert point_latest(tmp_path, run) == ""
    assert (tmp_path / "latest").readlink() == run.resolve()
