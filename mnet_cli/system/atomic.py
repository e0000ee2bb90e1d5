"""The one way in which mnet writes files: whole under the final name, or not at all."""

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
    """Open a temporary file beside `path` that takes its name once it is safely on disk.

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
        raise _not_writable(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Give a complete file or folder its final name, once its bytes are safely on disk.

    No system replaces a folder that has something in it in one step: an older one is renamed
    away first and removed last, so that a reader sees one, the other or, for a moment, none.

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
    older = _temporary(temporary.with_name(path.name))  # goes as a leftover if killed
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
    """A folder inside `folder` for files that `publish` will move out; it goes with the block.

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
        raise _not_writable(folder, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_leftovers(folder: Path, *, name: str | None = None, owned: bool = False) -> None:
    """Remove what processes which were killed left in `folder` under temporary names.

    Processes of other hosts and containers may share the folder; whether they still run cannot
    be told here, so their files stay, as do those of earlier versions, which name no host.

    Args:
        folder: Where to look.
        name: Only what was to become the file or folder of this name; of any name if None.
        owned: No other process writes there, so that whatever lies there is left over; a
            process that was killed in a container has often the number of this one.
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
    """The name of this process's own until a file or folder takes its final one."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_host()}.tmp")


@cache
def _host() -> str:
    """What tells this host's processes from others': its name and its space of pids, hashed.

    Containers may share a host's name, and long names differ at their ends.
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
        return True  # elsewhere there is no signal that only asks
    try:
        os.kill(process, 0)  # asks, and sends nothing
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's, or no number of a process
    return True


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Fill a temporary folder beside `folder` that takes its name once it is complete.

    If the block raises, the temporary folder is removed and `folder` is as it was. What a
    process that was killed left of `folder` is removed first.

    Args:
        folder: The final name; nothing or an empty folder may stand there. Missing parents
            are made.

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
            folder.rmdir()  # refuses a folder that has been filled meanwhile
        temporary.rename(folder)
    except OSError as error:
        raise _not_writable(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with path.open("r+b") as file:  # some systems sync only what may be written
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


def _not_writable(path: Path, error: OSError) -> MachineError:
    return MachineError(
        str(path),
        f"cannot be written ({error.strerror or error})",
        "a writable folder with free space was expected",
        "Free some space or choose another folder",
    )


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON with an indent of four, whole or not at all."""
    # What backslashreplace makes of a byte that is not UTF-8 is what JSON would escape it as.
    with atomic_write(path, "w", errors="backslashreplace") as file:
        json.dump(content, file, indent=4, ensure_ascii=False)
        file.write("\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` under a header of `columns`, whole or not at all."""
    with atomic_write(path, "w", newline="", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
