"""Work in threads, in order and in constant memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from mnet_cli.system.machine import cores

T = TypeVar("T")
S = TypeVar("S")


def in_threads(work: Callable[[list[S]], list[T]], items: Iterable[S], count: int) -> Iterator[T]:
    """Yield in order what `work` makes of `count` items at a time, on every core.

    At most two groups of items a core are in memory, however many items there are.
    """
    pool = ThreadPoolExecutor(cores())
    try:
        remaining = iter(items)
        ahead: deque[Future[list[T]]] = deque()
        while True:
            while len(ahead) < 2 * cores() and (some := list(islice(remaining, count))):
                ahead.append(pool.submit(work, some))
            if not ahead:
                return
            yield from ahead.popleft().result()
    finally:  # where it is stopped, what has not begun must not be waited for
        pool.shutdown(cancel_futures=True)
