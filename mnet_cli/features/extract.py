"""From photographs to rows of the cache, through the frozen part of a network."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnet_cli.data.loaders import KeyBatches, ViewDataset, loaded, view_loader
from mnet_cli.errors import MachineError
from mnet_cli.features.boundary import Boundary
from mnet_cli.features.cache import cache_cap, make_room, open_folder
from mnet_cli.features.store import Rows, open_rows, row_keys, write_shard
from mnet_cli.machine import BATCH

SHARD = 16_000_000  # bytes; a kill loses no more than these


@dataclass(frozen=True)
class Features:
    """The activations of V views of N images, in files.

    Attributes:
        rows: The store.
        index: For each view and image its row (V, N).
        fresh: How many had to be computed.
        folder: Where they are kept.
    """

    rows: Rows
    index: NDArray[np.int64]
    fresh: int
    folder: Path

    def take(self, view: int, images: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the activations of one view of some images (n, …)."""
        return self.rows.take(self.index[view, images])


def cached_features(
    boundary: Boundary,
    views: ViewDataset,
    passes: Sequence[int],
    workers: int,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Find the activations of every image's views in the cache, and compute those that lack.

    What was computed stays when this is interrupted, up to the last `SHARD` bytes.

    Args:
        boundary: The frozen part.
        views: The images and how a view of them is made.
        passes: The numbers of the views.
        workers: Processes that compute; 0 computes in this one.
        device: Where the frozen part runs.
        on_progress: Called with (done, total) views that had to be computed.

    Raises:
        DataError: An image has become unreadable.
        MachineError: The cache cannot be written, or is too small for these features.
    """
    folder = open_folder(
        {
            "network": boundary.network,
            "shape": boundary.shape,
            "dtype": boundary.dtype,
            "row_bytes": boundary.row_bytes,
            "preprocess": views.preprocess.to_dict(),
            "augmentation": asdict(views.augmentation),
        }
    )
    keys = np.stack([row_keys(views.sha256, views.seed, number) for number in passes])  # (V, N)
    rows = open_rows(folder)
    lacking = np.argwhere((rows.find(keys.ravel()) < 0).reshape(keys.shape).T)  # image, view
    if len(lacking):
        _require_room(folder, len(lacking) * boundary.row_bytes)
        wanted = np.stack([np.asarray(passes)[lacking[:, 1]], lacking[:, 0]], axis=1)
        names = keys[lacking[:, 1], lacking[:, 0]]
        _compute(boundary, views, wanted, names, folder, workers, device, on_progress)
        rows = open_rows(folder)
    index = rows.find(keys.ravel()).reshape(keys.shape)
    if (index < 0).any():
        raise MachineError(
            str(folder),
            "features are gone that were computed just now",
            "a cache folder that nobody clears meanwhile was expected",
            "Train again",
        )
    return Features(rows, index, len(lacking), folder)


def _compute(
    boundary: Boundary,
    views: ViewDataset,
    wanted: NDArray[np.int64],
    names: NDArray[np.void],
    folder: Path,
    workers: int,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Compute the wanted (pass, index) pairs (N, 2) and write them under their names (N,)."""
    # On a CPU each worker takes its images through the network too, and sends on what is small.
    in_workers = device.type == "cpu"
    loader = view_loader(
        views,
        KeyBatches(wanted, BATCH),
        workers,
        device,
        transform=boundary.forward if in_workers else None,
    )
    done = 0
    held: list[NDArray[Any]] = []
    rows_a_shard = max(1, SHARD // boundary.row_bytes)
    try:
        for outputs, _ in loaded(loader):
            rows = outputs.numpy() if in_workers else boundary.forward(outputs.numpy())
            held.extend(rows.astype(boundary.dtype))
            while len(held) >= rows_a_shard:
                write_shard(folder, names[done : done + rows_a_shard], held[:rows_a_shard])
                done, held = done + rows_a_shard, held[rows_a_shard:]
            if on_progress:
                on_progress(done + len(held), len(wanted))
    finally:
        if held:
            write_shard(folder, names[done : done + len(held)], held)


def _require_room(folder: Path, needed: int) -> None:
    if not make_room(folder, needed):
        raise MachineError(
            str(folder),
            f"{needed / 1e9:.1f} GB of features",
            f"the cache may hold {cache_cap() / 1e9:g} GB",
            "Raise it with MNET_CACHE_GB, lower data.cached_views, or set it to 0",
        )
