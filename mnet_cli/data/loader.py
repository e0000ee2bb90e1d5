"""Batches for training, the same for any number of workers."""

import hashlib
import os
import signal
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, default_collate

from mnet_cli.data.augment import Augmentation, View, build_view
from mnet_cli.data.image_files import ImageFile
from mnet_cli.data.images import Photograph, open_photograph
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import DataError, MachineError
from mnet_cli.system.signals import available

CPU = torch.device("cpu")
Key = tuple[int, int]  # (pass, index): which view of which image


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
Batch = tuple[torch.Tensor, torch.Tensor]
Transform = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class ViewDataset(Dataset[Sample]):
    """Random views of labelled photographs, addressed by (pass, index).

    A view's randomness is seeded from (seed, pass, the encoded bytes), so neither the number
    of workers nor the other photographs nor anything else that draws random numbers can
    change it.

    Args:
        images: The N images.
        labels: The class of each (N,).
        sha256: Digests of the encoded bytes (N, 32), uint8.
        preprocess: How an image becomes the network's input.
        augmentation: What is changed at random.
        seed: Of the views.
    """

    def __init__(
        self,
        images: Sequence[ImageFile],
        labels: NDArray[np.int64],
        sha256: NDArray[np.uint8],
        preprocess: Preprocess,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self.images, self.labels, self.sha256 = images, labels, sha256
        self.preprocess, self.augmentation, self.seed = preprocess, augmentation, seed
        self._last: tuple[int, Photograph] | None = None

    @cached_property
    def view(self) -> View:
        """Makes a view of a photograph."""
        return build_view(self.preprocess, self.augmentation)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Sample:
        number, index = key
        content = int.from_bytes(self.sha256[index, :8].tobytes(), "big")
        seed_torch(seed_of(self.seed, number, content))
        try:
            return self.view(self._open(index), number), int(self.labels[index])
        except DataError as error:
            return error  # raised in a worker it would arrive as a traceback in a string

    def prepare(self) -> None:
        """Build and import, before workers start, what they all need."""
        _ = self.view

    def _open(self, index: int) -> Photograph:
        """Open a photograph, once for all its views if they are loaded one after the other."""
        if self._last is None or self._last[0] != index:
            image = self.images[index]
            photograph = open_photograph(image, self.preprocess.background)
            if hashlib.sha256(photograph.content).digest() != self.sha256[index].tobytes():
                raise DataError(
                    image.where,
                    "changed since it was checked before training",
                    next_step="Start the training again, and do not change the data meanwhile",
                )
            self._last = index, photograph
        return self._last[1]


class JoinedViews(Dataset[Sample]):
    """Several sets of views as one, so that the same workers load them.

    Args:
        parts: The sets. The images of each are counted on from those of the one before.

    Attributes:
        starts: The index of the first image of each set.
    """

    def __init__(self, parts: Sequence[ViewDataset]) -> None:
        self.parts = parts
        self.starts = [0, *accumulate(map(len, parts))][:-1]

    def __getitem__(self, key: Key) -> Sample:
        number, index = key
        part = bisect_right(self.starts, index) - 1
        return self.parts[part][(number, index - self.starts[part])]

    def prepare(self) -> None:
        """As in `ViewDataset`."""
        for part in self.parts:
            part.prepare()


class EpochBatches:
    """The batches of each epoch, shuffled from (seed, epoch).

    A last batch of one is joined to the one before it: batch norm cannot learn from one.

    Args:
        labels: Class index of each sample.
        batch_size: Samples a batch.
        seed: Of the order.
        balanced: Draw with replacement so that every class comes equally often.
    """

    def __init__(
        self, labels: NDArray[np.int64], batch_size: int, seed: int, *, balanced: bool = False
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        self.count = len(labels)
        classes = torch.as_tensor(labels)
        self.weights = (1 / classes.bincount().double())[classes] if balanced else None

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size)
        return max(1, whole + (rest > 1))

    def keys(self, epoch: int) -> Iterator[list[Key]]:
        """The keys of the batches of `epoch`, `len(self)` of them."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        if self.weights is None:
            order = torch.randperm(self.count, generator=generator)
        else:
            order = self.weights.multinomial(self.count, replacement=True, generator=generator)
        last = len(self) - 1
        for batch in range(len(self)):
            end = (batch + 1) * self.batch_size if batch < last else self.count
            indices = order[batch * self.batch_size : end]
            yield [(epoch, index) for index in indices.tolist()]


def load_views(
    views: ViewDataset | JoinedViews,
    batches: Iterable[list[Key]],
    workers: int,
    device: torch.device,
    transform: Transform | None = None,
) -> Iterator[Batch]:
    """Yield `batches` of `views`: images (N, 3, S, S), or what they became, and labels (N,) int64.

    The workers live until the last batch; they work ahead by two batches each.

    Args:
        views: The images.
        batches: The keys of each batch, of many epochs if need be.
        workers: Processes that load; 0 loads in this one.
        device: Where the batches will be used.
        transform: Takes the images (N, 3, S, S) of a batch to what is loaded in their place;
            runs in the workers.

    Raises:
        DataError: An image has become unreadable since it was checked.
        MachineError: A worker died.
    """
    views.prepare()
    # Without `persistent_workers`, which take seconds to end.
    loader: DataLoader[Batch | DataError] = DataLoader(
        views,  # type: ignore[arg-type]  # `_collate` turns samples into batches
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(_collate, transform=transform),
        worker_init_fn=_leave_signals,
        pin_memory=device.type == "cuda",
    )
    try:
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except (RuntimeError, ConnectionResetError) as error:
        died = worker_death(error)
        if died is None:
            raise
        raise died from error


def worker_death(error: BaseException) -> MachineError | None:
    """The error to report when torch raises `error` because a worker died; None if none did.

    The connection that a worker sends its tensors over may be closed before torch notices that
    the worker died.
    """
    said_so = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
    if not said_so and not isinstance(error, ConnectionResetError):
        return None
    return MachineError(
        "data.workers",
        f"a process that loads images died ({str(error).splitlines()[0]}), "
        "perhaps for lack of memory",
        next_step="Try --set data.workers=0, or a smaller data.batch_size",
    )


def _collate(samples: Sequence[Sample], transform: Transform | None) -> Batch | DataError:
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
    images, labels = default_collate(list(samples))
    if transform:
        images = torch.from_numpy(transform(images.numpy()))
    return images, labels


def _leave_signals(worker: int) -> None:
    """Let only the main process handle the signals that are sent to a group of processes.

    A worker ends silently on SIGTERM; otherwise torch would report that the worker died while
    the main process is doing something else.
    """
    for number in available("SIGINT", "SIGHUP"):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    # Errors of samples reach the main process as values. The remaining ones come from the thread
    # that sends batches, when the main process no longer exists.
    sys.excepthook = lambda *_: None
