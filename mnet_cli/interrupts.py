"""Signals that stop a command: how they are raised, and how a block of code puts them off."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# SIGCHLD is among them because torch raises there when a loader's worker has died.
STOPPING = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGCHLD")
    if hasattr(signal, name)  # Windows has no SIGCHLD
]


class Terminated(BaseException):
    """SIGTERM arrived; not an Exception, so that nothing on the way swallows it."""


def raise_terminated(number: int, frame: FrameType | None) -> None:
    """A signal handler that raises `Terminated`."""
    raise Terminated


@contextmanager
def held() -> Iterator[None]:
    """Put off signals until the block is done, so that it is done whole or not at all.

    A second SIGINT or SIGTERM in the same block is not put off. Only the main thread can
    hold signals; elsewhere none arrive, and this does nothing.
    """
    waiting: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        again = any(number == before for before, _ in waiting)
        waiting.append((number, frame))
        if again and number != getattr(signal, "SIGCHLD", None):
            _pass_on(before[number], number, frame)

    before: dict[int, Any] = {}
    try:
        for number in STOPPING:
            if signal.getsignal(number) is not None:  # None was not set by Python
                before[number] = signal.signal(number, hold)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, frame in sorted(waiting, key=lambda one: STOPPING.index(one[0])):
        _pass_on(before[number], number, frame)


def _pass_on(handler: Any, number: int, frame: FrameType | None) -> None:
    if callable(handler):
        handler(number, frame)
    elif handler is signal.SIG_DFL and number != getattr(signal, "SIGCHLD", None):
        signal.signal(number, handler)
        os.kill(os.getpid(), number)
