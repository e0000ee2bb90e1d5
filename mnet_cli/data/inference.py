"""Images through a forward pass: each core takes some from the file to the network's output."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.images import open_photograph, times_smaller
from mnet_cli.data.preprocess import Preprocess, eval_array
from mnet_cli.errors import DataError
from mnet_cli.machine import cores

Output = NDArray[np.float32] | DataError


def outputs_of(
    paths: Iterable[Path],
    preprocess: Preprocess,
    forward: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    batch_size: int,
    *,
    fast_decode: bool = False,
) -> Iterator[tuple[Path, Output]]:
    """Decode images and pass them through a network, in threads, and yield in order.

    Holds at most two batches a core at a time, however many paths there are.

    Args:
        paths: The images, drawn from as needed.
        preprocess: How an image becomes the network's input.
        forward: Images (N, 3, S, S) to outputs (N, …); called from several threads.
        batch_size: Images that a thread decodes and passes on together.
        fast_decode: Decode JPEGs that are much larger than needed at a half or a quarter of
            their size.

    Yields:
        A path and the network's output for it, or the error of an image that cannot be used.
    """

    def run(batch: list[Path]) -> list[tuple[Path, Output]]:
        images = [_load(path, preprocess, fast_decode) for path in batch]
        usable = [image for image in images if not isinstance(image, DataError)]
        outputs = iter(forward(np.stack(usable)) if usable else ())
        return [
            (path, image if isinstance(image, DataError) else next(outputs))
            for path, image in zip(batch, images, strict=True)
        ]

    with ThreadPoolExecutor(cores()) as pool:
        remaining = iter(paths)
        ahead: deque[Future[list[tuple[Path, Output]]]] = deque()
        while True:
            while len(ahead) < 2 * cores() and (batch := list(islice(remaining, batch_size))):
                ahead.append(pool.submit(run, batch))
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
