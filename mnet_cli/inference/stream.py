"""Read, decode and classify images, on every core."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.image_files import ImageFile
from mnet_cli.data.images import open_photograph, times_smaller
from mnet_cli.data.preprocess import Preprocess, eval_array
from mnet_cli.errors import DataError
from mnet_cli.system.machine import BATCH
from mnet_cli.system.threads import in_threads

Output = NDArray[np.float32] | DataError
Loaded = tuple[ImageFile, Output]  # the input of the network, or the error of the image


def outputs_of(
    images: Iterable[ImageFile],
    preprocess: Preprocess,
    forward: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    batch_size: int,
    *,
    fast_decode: bool = False,
    parallel: bool = True,
) -> Iterator[tuple[ImageFile, Output]]:
    """Decode images in threads, pass them through a network, and yield the outputs in order.

    At most two batches a core are in memory at a time, however many images there are; without
    `parallel` one batch, and twice `BATCH` decoded images a core.

    Args:
        images: The images, taken one by one as needed.
        preprocess: How an image becomes the network's input.
        forward: Images (N, 3, S, S) to outputs (N, …).
        batch_size: Images that are passed to `forward` together.
        fast_decode: Decode JPEGs that are much larger than needed at a half or a quarter of
            their size.
        parallel: Call `forward` in the threads that decode, which suits CPUs; otherwise only in
            the thread of the caller, one batch after the other, which suits a GPU.

    Yields:
        An image and the network's output for it, or the error of an image that cannot be used.
    """

    def load(some: list[ImageFile]) -> list[Loaded]:
        return [(image, _load(image, preprocess, fast_decode)) for image in some]

    def finish(loaded: list[Loaded]) -> list[Loaded]:
        usable = [pixels for _, pixels in loaded if not isinstance(pixels, DataError)]
        outputs = iter(forward(np.stack(usable)) if usable else ())
        return [
            (image, pixels if isinstance(pixels, DataError) else next(outputs))
            for image, pixels in loaded
        ]

    if parallel:
        yield from in_threads(lambda batch: finish(load(batch)), images, batch_size)
        return
    loaded = in_threads(load, images, BATCH)
    while batch := list(islice(loaded, batch_size)):
        yield from finish(batch)


def _load(image: ImageFile, preprocess: Preprocess, fast: bool) -> NDArray[np.float32] | DataError:
    try:
        photograph = open_photograph(image, preprocess.background)
        surplus = min(photograph.size) / preprocess.resize
        return eval_array(photograph.decode(times_smaller(surplus) if fast else 1), preprocess)
    except DataError as error:
        return error
