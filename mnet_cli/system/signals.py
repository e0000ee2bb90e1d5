"""Signals that stop a command: how they are raised, and how a block of code puts them off."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def available(*names: str) -> list[int]:
    """Those of the named signals that this system has; Windows lacks SIGHUP and SIGCHLD."""
    return [signal.Signals[name] for name in names if hasattr(signal, name)]


URGENT = available("SIGTERM", "SIGINT")  # a second one is not put off
STOP_SIGNALS = [*URGENT, *available("SIGHUP")]
# SIGCHLD is among them because torch raises there when a loader's worker has died.
DEFERRED = [*STOP_SIGNALS, *available("SIGCHLD")]


class StopSignal(BaseException):
    """A signal that ends the command arrived; not an Exception, so that nothing swallows it.

    Args:
        number: Of the signal.

    Attributes:
        next_step: How to go on later, as a sentence without its full stop; may be empty.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)
        self.next_step = ""

    @property
    def exit_code(self) -> int:
        """What shells give a process that the signal has ended."""
        return 128 + self.number


def raise_stop_signal(number: int, frame: FrameType | None) -> None:
    """A signal handler that raises `StopSignal`, and leaves SIGHUP ignored from then on.

    A terminal that goes away sends it, and so does the shell that ran there: the second must
    not disturb what the first has begun.
    """
    for hangup in available("SIGHUP"):
        signal.signal(hangup, signal.SIG_IGN)
    raise StopSignal(number)


def raise_on_signals() -> None:
    """Let the signals of `STOP_SIGNALS` raise `StopSignal`, but for those that the caller ignores.

    `nohup` ignores SIGHUP, and a shell SIGINT for what it runs in the background.
    """
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, raise_stop_signal)


def die_on_signals() -> None:
    """Undo `raise_on_signals` where the work is over: a signal ends the process at once."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is raise_stop_signal:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def held() -> Iterator[None]:
    """Put off signals until the block is done, so that it is done whole or not at all.

    A second SIGTERM or SIGINT in the same block is not put off. Only the main thread can
    hold signals; elsewhere none arrive, and this does nothing.
    """
    waiting: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        again = any(number == before for before, _ in waiting)
        waiting.append((number, frame))
        if again and number in URGENT:
            _pass_on(before[number], number, frame)

    before: dict[int, Any] = {}
    try:
        for number in DEFERRED:
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
    for number, frame in sorted(waiting, key=lambda one: DEFERRED.index(one[0])):
        _pass_on(before[number], number, frame)


def _pass_on(handler: Any, number: int, frame: FrameType | None) -> None:
    if callable(handler):
        handler(number, frame)
    elif handler is signal.SIG_DFL and number in STOP_SIGNALS:
        signal.signal(number, handler)
        signal.raise_signal(number)
