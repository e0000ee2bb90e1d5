"""Images from the file through a forward pass, decoded on every core."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.images import open_photograph, times_smaller
from mnet_cli.data.preprocess import Preprocess, eval_array
from mnet_cli.errors import DataError
from mnet_cli.system.machine import BATCH, cores

T = TypeVar("T")
Output = NDArray[np.float32] | DataError
Loaded = tuple[Path, Output]  # an image before the network, or its error


def outputs_of(
    paths: Iterable[Path],
    preprocess: Preprocess,
    forward: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    batch_size: int,
    *,
    fast_decode: bool = False,
    parallel: bool = True,
) -> Iterator[tuple[Path, Output]]:
    """Decode images in threads and pass them through a network, and yield in order.

    Holds at most two batches a core at a time, however many paths there are; without `parallel`
    one batch, and twice `BATCH` decoded images a core.

    Args:
        paths: The images, drawn from as needed.
        preprocess: How an image becomes the network's input.
        forward: Images (N, 3, S, S) to outputs (N, …).
        batch_size: Images that are passed on together.
        fast_decode: Decode JPEGs that are much larger than needed at a half or a quarter of
            their size.
        parallel: Call `forward` in the threads that decode, which suits CPUs; otherwise in the
            caller's alone, one batch after the other, which suits a GPU.

    Yields:
        A path and the network's output for it, or the error of an image that cannot be used.
    """

    def load(some: list[Path]) -> list[Loaded]:
        return [(path, _load(path, preprocess, fast_decode)) for path in some]

    def finish(loaded: list[Loaded]) -> list[tuple[Path, Output]]:
        usable = [image for _, image in loaded if not isinstance(image, DataError)]
        outputs = iter(forward(np.stack(usable)) if usable else ())
        return [
            (path, image if isinstance(image, DataError) else next(outputs))
            for path, image in loaded
        ]

    if parallel:
        yield from _in_threads(lambda batch: finish(load(batch)), paths, batch_size)
        return
    loaded = _in_threads(load, paths, BATCH)
    while batch := list(islice(loaded, batch_size)):
        yield from finish(batch)


def _in_threads(
    work: Callable[[list[Path]], list[T]], paths: Iterable[Path], count: int
) -> Iterator[T]:
    """Yield in order what `work` makes of `count` paths at a time, on every core."""
    with ThreadPoolExecutor(cores()) as pool:
        remaining = iter(paths)
        ahead: deque[Future[list[T]]] = deque()
        while True:
            while len(ahead) < 2 * cores() and (some := list(islice(remaining, count))):
                ahead.append(pool.submit(work, some))
            if not ahead:
                return
            yield from ahead.popleft().result()


def _load(path: Path, preprocess: Preprocess, fast: bool) -> NDArray[np.float32] | DataError:
    try:
        photograph = open_photograph(path, preprocess.background)
        surplus = min(photograph.size) / preprocess.resize
        return eval_array(photograph.decode(times_smaller(surplus) if fast else 1), preprocess)
    except DataError as error:
        return error
