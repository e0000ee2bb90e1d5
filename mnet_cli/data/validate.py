"""Check images: each is decoded and hashed once, and the outcome is remembered between runs."""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass

import numpy as np
import platformdirs
from numpy.typing import NDArray

from mnet_cli.data.image_files import ImageFile, Stamp
from mnet_cli.data.images import DECODER, decode_image
from mnet_cli.errors import DataError
from mnet_cli.system.machine import cores

DIGEST = hashlib.sha256().digest_size  # bytes
BLOCK = 500  # images; a check that is killed loses the outcomes of no more than these

Outcome = tuple[bytes, str]  # the digest of the bytes, and the fault if there is one


@dataclass(frozen=True)
class Checked:
    """What the check found in N images.

    Attributes:
        sha256: Digests of the encoded bytes (N, 32), uint8; zeros where they could not be read.
        faults: Why an image cannot be used, by its index; only of those that cannot.
    """

    sha256: NDArray[np.uint8]
    faults: dict[int, str]


def check_images(
    images: Sequence[ImageFile], on_progress: Callable[[int, int], None] | None = None
) -> Checked:
    """Decode and hash every image once, in parallel; the outcome is remembered between runs.

    Outcomes are stored by the stamp of the image and the version of the decoder in the user's
    cache folder, never beside the images. An image without a stamp is checked every time. If
    the cache folder cannot be written, nothing is remembered.

    Args:
        images: The images.
        on_progress: Called with (done, total).
    """
    checked = Checked(np.zeros((len(images), DIGEST), np.uint8), {})
    with closing(_open_memory()) as memory, ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(images), BLOCK):
            some = [images[index] for index in range(start, min(start + BLOCK, len(images)))]
            for index, (sha256, fault) in enumerate(_outcomes(some, memory, pool), start):
                checked.sha256[index] = np.frombuffer(sha256, np.uint8)
                if fault:
                    checked.faults[index] = fault
                if on_progress:
                    on_progress(index + 1, len(images))
    return checked


def same_bytes(sha256: NDArray[np.uint8]) -> list[list[int]]:
    """Group the indices of equal digests (N, 32); only groups of two or more."""
    digests = np.ascontiguousarray(sha256).view(f"V{DIGEST}").ravel()
    order = np.argsort(digests, kind="stable")
    changes = np.flatnonzero(digests[order][1:] != digests[order][:-1]) + 1
    groups = [group.tolist() for group in np.split(order, changes) if len(group) > 1]
    return sorted(groups)


def _outcomes(
    images: Sequence[ImageFile], memory: sqlite3.Connection, pool: ThreadPoolExecutor
) -> Iterator[Outcome]:
    """Remembered outcomes and, for the other images, new ones, which are then remembered."""
    stamps = [image.stamp() for image in images]
    known = [_recall(memory, stamp) for stamp in stamps]
    unknown = [image for image, outcome in zip(images, known, strict=True) if outcome is None]
    fresh, new_rows = pool.map(_check, unknown), []
    for stamp, outcome in zip(stamps, known, strict=True):
        if outcome is None:
            outcome = next(fresh)
            if stamp and any(outcome[0]):  # a read that failed once may succeed
                new_rows.append((*stamp, DECODER, *outcome))
        yield outcome
    _remember(memory, new_rows)


def _check(image: ImageFile) -> Outcome:
    sha256 = bytes(DIGEST)
    try:
        content = image.read()
        sha256 = hashlib.sha256(content).digest()
        decode_image(content, image.where)
    except DataError as error:
        return sha256, error.found
    return sha256, ""


def _recall(memory: sqlite3.Connection, stamp: Stamp | None) -> Outcome | None:
    if stamp is None:
        return None
    query = (
        "SELECT sha256, fault FROM outcomes"
        " WHERE path = ? AND size = ? AND mtime_ns = ? AND ctime_ns = ? AND decoder = ?"
    )
    try:
        row = memory.execute(query, (*stamp, DECODER)).fetchone()
    except sqlite3.Error:
        return None
    if row is None or not isinstance(row[0], bytes) or not isinstance(row[1], str):
        return None
    sha256, fault = row
    return (sha256, fault) if len(sha256) == DIGEST and any(sha256) else None


def _remember(
    memory: sqlite3.Connection, rows: list[tuple[str, int, int, int, str, bytes, str]]
) -> None:
    """Store outcomes; if the database is locked, full or read-only, nothing is remembered."""
    with suppress(sqlite3.Error), memory:
        memory.executemany("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def _open_memory() -> sqlite3.Connection:
    """Open the remembered outcomes; in memory only if the cache folder cannot be written."""
    try:
        folder = platformdirs.user_cache_path("mnet", ensure_exists=True)
        return _with_table(sqlite3.connect(folder / "checked-images.sqlite"))
    except (OSError, sqlite3.Error):
        return _with_table(sqlite3.connect(":memory:"))


def _with_table(memory: sqlite3.Connection) -> sqlite3.Connection:
    memory.execute("DROP TABLE IF EXISTS stamped")  # of earlier versions, without a decoder
    memory.execute(
        "CREATE TABLE IF NOT EXISTS outcomes"
        " (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER,"
        " decoder TEXT, sha256 BLOB, fault TEXT)"
    )
    return memory
