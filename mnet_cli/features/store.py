"""Rows of numbers on disk, found by key and mapped into memory.

Format 1: a folder of shards, each of two files in numpy's format (version 1.0, no pickles).
`<shard>.rows.npy` holds (n, …) numbers and `<shard>.keys.npy` the (n,) keys of 32 bytes. The
keys take their name last, so a shard without keys is not there yet, and several processes
may add shards to one folder at the same time.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli.atomic import atomic_write

FORMAT = 1
KEY = np.dtype("V32")
CONTENT = 24  # bytes of a key that come from the file's digest

Keys = NDArray[np.void]


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


@dataclass(frozen=True)
class Rows:
    """The rows of a store.

    Attributes:
        shards: The rows of each shard (n, …), in files that are mapped into memory.
        keys: The keys of all rows, sorted.
        places: For each key its shard and its row there (N, 2).
    """

    shards: Sequence[NDArray[Any]]
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
        rows = [self.shards[shard][row] for shard, row in self.places[indices].tolist()]
        return np.stack(rows).astype(np.float32, copy=False)


def open_rows(folder: Path) -> Rows:
    """Map the shards of `folder` into memory; what is damaged counts as not there."""
    shards: list[NDArray[Any]] = []
    keys: list[Keys] = []
    for path in sorted(folder.glob("*.keys.npy")):
        try:
            rows = np.load(path.with_name(path.name.replace(".keys.", ".rows.")), mmap_mode="r")
            names = np.load(path)
        except (OSError, ValueError, EOFError):
            continue
        if names.dtype == KEY and names.shape == rows.shape[:1] and rows.dtype.kind == "f":
            shards.append(np.asarray(rows))
            keys.append(names)
    return _index(shards, keys)


def _index(shards: Sequence[NDArray[Any]], keys: Sequence[Keys]) -> Rows:
    every = np.concatenate([np.empty(0, KEY), *keys])
    places = [
        np.stack([np.full(len(names), shard), np.arange(len(names))], axis=1)
        for shard, names in enumerate(keys)
    ]
    order = np.argsort(every, kind="stable")
    return Rows(shards, every[order], np.concatenate([np.empty((0, 2), np.int64), *places])[order])


def write_shard(folder: Path, keys: Keys, rows: Sequence[NDArray[Any]]) -> None:
    """Add a shard of n rows with their keys to `folder`, which is made if need be.

    Raises:
        MachineError: The disk refuses.
    """
    name = f"{time.time_ns():020}-{os.getpid()}"
    for part, content in (("rows", np.stack(rows)), ("keys", keys)):
        with atomic_write(folder / f"{name}.{part}.npy") as file:
            np.lib.format.write_array(file, content, version=(1, 0), allow_pickle=False)
