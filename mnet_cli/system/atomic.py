"""Atomic writes: a file or folder appears complete under its final name, or not at all."""

import csv
import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from mnet_cli.errors import MachineError

NO_FOLDER_SYNC = (  # what opening or syncing a folder gives where that is not supported
    errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP,
    errno.EACCES, errno.EPERM, errno.EISDIR,
)  # fmt: skip


@contextmanager
def atomic_write(path: Path, mode: str = "wb", **open_options: Any) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that is renamed to `path` once it is on disk.

    The file is flushed, fsynced and renamed with `os.replace`, then the folder is fsynced;
    a reader sees the old file or the new one, never a part. If the block raises, the
    temporary file is removed and `path` is as it was.

    Args:
        path: The final name. Its folder must exist.
        mode: A writing mode of `open`.
        **open_options: Further options of `open`, such as `newline`.

    Raises:
        MachineError: The operating system refused (disk full, read-only, quota).
    """
    temporary = _temporary(path)
    if "b" not in mode:
        open_options.setdefault("encoding", "utf-8")
    try:
        with temporary.open(mode, **open_options) as file:
            yield file
        publish(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise not_writable(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Rename a complete file or folder to its final name, once its bytes are on disk.

    No system replaces a folder that is not empty in one step: an older one is renamed
    first and deleted last, so a reader sees the old one, the new one or, for a moment, none.

    Args:
        temporary: The file or folder, in the same file system as `path`.
        path: The final name; what is there is replaced.
    """
    if not temporary.is_dir():
        _sync_file(temporary)
        temporary.replace(path)
        _sync_folder(path.parent)
        return
    for part in temporary.rglob("*"):
        (_sync_folder if part.is_dir() else _sync_file)(part)
    _sync_folder(temporary)
    older = _temporary(temporary.with_name(path.name))  # if killed: removed as a leftover
    if path.exists():
        path.rename(older)
    try:
        temporary.rename(path)
    except OSError:
        if older.exists():
            older.rename(path)
        raise
    _sync_folder(path.parent)
    _remove(older)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` for files that `publish` will move out; it is deleted at the end.

    Raises:
        MachineError: The operating system refused, in the block too.
    """
    scratch = _temporary(folder / "scratch")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)  # of a killed process with this number
        scratch.mkdir()
        yield scratch
    except OSError as error:
        raise not_writable(folder, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_leftovers(folder: Path, *, name: str | None = None, owned: bool = False) -> None:
    """Remove what processes which were killed left in `folder` under temporary names.

    Processes of other hosts and containers may use the same folder. This host cannot know
    whether they still run, so their files stay, as do those of earlier versions, which name
    no host.

    Args:
        folder: Where to look.
        name: Only temporary files of the file or folder of this name; all of them if None.
        owned: No other process writes there, so every temporary file is a leftover. A process
            that was killed in a container often had the same number as this one.
    """
    for path in folder.glob(".*.tmp"):
        final, owner, _ = path.name.rsplit(".", 2)
        if name is not None and final != f".{name}":
            continue
        process, _, host = owner.partition("-")
        is_dead = host == _host() and process.isdecimal() and not _is_running(int(process))
        if owned or is_dead:
            _remove(path)


def _temporary(path: Path) -> Path:
    """The temporary name of a file or folder of this process."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_host()}.tmp")


@cache
def _host() -> str:
    """A short hash of the host's name and its process namespace.

    Containers may have the same host name, so the name alone is not enough.
    """
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())  # Linux
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:12]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True  # Windows has no signal 0
    try:
        os.kill(process, 0)  # only checks that the process exists
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # a process of another user, or not a process number
    return True


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Fill a temporary folder beside `folder` that is renamed to `folder` once it is complete.

    If the block raises, the temporary folder is removed and `folder` is as it was. What a
    process that was killed left of `folder` is removed first.

    Args:
        folder: The final name; it must not exist, or be an empty folder. Missing parents
            are created.

    Raises:
        MachineError: The operating system refused.
    """
    folder = folder.absolute()
    temporary = _temporary(folder)
    try:
        remove_leftovers(folder.parent, name=folder.name)
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with this number
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            folder.rmdir()  # fails if another process has put files there
        temporary.rename(folder)
    except OSError as error:
        raise not_writable(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with path.open("r+b") as file:  # some systems sync only files opened for writing
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, where system and file system can sync folders."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def not_writable(path: Path, error: OSError) -> MachineError:
    """The error of a file or folder that the operating system refuses to write."""
    return MachineError(
        str(path),
        f"cannot be written ({error.strerror or error})",
        next_step="Free some space or choose another folder",
    )


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON with an indent of four, atomically."""
    # backslashreplace writes a byte that is not UTF-8 as the escape that JSON uses.
    with atomic_write(path, "w", errors="backslashreplace") as file:
        json.dump(content, file, indent=4, ensure_ascii=False)
        file.write("\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` under a header of `columns` as CSV, atomically."""
    with atomic_write(path, "w", newline="", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
