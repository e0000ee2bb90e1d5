"""CPU cores and open files of this machine."""

import os
import sys
from contextlib import suppress
from pathlib import Path

BATCH = 8  # images per forward pass and core: larger batches do not fit the core's cache
SPARE_FILES = 100  # reserved for images, checkpoints and the pipes of worker processes


def cores() -> int:
    """Number of CPU cores that this process may use.

    The processes that a launcher such as torchrun starts on a machine share its cores equally.
    """
    known = hasattr(os, "sched_getaffinity")
    available = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    processes = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, available // max(1, int(processes))) if processes.isdecimal() else available


def use_one_core() -> None:
    """Let this process count on one core: the others have processes like it."""
    os.environ["LOCAL_WORLD_SIZE"] = str(os.cpu_count() or 1)


def allow_open_files(count: int) -> int:
    """Let this process open `count` more files, if the system permits.

    The soft limit on open files is raised if necessary, at most to the hard limit.

    Returns:
        How many more it may open, besides `SPARE_FILES`: `count`, or fewer, but at least 1.
    """
    try:
        import resource
    except ImportError:  # Windows, where a memory-mapped file needs no file number
        return count
    set_limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if n == resource.RLIM_INFINITY else n for n in set_limits)
    others = _open_files() + SPARE_FILES
    needed = min(others + count, hard)
    if needed > soft:
        with suppress(ValueError, OSError):  # the system may have a lower limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, set_limits[1]))
            soft = needed
    return max(1, min(count, soft - others))


def _open_files() -> int:
    """How many files this process has open; 0 if the system does not list them."""
    with suppress(OSError):
        return sum(1 for _ in Path("/dev/fd").iterdir())
    return 0
