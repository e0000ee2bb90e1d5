"""From rows of images with labels to the fields of an `ImageSource`, in the order of folders."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.paths import Names
from mnet_cli.errors import DataError
from mnet_cli.system.text import printable

SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass
class Rows:
    """The images of one split, row by row, in any order.

    Attributes:
        names: For each its name below the split, such as `daisy/1.jpg`.
        classes: For each the name of its class.
        places: For each where its bytes are; numbers whose meaning the source knows.
        ignored: Notes on what was skipped.
    """

    names: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    places: list[tuple[int, ...]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def add(self, name: str, label: str, *place: int) -> None:
        """Add an image."""
        self.names.append(name)
        self.classes.append(label)
        self.places.append(place)

    def arranged(self, root: str, split: str, class_names: Sequence[str]) -> dict[str, Any]:
        """The fields of `ImageSource`, and `places` (N, …), sorted by class and then by name.

        Folders have that order too, so that the same photographs train the same network from
        any source.

        Args:
            root: The data set.
            split: Its name, or `all`.
            class_names: The classes of all splits, sorted.

        Raises:
            DataError: Two images have the same name.
        """
        index = {name: label for label, name in enumerate(class_names)}
        labels = [index[name] for name in self.classes]
        order = sorted(range(len(labels)), key=lambda row: (labels[row], self.names[row]))
        for before, row in pairwise(order):
            if (labels[before], self.names[before]) == (labels[row], self.names[row]):
                raise DataError(
                    printable(root),
                    f"two images are named {printable(self.names[row])}",
                    next_step="Give each its own name, or remove one",
                )
        below = "" if split == "all" else f"{split}/"
        places: NDArray[np.int64] = np.asarray([self.places[row] for row in order], np.int64)
        return {
            "root": root,
            "place": f"{root}/{split}" if below else root,
            "class_names": tuple(class_names),
            "names": Names(below + self.names[row] for row in order),
            "labels": np.asarray([labels[row] for row in order], np.int64),
            "ignored": tuple(self.ignored),
            "places": places,
        }


def class_names_of(splits: dict[str, Rows]) -> list[str]:
    """The classes of all splits, sorted."""
    return sorted({name for rows in splits.values() for name in rows.classes})


def below_class(label: str, path: str) -> str:
    """A name for an image below its split that begins with its class, as in a folder."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    parts = tuple(part for part in parts if part not in ("/", "..", "."))
    if label in parts:  # as train/daisy/1.jpg
        parts = parts[parts.index(label) + 1 :]
    return "/".join((label, *parts))
