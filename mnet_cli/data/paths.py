"""Many paths in little memory: their bytes in one array, not an object for each."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Names(Sequence[str]):
    """Paths below some folder, with POSIX separators; made one by one as they are asked for.

    Args:
        names: The paths.
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

    def take(self, chosen: NDArray[np.bool_]) -> "Names":
        """Those that are chosen, in the same order."""
        return Names(self[index] for index in np.flatnonzero(chosen).tolist())


class Files(Sequence[Path]):
    """The files of `names` below `root`; made one by one as they are asked for."""

    def __init__(self, root: Path, names: Names) -> None:
        self.root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:  # type: ignore[override]  # nobody slices it
        return self.root / self.names[index]
