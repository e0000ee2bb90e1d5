"""What the machine has and bears."""

import os

BATCH = 8  # images that a core takes through a network at a time: more no longer fit its cache


def cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
