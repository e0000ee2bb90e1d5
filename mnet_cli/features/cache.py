"""The folder of all stores: what is in it, and how it stays below its cap."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from mnet_cli.errors import MachineError, UsageError
from mnet_cli.features.store import FORMAT
from mnet_cli.run_directory import write_json

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
        UsageError: `MNET_CACHE_GB` is not a number.
    """
    text = os.environ.get(CAP_VARIABLE, str(CAP_GB))
    try:
        return int(float(text) * 1e9)
    except (ValueError, OverflowError) as error:
        raise UsageError(CAP_VARIABLE, f'"{text}"', "a number of gigabytes was expected") from error


def cache_folders() -> list[CachedFolder]:
    """All stores, the one that was used last first."""
    found = []
    with suppress(FileNotFoundError):
        for path in cache_root().iterdir():
            with suppress(OSError):
                found.append(CachedFolder(path, _about(path), _size(path), path.stat().st_mtime))
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
        if not (folder / ABOUT).exists():
            write_json(folder / ABOUT, content)
        os.utime(folder)
    except OSError as error:
        raise MachineError(
            str(folder),
            f"cannot be made ({error.strerror or error})",
            "a writable cache folder was expected",
            "Train without the cache: --set data.cached_views=0",
        ) from error
    return folder


def make_room(folder: Path, needed: int) -> bool:
    """Remove the stores that were used longest ago until `needed` bytes more fit below the cap.

    Args:
        folder: The store that will grow; it stays.
        needed: Bytes.

    Returns:
        Whether they fit. If not, nothing was removed.
    """
    others = [other for other in cache_folders() if other.path != folder]
    room = cache_cap() - _size(folder) - needed
    if room < 0:
        return False
    held = sum(other.size for other in others)
    while held > room:
        oldest = others.pop()
        # A process that reads it goes on: what is mapped stays until it is let go.
        shutil.rmtree(oldest.path, ignore_errors=True)
        held -= oldest.size
    return True


def clear_cache() -> int:
    """Remove every store and return how many bytes they held.

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
            raise MachineError(
                str(folder.path),
                f"cannot be removed ({error.strerror or error})",
                "a writable cache folder was expected",
            ) from error
        freed += folder.size
    return freed


def _about(folder: Path) -> dict[str, Any]:
    """What a folder says of itself; nothing if it has lost its description."""
    try:
        content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _size(folder: Path) -> int:
    size = 0
    for path in folder.iterdir():
        with suppress(OSError):
            size += path.stat().st_size
    return size
