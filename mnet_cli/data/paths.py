"""Many names in little memory: their bytes in one array, not an object for each."""

import os
from collections.abc import Iterable, Sequence

import numpy as np


class Names(Sequence[str]):
    """Names of images, paths with POSIX separators; each string is made when it is asked for.

    Args:
        names: The names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        content, ends = bytearray(), [0]
        for name in names:
            content += os.fsencode(name)
            ends.append(len(content))
        self._content = bytes(content)
        self._ends = np.asarray(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # nobody slices it
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._content[self._ends[index] : self._ends[index + 1]])
