"""From photographs to rows of the cache, through the frozen part of a network."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mnet_cli.data.augment import PIXELS
from mnet_cli.data.loader import JoinedViews, Key, ViewDataset, load_views
from mnet_cli.errors import DataError, MachineError
from mnet_cli.features.boundary import Boundary
from mnet_cli.features.cache import cache_root, make_room, open_folder
from mnet_cli.features.store import Keys, Rows, open_rows, record_type, row_keys, write_shard
from mnet_cli.models.forward import Forward
from mnet_cli.system.machine import BATCH
from mnet_cli.system.process_group import ProcessGroup

SHARD = 32_000_000  # bytes; a kill loses no more than these
ATTEMPTS = 4  # to find all rows there: another process may clear the cache meanwhile

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FeatureRequest:
    """Activations that a phase of training needs.

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


@dataclass(frozen=True)
class MissingViews(Sequence[list[Key]]):
    """The views that are missing, `BATCH` at a time; a batch is of one request.

    Attributes:
        views: The images of all requests.
        keys: For each request the number and the image of each view (n, 2), where images are
            counted on over all requests.
        forward: The frozen part.
    """

    views: JoinedViews
    keys: Sequence[NDArray[np.int64]]
    forward: Forward

    @cached_property
    def _firsts(self) -> list[int]:
        """For each request its first batch, and their number."""
        return [0, *accumulate(-(-len(keys) // BATCH) for keys in self.keys)]

    def __len__(self) -> int:
        return self._firsts[-1]

    def place(self, number: int) -> tuple[int, int]:
        """The request of a batch, and its first view there."""
        request = bisect_right(self._firsts, number) - 1
        return request, (number - self._firsts[request]) * BATCH

    def __getitem__(self, number: int) -> list[Key]:  # type: ignore[override]  # no slices
        if not 0 <= number < len(self):
            raise IndexError(number)
        request, start = self.place(number)
        return [(key, image) for key, image in self.keys[request][start : start + BATCH].tolist()]

    def rows(self, number: int) -> NDArray[np.float32]:
        """Compute the activations of a batch (n, …) in this process.

        Raises:
            DataError: An image has become unreadable or another one.
        """
        samples = [self.views[key] for key in self[number]]
        for sample in samples:
            if isinstance(sample, DataError):
                raise sample
        return self.forward(np.stack([sample[0].numpy() for sample in samples]))  # type: ignore[index]


Compute = Callable[[MissingViews], Iterator[tuple[int, NDArray[np.float32]]]]
"""Gives the number of each batch with its activations, in any order."""


def compute_here(workers: int, device: torch.device) -> Compute:
    """Compute on this machine.

    Args:
        workers: Processes that compute; 0 computes in this one.
        device: Where the frozen part runs.
    """

    def compute(missing: MissingViews) -> Iterator[tuple[int, NDArray[np.float32]]]:
        # On a CPU each worker takes its images through the network too, and sends what is small.
        in_workers = device.type == "cpu"
        transform = missing.forward if in_workers else None
        batches = load_views(missing.views, missing, workers, device, transform)
        for number, (outputs, _) in enumerate(batches):
            yield number, outputs.numpy() if in_workers else missing.forward(outputs.numpy())

    return compute


def cached_features(
    requests: Sequence[FeatureRequest],
    workers: int,
    device: torch.device,
    on_progress: Progress | None = None,
    group: ProcessGroup | None = None,
    compute: Compute | None = None,
) -> list[Features]:
    """Find activations in the cache, and compute those that are missing.

    What was computed stays when this is interrupted, up to the last `SHARD` bytes.

    Each process of a group computes a part of what is missing; those that have a cache folder
    of their own, as on another machine, compute all that is missing there.

    Args:
        requests: All that one phase of training needs; their boundaries differ in precision alone.
        workers: Processes that compute; 0 computes in this one.
        device: Where the frozen part runs.
        on_progress: Called with (done, total) views that this process had to compute.
        group: The processes, all of which must call this; None for this one alone.
        compute: How the views that are missing are computed; None for `compute_here`.

    Raises:
        DataError: An image has become unreadable or another one.
        MachineError: The cache cannot be written, or is too small for all requests.
    """
    group = group or ProcessGroup()
    compute = compute or compute_here(workers, device)
    found = [_look_up(one) for one in requests]
    fresh = [int((there.index < 0).sum()) for there in found]
    with group.sharing(cache_root()) as (place, count):
        if any(fresh) and not place:
            needed = sum(n * one.record.itemsize for n, one in zip(fresh, requests, strict=True))
            in_all = sum(
                there.index.size * one.record.itemsize
                for there, one in zip(found, requests, strict=True)
            )
            make_room([there.folder for there in found], needed, in_all)
    for attempt in range(ATTEMPTS):
        # What is missing, or deleted by the time it is read: images, places of view numbers.
        missing = [np.argwhere(there.index.T < 0) for there in found]
        if not any(group.gather(sum(map(len, missing)))):
            return [replace(there, fresh=n) for there, n in zip(found, fresh, strict=True)]
        # What another process was to compute and has not is computed by this one.
        parts = (
            [pairs[pairs[:, 0] % count == place] for pairs in missing] if not attempt else missing
        )
        folders = [there.folder for there in found]
        if any(map(len, parts)):
            _compute(requests, parts, folders, compute, on_progress)
        group.barrier()
        for number, one in enumerate(requests):
            if len(missing[number]):
                del found[number]  # closes its files before they are opened again
                found.insert(number, _look_up(one))
    raise MachineError(
        str(found[0].folder),
        "its files are deleted as soon as they are written",
        next_step="Find out which program clears the folder, then train again",
    )


def _look_up(request: FeatureRequest) -> Features:
    folder, keys = request.folder(), request.keys
    rows = open_rows(folder, request.record)
    return Features(rows, rows.find(keys.ravel()).reshape(keys.shape), 0, folder)


def _compute(
    requests: Sequence[FeatureRequest],
    pairs: Sequence[NDArray[np.int64]],
    folders: Sequence[Path],
    compute: Compute,
    on_progress: Progress | None,
) -> None:
    """Compute and store the pairs (n, 2) of image and place of a view's number of each request."""
    [forward] = {one.boundary.forward for one in requests}
    views = JoinedViews([one.views for one in requests])
    missing = MissingViews(views, list(map(_views, requests, pairs, views.starts)), forward)
    keys = [one.keys[some[:, 1], some[:, 0]] for one, some in zip(requests, pairs, strict=True)]
    done, total = 0, sum(map(len, pairs))
    with ExitStack() as stack:
        add = [
            stack.enter_context(_shards(folder, one.record, len(some)))
            for one, some, folder in zip(requests, pairs, folders, strict=True)
        ]
        for number, rows in compute(missing):
            request, start = missing.place(number)
            add[request](keys[request][start : start + len(rows)], rows)
            done += len(rows)
            if on_progress:
                on_progress(done, total)


def _views(request: FeatureRequest, pairs: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    """The views (n, 2) of some pairs, where the images are counted from `first` on."""
    images, places = pairs.T
    return np.stack([np.asarray(request.numbers)[places], images + first], axis=1)


@contextmanager
def _shards(
    folder: Path, record: np.dtype[np.void], count: int
) -> Iterator[Callable[[Keys, NDArray[np.float32]], None]]:
    """Yield a function that adds rows (n, …) with their keys (n,), of which `count` will come.

    A shard is written when it is full, and at the end of the block, whatever ended it.
    """
    shard, filled = np.empty(min(count, max(1, SHARD // record.itemsize)), record), 0

    def add(keys: Keys, rows: NDArray[np.float32]) -> None:
        nonlocal filled
        for key, row in zip(keys, rows, strict=True):
            shard[filled] = key, row
            filled += 1
            if filled == len(shard):
                write_shard(folder, shard)
                filled = 0

    try:
        yield add
    finally:
        if filled:
            write_shard(folder, shard[:filled])
