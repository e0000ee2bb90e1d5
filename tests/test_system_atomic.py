import errno
import os
import platform
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mnet_cli.errors import MachineError
from mnet_cli.system import atomic
from mnet_cli.system.atomic import atomic_folder, atomic_write, publish


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


def refuse_folders(monkeypatch, call, code):
    """Let a call of `os` fail as a file system does which lacks it for folders."""
    real = getattr(os, call)

    def refuse(file, *others):
        opened = isinstance(file, int)
        if stat.S_ISDIR(os.fstat(file).st_mode) if opened else Path(file).is_dir():
            raise OSError(code, os.strerror(code))
        return real(file, *others)

    monkeypatch.setattr(os, call, refuse)


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX alone")
@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("fsync", errno.EINVAL),  # Linux: SMB before 4.17
        ("fsync", errno.ENOTSUP),
        ("fsync", errno.ENOSYS),
        ("fsync", errno.EBADF),  # NetBSD
        ("open", errno.EACCES),  # a folder that may be written but not listed
        ("open", errno.EPERM),
    ],
)
def test_a_file_system_that_cannot_sync_folders_is_written_to(call, code, tmp_path, monkeypatch):
    refuse_folders(monkeypatch, call, code)
    with atomic_write(tmp_path / "a.txt", "w") as file:
        file.write("new")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "b").touch()
    publish(tmp_path / "scratch", tmp_path / "folder")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert (tmp_path / "folder" / "b").exists()


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX alone")
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_to_sync_a_folder_is_the_machines_fault(code, tmp_path, monkeypatch):
    refuse_folders(monkeypatch, "fsync", code)
    with (
        pytest.raises(MachineError, match=os.strerror(code)),
        atomic_write(tmp_path / "a.txt", "w") as file,
    ):
        file.write("new")


def test_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError), atomic_folder(tmp_path / "a") as folder:
        (folder / "half").touch()
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "deep" / "a") as folder:
        (folder / "whole").touch()
    assert (tmp_path / "deep" / "a" / "whole").is_file()


def test_temporary_names_of_two_hosts_differ_though_they_begin_alike(host_in_names, monkeypatch):
    names = []
    for end in ("abcde", "vwxyz"):
        monkeypatch.setattr(platform, "node", lambda end=end: f"{'flowers-training-' * 4}{end}")
        atomic._host.cache_clear()
        names.append(host_in_names())
    atomic._host.cache_clear()
    assert len(set(names)) == 2


@pytest.mark.skipif(os.name != "posix", reason="POSIX alone tells whether a process runs")
def test_leftovers_of_the_folder_are_removed_and_no_others(tmp_path, host_in_names):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = host_in_names()
    ours = f".a.{gone.pid}-{host}.tmp"
    container = f".a.{os.getpid()}-{host}.tmp"  # there pids come again
    running = f".a.{os.getppid()}-{host}.tmp"
    others = [
        f".a.{gone.pid}-elsewhere.tmp",
        f".a.{gone.pid}.tmp",  # of an earlier version, on any host
        f".b.{gone.pid}-{host}.tmp",
        f".a.b.{gone.pid}-{host}.tmp",
        f"a.{gone.pid}-{host}.tmp",
        ".a.tmp",
    ]
    for name in (ours, container, running, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "whole").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"a", running, *others}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["whole"]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL, and whether a process runs")
@pytest.mark.parametrize(
    ("module", "call", "step"),
    [
        ("split", "split_folder(Path('photos'), Path('made'))", "_place"),
        ("sample", "draw_sample(Path('made'), train_per_class=1, val_per_class=1)", "_save"),
    ],
)
def test_a_killed_process_leaves_nothing_once_its_work_is_done_again(module, call, step, tmp_path):
    for name in ("daisy", "roses"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "photos" / name / f"{number}.jpg").write_bytes(f"{name}{number}".encode())
    prepare = f"import os, signal; from pathlib import Path; from mnet_cli.data import {module}\n"
    kill = f"{module}.{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    for code, status in ((kill, -signal.SIGKILL), ("", 0)):
        command = [sys.executable, "-c", f"{prepare}{code}{module}.{call}"]
        assert subprocess.run(command, cwd=tmp_path, timeout=60).returncode == status
        assert len(list(tmp_path.glob(".made.*.tmp"))) == bool(code)
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "made"}


def test_folder_with_content_is_not_replaced(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(MachineError), atomic_folder(tmp_path) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_is_published_replaces_an_older_one_whole(tmp_path):
    scratch, path = tmp_path / "scratch", tmp_path / "a"
    for name in ("old", "new"):
        (scratch / "a" / "deep").mkdir(parents=True)
        (scratch / "a" / "deep" / name).touch()
        publish(scratch / "a", path)
        assert [file.name for file in path.rglob("*") if file.is_file()] == [name]
    assert list(scratch.iterdir()) == []


def test_a_folder_that_cannot_be_published_leaves_the_older_one(tmp_path, monkeypatch):
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
        publish(scratch / "a", path)
    assert [file.name for file in path.iterdir()] == ["old"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="file names by descriptor")
@pytest.mark.parametrize("kind", ["write", "publish a file", "publish a folder"])
def test_dropping_what_was_not_synced_leaves_the_old_or_the_new(kind, tmp_path, monkeypatch):
    """Replay the recorded calls: at a rename all that moves must be on disk already."""
    events = []
    real_sync, real_replace, real_rename = os.fsync, Path.replace, Path.rename

    def sync(descriptor):
        events.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_sync(descriptor)

    def moved(real):
        def move(self, target):
            parts = [self, *self.rglob("*")] if self.is_dir() else [self]
            events.append(("rename", self, parts))
            return real(self, target)

        return move

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", moved(real_replace))
    monkeypatch.setattr(Path, "rename", moved(real_rename))
    if kind == "write":
        with atomic_write(tmp_path / "a") as file:
            file.write(b"new")
    else:
        source = tmp_path / "source"
        if kind == "publish a folder":
            (source / "deep").mkdir(parents=True)
            (source / "deep" / "part").write_bytes(b"new")
        else:
            source.write_bytes(b"new")
        publish(source, tmp_path / "a")
    on_disk = set()
    for event, path, *parts in events:
        if event == "sync":
            on_disk.add(path)
        else:
            assert set(parts[0]) <= on_disk
    assert events[-1] == ("sync", tmp_path)
    assert any(event == "rename" for event, *_ in events)
