"""From photographs to rows of the cache, through the frozen part of a network."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mnet_cli.data.augment import PIXELS
from mnet_cli.data.loaders import ViewDataset, key_batches, load_views
from mnet_cli.errors import MachineError
from mnet_cli.features.boundary import Boundary
from mnet_cli.features.cache import make_room, open_folder
from mnet_cli.features.store import Keys, Rows, open_rows, record_type, row_keys, write_shard
from mnet_cli.machine import BATCH

SHARD = 32_000_000  # bytes; a kill loses no more than these
ATTEMPTS = 4  # to find all rows there: another process may clear the cache meanwhile

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """Activations that are wanted.

    Attributes:
        boundary: The frozen part.
        views: The N images, and how a view of them is made.
        numbers: Which V views of each.
    """

    boundary: Boundary
    views: ViewDataset
    numbers: Sequence[int]

    @property
    def record(self) -> np.dtype[np.void]:
        """The type of the store's records."""
        return record_type(self.boundary.shape, self.boundary.dtype)

    @property
    def keys(self) -> Keys:
        """The keys of all views (V, N)."""
        views = self.views
        return np.stack([row_keys(views.sha256, views.seed, number) for number in self.numbers])

    def folder(self) -> Path:
        """The folder of their store, marked as used now."""
        return open_folder(
            {
                "network": self.boundary.network,
                "shape": list(self.boundary.shape),
                "dtype": self.boundary.dtype,
                "row_bytes": self.boundary.row_bytes,
                "preprocess": self.views.preprocess.to_dict(),
                "augmentation": asdict(self.views.augmentation),
                "pixels": PIXELS,
            }
        )


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
    wanted: Sequence[Wanted],
    workers: int,
    device: torch.device,
    on_progress: Progress | None = None,
) -> list[Features]:
    """Find activations in the cache, and compute those that lack.

    What was computed stays when this is interrupted, up to the last `SHARD` bytes.

    Args:
        wanted: All that one phase of training needs.
        workers: Processes that compute; 0 computes in this one.
        device: Where the frozen part runs.
        on_progress: Called with (done, total) views that had to be computed.

    Raises:
        DataError: An image has become unreadable or another one.
        MachineError: The cache cannot be written, or is too small for all that is wanted.
    """
    found = [_look_up(one) for one in wanted]
    lacking = [int((one.index < 0).sum()) for one in found]
    if any(lacking):
        needed = sum(n * one.record.itemsize for n, one in zip(lacking, wanted, strict=True))
        in_all = sum(
            there.index.size * one.record.itemsize for there, one in zip(found, wanted, strict=True)
        )
        make_room([one.folder for one in found], needed, in_all)
    return [
        _complete(one, there, workers, device, on_progress)
        for one, there in zip(wanted, found, strict=True)
    ]


def _look_up(wanted: Wanted) -> Features:
    folder, keys = wanted.folder(), wanted.keys
    rows = open_rows(folder, wanted.record)
    return Features(rows, rows.find(keys.ravel()).reshape(keys.shape), 0, folder)


def _complete(
    wanted: Wanted,
    found: Features,
    workers: int,
    device: torch.device,
    on_progress: Progress | None,
) -> Features:
    """Compute what lacks, and again what has gone by the time it is read."""
    fresh = int((found.index < 0).sum())
    for _ in range(ATTEMPTS):
        lacking = np.argwhere(found.index.T < 0)  # image, place of the view's number
        if not len(lacking):
            return replace(found, fresh=fresh)
        _compute(wanted, lacking, found.folder, workers, device, on_progress)
        found = _look_up(wanted)
    raise MachineError(
        str(found.folder),
        "features go as soon as they are computed",
        "a cache folder that nobody clears meanwhile was expected",
        "Train again",
    )


def _compute(
    wanted: Wanted,
    lacking: NDArray[np.int64],
    folder: Path,
    workers: int,
    device: torch.device,
    on_progress: Progress | None,
) -> None:
    """Compute the pairs of image and view in `lacking` (n, 2) and write them as shards."""
    images, places = lacking.T
    numbers = np.asarray(wanted.numbers)[places]
    boundary = wanted.boundary
    # On a CPU each worker takes its images through the network too, and sends on what is small.
    in_workers = device.type == "cpu"
    batches = load_views(
        wanted.views,
        key_batches(np.stack([numbers, images], axis=1), BATCH),
        workers,
        device,
        transform=boundary.forward if in_workers else None,
    )
    shard = np.empty(min(len(lacking), max(1, SHARD // wanted.record.itemsize)), wanted.record)
    keys, done, held = wanted.keys[places, images], 0, 0
    try:
        for outputs, _ in batches:
            rows = outputs.numpy() if in_workers else boundary.forward(outputs.numpy())
            for row in rows:
                shard[held] = keys[done], row
                done, held = done + 1, held + 1
                if held == len(shard):
                    write_shard(folder, shard)
                    held = 0
            if on_progress:
                on_progress(done, len(lacking))
    finally:
        if held:
            write_shard(folder, shard[:held])
