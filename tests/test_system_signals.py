import importlib.util
import os
import re
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from mnet_cli.cli import console, run
from mnet_cli.system import signals
from mnet_cli.system.signals import (
    STOP_SIGNALS,
    DeferredSignals,
    StopSignal,
    raise_on_signals,
    raise_stop_signal,
)

PACKAGE = Path(signals.__file__).parent


@pytest.fixture(autouse=True)
def own_handlers(monkeypatch):
    monkeypatch.setattr(console, "settings", console.Settings())
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signal.signal(signal.SIGTERM, raise_stop_signal)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def deferred():
    """A block whose signals wait, and handlers as they were before afterwards."""
    with DeferredSignals() as signals, signals.defer():
        yield


def test_a_block_is_done_before_the_signal_is_raised():
    done = []
    with pytest.raises(StopSignal), deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("the rest")
    assert done == ["the rest"]
    with pytest.raises(StopSignal):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_signal_does_not_wait():
    done = []
    with pytest.raises(StopSignal), deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("the rest")
    assert done == []


def test_a_second_signal_of_another_kind_does_not_wait_either():
    signal.signal(signal.SIGINT, raise_stop_signal)
    done = []
    with pytest.raises(StopSignal) as stopped, deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the rest")
    assert stopped.value.number == signal.SIGINT
    assert done == []


def test_a_second_hangup_waits_and_is_then_ignored():
    signal.signal(signal.SIGHUP, raise_stop_signal)
    done = []
    with pytest.raises(StopSignal), deferred():
        signal.raise_signal(signal.SIGHUP)  # of the terminal that goes away
        signal.raise_signal(signal.SIGHUP)  # of the shell that ran there
        done.append("the rest")
    signal.raise_signal(signal.SIGHUP)
    assert done == ["the rest"]


def test_an_interrupt_is_deferred_too():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the rest")
    assert done == ["the rest"]


def test_errors_in_the_block_leave_the_handlers_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="wrong"), deferred():
        raise ValueError("wrong")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), (None, 130)]
)
def test_a_command_that_is_stopped_says_so_in_one_line(name, code, monkeypatch, capsys):
    def stop():
        if name is None:
            raise KeyboardInterrupt  # where no handler of mnet is installed
        signal.raise_signal(signal.Signals[name])

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    raise_on_signals()
    monkeypatch.setattr("mnet_cli.recipe.shipped_recipes", stop)
    assert run(["recipes", "list", "--quiet"]) == code
    assert capsys.readouterr().err == f"mnet: error: {name or 'SIGINT'}: stopped.\n"
    handlers = {signal.getsignal(number) for number in STOP_SIGNALS}
    assert handlers <= {signal.SIG_DFL, signal.SIG_IGN}  # another signal raises nothing


def test_a_signal_that_the_caller_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    raise_on_signals()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    with deferred():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGTERM) is raise_stop_signal


def test_signals_that_windows_lacks_are_not_needed(monkeypatch):
    for name in ("SIGHUP", "SIGCHLD"):
        monkeypatch.delattr(signal, name)
    spec = importlib.util.spec_from_file_location("interrupts_on_windows", signals.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.STOP_SIGNALS == module.DEFERRED == [signal.SIGTERM, signal.SIGINT]
    module.raise_on_signals()
    with pytest.raises(module.StopSignal), module.DeferredSignals() as late, late.defer():
        signal.raise_signal(signal.SIGTERM)


def test_no_module_names_a_signal_that_windows_lacks():
    named = {
        (path.name, name)
        for path in PACKAGE.rglob("*.py")
        for name in re.findall(r"signal\.(SIG[A-Z]+\d?)\b", path.read_text(encoding="utf-8"))
    }
    assert {name for _, name in named} <= {"SIGINT", "SIGTERM"}, named


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="a signal of POSIX")
def test_a_handler_that_torch_installs_later_is_deferred_and_stays():
    seen = []

    def of_torch(number, frame):
        seen.append(number)

    before = signal.getsignal(signal.SIGCHLD)
    try:
        with DeferredSignals() as deferred:
            signal.signal(signal.SIGCHLD, of_torch)
            with deferred.defer():
                signal.raise_signal(signal.SIGCHLD)
                assert not seen
            assert seen == [signal.SIGCHLD]
            signal.raise_signal(signal.SIGCHLD)
            assert len(seen) == 2
        assert signal.getsignal(signal.SIGCHLD) is of_torch
    finally:
        signal.signal(signal.SIGCHLD, before)
