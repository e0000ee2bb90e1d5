"""Devices: which are available, what each is fast with, and threads of the CPU."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mnet_cli.errors import UsageError

# Several threads at work on MPS at once end the process
# (https://github.com/pytorch/pytorch/issues/197805), and gain nothing on other devices.
DEVICE_LOCK = threading.Lock()


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `mps` into a device; `auto` takes the fastest available.

    Raises:
        UsageError: The device that was named is not available.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, usable in available.items() if usable)
    if not available.get(name, False):
        usable = ", ".join(["auto", *(kind for kind, there in available.items() if there)])
        raise UsageError(
            f"--device {name}", "not available here", next_step=f"Choose one of {usable}"
        )
    return torch.device(name)


def image_format(device: torch.device) -> torch.memory_format:
    """The memory format of images and feature maps that a device is fast with.

    On MPS that is PyTorch's default: batch norm's backward pass was wrong there with channels
    last (https://github.com/pytorch/pytorch/issues/175189).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device, without waiting where that is safe.

    From memory that is not pinned, MPS would read what may have been freed meanwhile
    (https://github.com/pytorch/pytorch/issues/139550).
    """
    pinned = device.type == "cuda" and tensor.is_pinned()
    return tensor.to(device, non_blocking=pinned)


class _Calls:
    """The calls that compute on one thread at the moment, and the threads of PyTorch before."""

    lock = threading.Lock()
    running = 0
    threads = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute on the calling thread alone while the block runs.

    PyTorch has a number of threads for each thread, and one that new threads begin with. To set
    the first sets the second too; both are as before once no call is in such a block.
    """
    with _Calls.lock:
        # A new thread takes its number at its first look at it. Later it would replace the 1.
        threads = torch.get_num_threads()
        if not _Calls.running:
            _Calls.threads = threads
        _Calls.running += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _Calls.lock:
            _Calls.running -= 1
            torch.set_num_threads(_Calls.threads)
