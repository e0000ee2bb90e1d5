"""Locks of folders that one process at a time may write."""

from pathlib import Path

from filelock import FileLock, Timeout

from mnet_cli.errors import MachineError, UsageError
from mnet_cli.system.atomic import not_writable
from mnet_cli.system.text import printable

LOCK = ".lock"


def refuse_other_files(folder: Path, own: str) -> None:
    """Refuse a folder that is not empty, unless the file `own` says whose it is.

    Raises:
        UsageError: It has other files, or is a file.
    """
    try:
        if (folder / own).is_file() or all(path.name == LOCK for path in folder.iterdir()):
            return
        found = f"is not empty and has no {own}"
    except FileNotFoundError:
        return
    except OSError as error:
        found = f"cannot be used ({error.strerror or error})"
    raise UsageError(printable(str(folder)), found, next_step="Choose another folder")


def lock_folder(folder: Path) -> FileLock:
    """Make a folder, and lock it for this process until the lock is released.

    Raises:
        MachineError: Another process uses it, or it cannot be written.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise MachineError(
            printable(str(folder)),
            "another process writes into it",
            next_step="Wait for it, or choose another folder",
        ) from error
    except OSError as error:
        raise not_writable(folder, error) from error
    return lock
