"""Every image is decoded and hashed once, and the outcome is remembered between runs."""

import hashlib
import os
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from mnet_cli.data.images import decode_image, read_bytes
from mnet_cli.errors import DataError
from mnet_cli.text import readable

COMMIT_EVERY = 500  # images; a check that was killed goes on from here


@dataclass(frozen=True)
class CheckedImage:
    """What the check found in one file.

    Attributes:
        sha256: Digest of the file's bytes; empty if they could not be read.
        fault: Why the image cannot be used; empty if it can.
    """

    sha256: str
    fault: str


def check_images(
    paths: Sequence[Path], on_progress: Callable[[int, int], None] | None = None
) -> list[CheckedImage]:
    """Decode and hash every file once, in parallel; unchanged files are taken as remembered.

    The outcome is kept by path, size and modification time in the user's cache folder,
    never beside the images. If that folder cannot be written, nothing is remembered.

    Args:
        paths: The image files.
        on_progress: Called with (done, total).

    Returns:
        One `CheckedImage` for each path, in order.
    """
    stamps = [_stamp(path) for path in paths]
    with closing(_open_memory()) as memory, ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = [_recall(memory, stamp) for stamp in stamps]
        unknown = [index for index, outcome in enumerate(outcomes) if outcome is None]
        news: list[tuple[str, int, int, str, str]] = []
        fresh = pool.map(_check, (paths[index] for index in unknown))
        for count, (index, outcome) in enumerate(zip(unknown, fresh, strict=True), start=1):
            outcomes[index] = outcome
            if stamp := stamps[index]:
                news.append((*stamp, outcome.sha256, outcome.fault))
            if len(news) == COMMIT_EVERY or count == len(unknown):
                _remember(memory, news)
                news = []
            if on_progress:
                on_progress(len(paths) - len(unknown) + count, len(paths))
    return [outcome for outcome in outcomes if outcome is not None]


def same_bytes(hashes: Sequence[str]) -> list[list[int]]:
    """Group the indices of equal hashes; only groups of two or more."""
    groups = defaultdict(list)
    for index, sha256 in enumerate(hashes):
        groups[sha256].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _check(path: Path) -> CheckedImage:
    digest = ""
    try:
        content = read_bytes(path)
        digest = hashlib.sha256(content).hexdigest()
        decode_image(content, str(path))
    except DataError as error:
        return CheckedImage(digest, error.found)
    return CheckedImage(digest, "")


def _stamp(path: Path) -> tuple[str, int, int] | None:
    """What must be unchanged for a remembered outcome to hold: path, size and mtime."""
    try:
        status = path.stat()
    except OSError:
        return None
    return readable(str(path.absolute())), status.st_size, status.st_mtime_ns


def _recall(memory: sqlite3.Connection, stamp: tuple[str, int, int] | None) -> CheckedImage | None:
    if stamp is None:
        return None
    query = "SELECT sha256, fault FROM images WHERE path = ? AND size = ? AND mtime_ns = ?"
    try:
        row = memory.execute(query, stamp).fetchone()
    except sqlite3.Error:
        return None
    return CheckedImage(*row) if row else None


def _remember(memory: sqlite3.Connection, rows: list[tuple[str, int, int, str, str]]) -> None:
    """Keep outcomes; a database that is locked, full or read-only costs only the memory."""
    with suppress(sqlite3.Error), memory:
        memory.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?)", rows)


def _open_memory() -> sqlite3.Connection:
    """Open the remembered outcomes; in memory only where the cache folder is not writable."""
    try:
        folder = platformdirs.user_cache_path("mnet", ensure_exists=True)
        return _with_table(sqlite3.connect(folder / "checked-images.sqlite"))
    except (OSError, sqlite3.Error):
        return _with_table(sqlite3.connect(":memory:"))


def _with_table(memory: sqlite3.Connection) -> sqlite3.Connection:
    memory.execute(
        "CREATE TABLE IF NOT EXISTS images"
        " (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sha256 TEXT, fault TEXT)"
    )
    return memory
