"""The folder of one training run: `runs/<recipe>`, `-2`, `-3` …, and `runs/latest`."""

import json
import os
import platform
import re
from contextlib import suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from mnet_cli.errors import DataError, MachineError, MnetError, UsageError, WeightsError
from mnet_cli.system.atomic import atomic_write, write_json
from mnet_cli.system.urls import is_url

LATEST = "latest"
TEXT_FOR_LINK = re.compile(r"run: ([^\0]+)\n")  # what it holds where links fail
LONGEST = 5000  # characters of it that are read
DATA = "data.json"  # where the run's data set is
LOCK = ".lock"  # locked by the process that trains, and never read: Windows would not permit it
OWNER = ".owner"  # which process that is
LAUNCH = ".launch"  # which launch of several processes made it


def create_run(root: Path, name: str) -> Path:
    """Make `root/name`, or the first free of `root/name-2`, `root/name-3` ….

    Raises:
        MachineError: The folder cannot be made.
    """
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    folders = (root / candidate for candidate in names if candidate != LATEST)
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            folder = next(folders)
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise _not_writable(root, error) from error


def claim_run(folder: Path) -> Path:
    """Make `folder` for a run, or take it if it is empty.

    Raises:
        UsageError: The folder holds something.
        MachineError: The folder cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}", "a file", next_step="Name a new or empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A process that was killed at its very start may have left its lock.
        empty = all(path.name in (LOCK, OWNER, LAUNCH) for path in folder.iterdir())
    except OSError as error:
        raise _not_writable(folder, error) from error
    if not empty:
        raise UsageError(f"--out {folder}", "not empty", next_step="Name a new or empty folder")
    return folder


def write_launch(folder: Path, launch: str) -> None:
    """Record which launch of several processes made a run directory."""
    try:
        # Not by a temporary name: one that a killed process leaves behind would fill the folder.
        (folder / LAUNCH).write_text(launch, encoding="utf-8")
    except OSError as error:
        raise _not_writable(folder, error) from error


def find_launched(root: Path, launch: str) -> Path | None:
    """The newest run directory below `root`, or `root` itself, that a launch made; None without."""
    found = []
    for path in (*root.glob(LAUNCH), *root.glob(f"*/{LAUNCH}")):
        with suppress(OSError):
            if path.read_text(encoding="utf-8") == launch and not path.parent.is_symlink():
                found.append((path.stat().st_mtime_ns, path.parent))
    return max(found)[1] if found else None


def lock_run(folder: Path) -> FileLock:
    """Lock a run directory for this process, until the lock is released or the process ends.

    Raises:
        MachineError: Another process uses it, or the folder cannot be written.
    """
    lock, owner = FileLock(folder / LOCK, timeout=0), folder / OWNER
    try:
        lock.acquire()
        owner.write_text(f"pid {os.getpid()} on host {platform.node()}", encoding="utf-8")
    except Timeout as error:
        raise MachineError(
            str(folder),
            f"in use by {_owner(owner)}",
            next_step="Wait for it, or name another directory with --out",
        ) from error
    except OSError as error:
        lock.release()
        raise _not_writable(folder, error) from error
    return lock


def _owner(path: Path) -> str:
    """The process that owns a run, as far as it is known."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") or "another process"
    except OSError:
        return "another process"


def point_latest(root: Path, folder: Path) -> str:
    """Make `root/latest` point to the run directory `folder`, for commands that name no run.

    It is a relative link or, where links cannot be made, a text file with the relative path.
    What stands there and is neither is left alone.

    Returns:
        Why it does not lead there, as a note; empty if it does.
    """
    link, fault = root / LATEST, ""
    try:
        root.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(link) and _target(link) is None:
            fault = "not made by mnet, so it was left as it is"
        else:
            _point(link, _relative_path(root, folder))
    except MnetError as error:
        fault = error.found
    except OSError as error:
        fault = f"cannot be made ({error.strerror or error})"
    return f"{link}: {fault}. Name this run with --checkpoint {folder}" if fault else ""


def _relative_path(root: Path, folder: Path) -> Path:
    """The path of `folder` as seen from `root`; from another drive of Windows there is none."""
    try:
        return Path(os.path.relpath(folder.resolve(), root.resolve()))
    except ValueError:
        return folder.resolve()


def _point(link: Path, target: Path) -> None:
    """Make `link` a link to the folder `target`, or a text file that names it."""
    new = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        new.unlink(missing_ok=True)
        new.symlink_to(target, target_is_directory=True)
        try:
            new.replace(link)
        except PermissionError:  # Windows replaces no link to a folder
            link.unlink()
            new.replace(link)
    except (OSError, NotImplementedError):
        new.unlink(missing_ok=True)
        with atomic_write(link, "w", errors="surrogateescape") as file:
            file.write(f"run: {target.as_posix()}\n")


def _target(link: Path) -> Path | None:
    """Where a link, or the text file in its place, leads; None if it is neither."""
    try:
        if link.is_symlink():
            return link.readlink()
        if not link.is_file():
            return None
        with link.open(encoding="utf-8", errors="surrogateescape") as file:
            named = TEXT_FOR_LINK.fullmatch(file.read(LONGEST))
    except OSError:
        return None
    return Path(named[1]) if named else None


def follow_latest(path: Path) -> Path:
    """The run directory that a `latest` in the form of a text file names; else the path itself."""
    target = None if path.name != LATEST or path.is_symlink() else _target(path)
    return _run_at(path.parent, target) if target else path


def latest_run(root: Path = Path("runs")) -> Path:
    """The run directory that was started last below `root`.

    Raises:
        WeightsError: There is none.
    """
    link = root / LATEST
    target = _target(link)
    folder = _run_at(root, target) if target else link.resolve()
    if not folder.is_dir():
        raise WeightsError(
            str(link),
            "no run here",
            next_step="Train first, or name a run with --checkpoint",
        )
    return folder


def _run_at(root: Path, target: Path) -> Path:
    """A run directory; one beside the link keeps the short path that the user knows it by."""
    folder = root / target
    return folder if len(target.parts) == 1 else folder.resolve()


def write_data_root(folder: Path, root: str) -> None:
    """Record in `data.json` where the data set of a run is, relative to the run directory.

    A run and its data set that are moved together still find each other. Only where no
    relative path leads to the data set, as to another drive of Windows, is it absolute. A URL is
    recorded as it is.

    Args:
        folder: The run directory.
        root: The data set, a path or URL.
    """
    if is_url(root):
        recorded = root
    else:
        try:
            recorded = Path(os.path.relpath(root, folder.resolve())).as_posix()
        except ValueError:
            recorded = Path(root).absolute().as_posix()
    write_json(folder / DATA, {"root": recorded})


def find_data(folder: Path, root: str, option: str) -> str:
    """Find the data set of a run: where `data.json` says, else in the working folder.

    Args:
        folder: The run directory.
        root: As the run's recipe says; a path is relative to the working folder.
        option: How another place can be named, for errors.

    Returns:
        `root` itself where it leads to the same place as `data.json`.

    Raises:
        DataError: The data set is in neither place, or `data.json` is damaged.
    """
    recorded = _recorded_root(folder, option)
    if recorded is not None and is_url(recorded):
        return recorded
    if recorded is not None and os.path.lexists(recorded):
        same = os.path.lexists(root) and Path(root).samefile(recorded)
        return root if same else recorded
    if is_url(root) or os.path.lexists(root):
        return root
    nor = "" if recorded is None else f", nor is it at {recorded}"
    raise DataError(
        root,
        f"the data set of the run does not exist{nor}",
        next_step=f"Name labelled images with {option}",
    )


def _recorded_root(folder: Path, option: str) -> str | None:
    """Where `data.json` says that a run's data set is; None without such a file."""
    path = folder / DATA
    if not path.is_file():
        return None
    try:
        root: str = json.loads(path.read_text(encoding="utf-8"))["root"]
        # No link is left in the folder's own path, so its parts can be taken back by "..".
        return root if is_url(root) else os.path.normpath(folder.resolve() / root)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            str(path),
            f"does not say where the data set is ({type(error).__name__})",
            next_step=f"Name the images with {option}",
        ) from error


def _not_writable(path: Path, error: OSError) -> MachineError:
    return MachineError(
        str(path),
        f"cannot be made ({error.strerror or error})",
        next_step="Check its permissions, or choose another with --out",
    )
