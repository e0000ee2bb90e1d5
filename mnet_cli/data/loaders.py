"""Batches for training and for evaluation, the same for any number of workers."""

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from mnet_cli.data.augment import View
from mnet_cli.data.images import read_image
from mnet_cli.data.preprocess import Preprocess, eval_array
from mnet_cli.errors import DataError

CPU = torch.device("cpu")
Loaded = NDArray[np.float32] | DataError
Key = tuple[int, int]  # (epoch, index): all that a sample's randomness depends on


def seed_of(*parts: int) -> int:
    """Mix integers into one 64-bit seed; any change of a part changes it."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def seed_torch(seed: int, device: torch.device = CPU) -> None:
    """Seed torch's generator on the CPU, and on `device` if that is another.

    `torch.manual_seed` alone would prepare a message for CUDA at every call, which costs
    more than a small image does.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.manual_seed(seed)


Sample = tuple[torch.Tensor, int] | DataError
Batch = tuple[torch.Tensor, torch.Tensor] | DataError


class TrainImages(Dataset[Sample]):
    """Random views of labelled photographs, addressed by (epoch, index).

    A sample's randomness is seeded from (seed, epoch, index), so neither the number of
    workers nor anything else that draws random numbers can change it.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        view: View,
        background: tuple[int, int, int],
        seed: int,
    ) -> None:
        self.paths, self.labels = paths, labels
        self.view, self.background, self.seed = view, background, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        try:
            image = read_image(self.paths[index], self.background)
        except DataError as error:
            return error  # raised in a worker it would arrive as a traceback in a string
        seed_torch(seed_of(self.seed, epoch, index))
        return self.view(image), self.labels[index]


class EpochBatches(Sampler[list[Key]]):
    """The batches of an epoch, shuffled from (seed, epoch); set `epoch` before iterating.

    A last batch of one is joined to the one before it: batch norm cannot learn from one.

    Args:
        labels: Class index of each sample.
        batch_size: Samples a batch.
        seed: Of the order.
        balanced: Draw with replacement so that every class comes equally often.
    """

    def __init__(
        self, labels: Sequence[int], batch_size: int, seed: int, *, balanced: bool = False
    ) -> None:
        self.epoch = 0
        self.batch_size, self.seed = batch_size, seed
        self.count = len(labels)
        classes = torch.tensor(labels)
        self.weights = (1 / classes.bincount().double())[classes] if balanced else None

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size)
        return max(1, whole + (rest > 1))

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.count, generator=generator)
        else:
            order = self.weights.multinomial(self.count, replacement=True, generator=generator)
        keys = [(self.epoch, index) for index in order.tolist()]
        last = len(self) - 1
        for batch in range(last):
            yield keys[batch * self.batch_size : (batch + 1) * self.batch_size]
        yield keys[last * self.batch_size :]


def train_loader(
    images: TrainImages, batches: EpochBatches, workers: int, device: torch.device
) -> DataLoader[Batch]:
    """Load `batches` of `images`; read them with `loaded`."""
    return DataLoader(
        images,  # type: ignore[arg-type]  # `_collate` turns samples into batches
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_leave_interrupts,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )


def loaded(loader: Iterable[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the loader's batches: images (N, 3, S, S) float32, labels (N,) int64.

    Raises:
        DataError: An image has become unreadable since it was checked.
    """
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _collate(samples: Sequence[Sample]) -> Batch:
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
    batch: Batch = default_collate(list(samples))
    return batch


def _leave_interrupts(worker: int) -> None:
    """Leave a shell's Ctrl-C, which reaches the workers too, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def eval_batches(
    paths: Iterable[Path], preprocess: Preprocess, batch_size: int
) -> Iterator[list[tuple[Path, Loaded]]]:
    """Decode `paths` ahead in threads and yield them in batches, in order.

    Holds at most two batches of images at a time, however many paths there are.

    Yields:
        Up to `batch_size` pairs of a path and its image (3, S, S) float32, or the error of
        an image that cannot be used.
    """

    def load(path: Path) -> Loaded:
        try:
            return eval_array(read_image(path, preprocess.background), preprocess)
        except DataError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        remaining = iter(paths)
        ahead: deque[tuple[Path, Future[Loaded]]] = deque()
        while True:
            wanted = 2 * batch_size - len(ahead)
            ahead.extend((path, pool.submit(load, path)) for path in islice(remaining, wanted))
            if not ahead:
                return
            batch = [ahead.popleft() for _ in range(min(batch_size, len(ahead)))]
            yield [(path, future.result()) for path, future in batch]
