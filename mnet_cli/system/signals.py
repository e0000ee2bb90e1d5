"""Signals that stop a command: how they are raised, and how a block of code defers them."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def available(*names: str) -> list[int]:
    """Those of the named signals that this system has; Windows lacks SIGHUP and SIGCHLD."""
    return [signal.Signals[name] for name in names if hasattr(signal, name)]


URGENT = available("SIGTERM", "SIGINT")  # a second one does not wait
STOP_SIGNALS = [*URGENT, *available("SIGHUP")]
LATE = available("SIGCHLD")  # torch raises there when a loader's worker has died, once it has some
DEFERRED = [*STOP_SIGNALS, *LATE]


class StopSignal(BaseException):
    """A signal that ends the command arrived; not an Exception, so that nothing swallows it.

    Args:
        number: Of the signal.

    Attributes:
        next_step: How to resume later, as a sentence without its full stop; may be empty.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)
        self.next_step = ""

    def __str__(self) -> str:
        return f"{self.number.name}: stopped"

    @property
    def exit_code(self) -> int:
        """What shells give a process that the signal has ended."""
        return 128 + self.number


def raise_stop_signal(number: int, frame: FrameType | None) -> None:
    """A signal handler that raises `StopSignal`, and leaves SIGHUP ignored from then on.

    A terminal that is closed sends it, and so does the shell that ran there: the second must
    not interrupt the work that the first one starts.
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


class DeferredSignals:
    """Signals that wait while a step runs, so that it is done whole or not at all.

    As a context manager it puts one handler in place of those that are installed. Outside of
    `defer` that handler calls them at once; inside it sets a flag, and they are called at the
    end. A second SIGTERM or SIGINT does not wait. Only the main thread receives signals; in
    another one this does nothing.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: list[tuple[int, FrameType | None]] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "DeferredSignals":
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._take_over(number)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)

    @property
    def waiting(self) -> int | None:
        """The signal that has waited longest of those that end the command; None without one."""
        return next((number for number, _ in self._waiting if number in STOP_SIGNALS), None)

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Let signals wait until the block ends; an error in it drops them."""
        for number in LATE:
            handler = signal.getsignal(number)
            if self._before and callable(handler) and handler != self._handle:
                self._take_over(number)
        self._depth += 1
        try:
            yield
        except BaseException:
            self._waiting.clear()
            raise
        finally:
            self._depth -= 1
        waiting = sorted(self._waiting, key=lambda one: DEFERRED.index(one[0]))
        self._waiting = []
        for number, frame in waiting:
            self._pass_on(number, frame)

    def _take_over(self, number: int) -> None:
        handler = signal.getsignal(number)
        if handler is not None:  # None was not set by Python
            self._before[number] = handler
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._depth:
            self._pass_on(number, frame)
            return
        again = any(before in URGENT for before, _ in self._waiting)
        self._waiting.append((number, frame))
        if again and number in URGENT:
            self._pass_on(number, frame)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        handler = self._before[number]
        if callable(handler):
            handler(number, frame)
        elif handler is signal.SIG_DFL and number in STOP_SIGNALS:
            signal.signal(number, handler)
            signal.raise_signal(number)
