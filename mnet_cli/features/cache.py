"""The folder of all stores: what is in it, and how it stays below its limit."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from mnet_cli.errors import MachineError, UsageError
from mnet_cli.features.store import FORMAT
from mnet_cli.system.atomic import remove_leftovers, write_json

ABOUT = "about.json"
CAP_VARIABLE, CAP_GB = "MNET_CACHE_GB", 10.0


@dataclass(frozen=True)
class CachedFolder:
    """One store of the cache.

    Attributes:
        path: Its folder.
        about: What its rows are, as `open_folder` was told.
        size: Bytes on disk.
        used: When it was opened last, in seconds since the epoch.
    """

    path: Path
    about: Mapping[str, Any]
    size: int
    used: float


def cache_root() -> Path:
    """The folder that holds all stores."""
    return platformdirs.user_cache_path("mnet") / "features"


def cache_cap() -> int:
    """The most bytes that the cache may hold.

    Raises:
        UsageError: `MNET_CACHE_GB` is not a positive number.
    """
    text = os.environ.get(CAP_VARIABLE, str(CAP_GB))
    try:
        cap = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        cap = 0
    if cap <= 0:
        raise UsageError(
            CAP_VARIABLE, f'"{text}"', next_step="Set it to a number of gigabytes above 0"
        )
    return cap


def cache_folders() -> list[CachedFolder]:
    """All stores, the one that was used last first."""
    root, found = cache_root(), []
    try:
        for path in root.iterdir():
            with suppress(OSError):
                found.append(CachedFolder(path, _about(path), _size(path), path.stat().st_mtime))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _refused(root, "listed", error) from error
    return sorted(found, key=lambda folder: -folder.used)


def open_folder(about: Mapping[str, Any]) -> Path:
    """Return the folder of the store that `about` describes, marked as used now.

    Args:
        about: Plain values on which the rows depend; another value gives another folder.

    Raises:
        MachineError: The folder cannot be made.
    """
    content = {"format": FORMAT, **about}
    described = json.dumps(content, sort_keys=True)
    folder = cache_root() / hashlib.sha256(described.encode()).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        if not (folder / ABOUT).exists():
            write_json(folder / ABOUT, content)
        os.utime(folder)
    except OSError as error:
        raise _refused(folder, "made", error) from error
    return folder


def make_room(folders: Sequence[Path], needed: int, in_all: int) -> None:
    """Remove the stores that were used longest ago until `needed` bytes more fit.

    Where the stores in `folders` themselves hold too many other rows, such as
    rows of other seeds, they are emptied.

    Args:
        folders: The stores that will grow.
        needed: Bytes by which they will.
        in_all: Bytes of all rows that are requested, cached or not.

    Raises:
        MachineError: It is more than the cache may hold or the disk has; nothing was removed.
    """
    stores = cache_folders()
    cap, free = cache_cap(), shutil.disk_usage(cache_root()).free
    if in_all > min(cap, free + sum(store.size for store in stores)):
        raise MachineError(
            str(cache_root()),
            f"too small for {_megabytes(in_all)} of features: the cache may hold "
            f"{_megabytes(cap)}, and {_megabytes(free)} of the disk are free",
            next_step=f"Free some space, raise {CAP_VARIABLE}, or lower data.cached_views; "
            "0 does without the cache",
        )
    others = [store for store in stores if store.path not in folders]
    own = [store for store in stores if store.path in folders]
    used = sum(store.size for store in stores)
    while others and (used + needed > cap or needed > free):
        used, free = _remove(others.pop(), used, free)
    if used + needed > cap:
        for store in own:
            used, free = _remove(store, used, free)


def _remove(store: CachedFolder, used: int, free: int) -> tuple[int, int]:
    """Remove a store; a process that reads it goes on, for what it has mapped stays."""
    shutil.rmtree(store.path, ignore_errors=True)
    return used - store.size, free + store.size


def clear_cache() -> int:
    """Remove every store and return how many bytes they took.

    Raises:
        MachineError: One cannot be removed.
    """
    freed = 0
    for folder in cache_folders():
        try:
            shutil.rmtree(folder.path)
        except FileNotFoundError:  # another process removed it
            continue
        except OSError as error:
            raise _refused(folder.path, "removed", error) from error
        freed += folder.size
    return freed


def _about(folder: Path) -> dict[str, Any]:
    """What a folder says of itself; nothing if it has lost its description."""
    try:
        content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _size(folder: Path) -> int:
    size = 0
    for path in folder.iterdir():
        with suppress(OSError):
            size += path.stat().st_size
    return size


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _refused(path: Path, what: str, error: OSError) -> MachineError:
    return MachineError(
        str(path),
        f"cannot be {what} ({error.strerror or error})",
        next_step="Check its permissions, or train without the cache: --set data.cached_views=0",
    )
