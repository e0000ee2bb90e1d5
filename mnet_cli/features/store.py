"""Rows of numbers on disk, found by key and mapped into memory.

Format 1: a folder of shards, files in numpy's format (version 1.0, no pickles). A shard is an
array of records, each a key of 32 bytes and a row of numbers, and is named by the SHA-256 of
its records. Shards appear whole, and several processes may add some at the same time.
"""

import errno
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnet_cli.atomic import atomic_write
from mnet_cli.errors import MachineError
from mnet_cli.machine import cores

FORMAT = 1
KEY = np.dtype("V32")
CONTENT = 24  # bytes of a key that come from the file's digest
MAPPED = 1_000_000  # bytes from which on a shard is mapped; each mapping keeps a file open
NAME = 32  # characters of a shard's name

Keys = NDArray[np.void]
Records = NDArray[np.void]


def row_keys(sha256: NDArray[np.uint8], seed: int, view: int) -> Keys:
    """Make the keys of a view of each of N files.

    Args:
        sha256: Digests of the files' bytes (N, 32).
        seed: Of the views, below 2³².
        view: Which view, below 2³².
    """
    keys = sha256.copy()
    keys[:, CONTENT:] = np.frombuffer(np.asarray([seed, view], "<u4").tobytes(), np.uint8)
    return keys.view(KEY).ravel()


def record_type(shape: tuple[int, ...], dtype: str) -> np.dtype[np.void]:
    """The type of a store's records: a key, and a row of that shape and type."""
    return np.dtype([("key", KEY), ("row", dtype, shape)])


@dataclass(frozen=True)
class Rows:
    """The rows of a store.

    Attributes:
        shards: The records of each shard, in memory or in files that are mapped into it.
        keys: The keys of all rows, sorted.
        places: For each key its shard and its record there (N, 2).
    """

    shards: Sequence[Records]
    keys: Keys
    places: NDArray[np.int64]

    def find(self, wanted: Keys) -> NDArray[np.int64]:
        """Return the index of each wanted key (N,), or -1 where there is no such row."""
        if not len(self.keys):
            return np.full(len(wanted), -1)
        index = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[index] == wanted, index, -1)

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows at `indices`, in that order."""
        rows = [
            self.shards[shard][record]["row"] for shard, record in self.places[indices].tolist()
        ]
        return np.stack(rows).astype(np.float32, copy=False)


def open_rows(folder: Path, records: np.dtype[np.void]) -> Rows:
    """Check the shards of `folder` and map them into memory; damaged ones are removed.

    Raises:
        MachineError: The disk refuses, or too many files are open.
    """
    paths = sorted(folder.glob("*.npy"))
    with ThreadPoolExecutor(cores()) as pool:
        found = pool.map(lambda path: _open_shard(path, records), paths)
        return _index([shard for shard in found if shard is not None])


def _open_shard(path: Path, records: np.dtype[np.void]) -> Records | None:
    """The records of a shard; None if it cannot be read, or is removed as not what it was."""
    try:
        shard: Records = np.lib.format.open_memmap(path, mode="r")
        if shard.dtype == records and shard.ndim == 1 and _name(shard) == path.stem:
            # As a plain array: indexing a memmap costs ten times as much.
            return np.asarray(shard) if shard.nbytes >= MAPPED else np.array(shard)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise MachineError(
                str(path),
                f"cannot be opened ({error.strerror})",
                "room for more open files and mappings was expected",
                "Raise ulimit -n, or mnet cache clear",
            ) from error
        return None
    except Exception:
        pass  # numpy meets a damaged header with a dozen kinds of error; all mean the same here
    with suppress(OSError):
        path.unlink()
    return None


def _index(shards: Sequence[Records]) -> Rows:
    keys = np.concatenate([np.empty(0, KEY), *(shard["key"] for shard in shards)])
    sizes = [len(shard) for shard in shards]
    shard_of = np.repeat(np.arange(len(shards)), sizes)
    record_of = np.concatenate([np.empty(0, np.int64), *map(np.arange, sizes)])
    order = np.argsort(keys, kind="stable")
    return Rows(shards, keys[order], np.stack([shard_of, record_of], axis=1)[order])


def write_shard(folder: Path, records: Records) -> None:
    """Add a shard to `folder`, which is made if need be.

    Raises:
        MachineError: The disk refuses.
    """
    with suppress(OSError):  # another process may have cleared the cache; atomic_write says more
        folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / f"{_name(records)}.npy") as file:
        header = np.lib.format.header_data_from_array_1_0(records)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(_bytes(records))


def _name(records: Records) -> str:
    return hashlib.sha256(_bytes(records)).hexdigest()[:NAME]


def _bytes(records: Records) -> memoryview:
    return records.view(np.uint8).data
