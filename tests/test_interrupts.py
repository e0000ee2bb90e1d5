import os
import signal

import pytest

from mnet_cli.interrupts import Terminated, held, raise_terminated


@pytest.fixture(autouse=True)
def own_handler():
    before = signal.signal(signal.SIGTERM, raise_terminated)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_block_is_done_before_the_signal_is_raised():
    done = []
    with pytest.raises(Terminated), held():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("the rest")
    assert done == ["the rest"]
    with pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_signal_does_not_wait():
    done = []
    with pytest.raises(Terminated), held():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("the rest")
    assert done == []


def test_an_interrupt_is_held_too():
    done = []
    with pytest.raises(KeyboardInterrupt), held():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the rest")
    assert done == ["the rest"]


def test_errors_in_the_block_leave_the_handlers_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="wrong"), held():
        raise ValueError("wrong")
    assert signal.getsignal(signal.SIGTERM) is before
