"""Rows of numbers on disk, found by key and mapped into memory.

Format 1: a folder of shards, files in numpy's format (version 1.0, no pickles). A shard is an
array of records, each a key of 32 bytes and a row of numbers, and is named by the SHA-256 of
its records. Shards appear whole, and several processes may add some at the same time.
"""

import errno
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnet_cli.errors import MachineError
from mnet_cli.system.atomic import atomic_write
from mnet_cli.system.machine import SPARE_FILES, allow_open_files, cores

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
        shard: Gives the records of a shard by its number, in memory or in a file that is mapped.
        keys: The keys of all rows, sorted.
        places: For each key its shard and its record there (N, 2).
        shape: Of a row.
    """

    shard: Callable[[int], Records]
    keys: Keys
    places: NDArray[np.int64]
    shape: tuple[int, ...]

    def find(self, requested: Keys) -> NDArray[np.int64]:
        """Return the index of each requested key (N,), or -1 where there is no such row."""
        if not len(self.keys):
            return np.full(len(requested), -1)
        index = np.minimum(np.searchsorted(self.keys, requested), len(self.keys) - 1)
        return np.where(self.keys[index] == requested, index, -1)

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows at `indices`, in that order.

        Raises:
            MachineError: A shard had to be closed, so that others could be opened, and cannot be
                opened again.
        """
        shard, rows = self.shard, np.empty((len(indices), *self.shape), np.float32)
        try:
            for place, (number, record) in enumerate(self.places[indices].tolist()):
                rows[place] = shard(number)["row"][record]  # a view would keep the file open
        except (OSError, ValueError) as error:
            raise MachineError(
                str(getattr(error, "filename", None) or "the cache"),
                f"cannot be opened again ({getattr(error, 'strerror', None) or error})",
                next_step="Resume with --resume; a higher ulimit -n keeps all of the cache open",
            ) from error
        return rows


def open_rows(folder: Path, records: np.dtype[np.void]) -> Rows:
    """Check the shards of `folder` and map them into memory; damaged ones are removed.

    Where the system permits too few open files for all of them, the shard that was used longest
    ago is closed to open another.

    Raises:
        MachineError: The disk refuses, or too many files are open.
    """
    paths = sorted(folder.glob("*.npy"))
    large = sum(map(_is_large, paths))
    limit = allow_open_files(large)

    @lru_cache(limit if limit < large else None)
    def shard(number: int) -> Records:
        return _map_shard(paths[number])

    with ThreadPoolExecutor(min(cores(), SPARE_FILES)) as pool:
        keys = pool.map(partial(_checked_keys, shard, records), range(len(paths)), paths)
        return _index(shard, list(keys), records["row"].shape)


def _is_large(path: Path) -> bool:
    """Whether a shard is to be mapped, which keeps a file open, rather than read."""
    with suppress(OSError):
        return path.stat().st_size >= MAPPED
    return False


def _map_shard(path: Path) -> Records:
    """The records of a shard, from a file that may be damaged."""
    shard: Records = np.lib.format.open_memmap(path, mode="r")
    # As a plain array: indexing a memmap costs ten times as much.
    return np.asarray(shard) if shard.nbytes >= MAPPED else np.array(shard)


def _checked_keys(
    shard: Callable[[int], Records], records: np.dtype[np.void], number: int, path: Path
) -> Keys:
    """The keys of a shard; none if it cannot be read, or is removed as not what it was."""
    try:
        content = shard(number)
        if content.dtype == records and content.ndim == 1 and _name(content) == path.stem:
            return content["key"].copy()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise MachineError(
                str(path),
                f"cannot be opened ({error.strerror})",
                next_step='Raise ulimit -n, or run "mnet cache clear"',
            ) from error
        return np.empty(0, KEY)
    except Exception:
        pass  # numpy meets a damaged header with a dozen kinds of error; all mean the same here
    with suppress(OSError):
        path.unlink()
    return np.empty(0, KEY)


def _index(shard: Callable[[int], Records], keys: Sequence[Keys], shape: tuple[int, ...]) -> Rows:
    """Put the rows of all shards, whose keys are given, in the order of their keys."""
    sizes = [len(some) for some in keys]
    shard_of = np.repeat(np.arange(len(keys)), sizes)
    record_of = np.concatenate([np.empty(0, np.int64), *map(np.arange, sizes)])
    joined = np.concatenate([np.empty(0, KEY), *keys])
    order = np.argsort(joined, kind="stable")
    return Rows(shard, joined[order], np.stack([shard_of, record_of], axis=1)[order], shape)


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
