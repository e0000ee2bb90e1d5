"""What every image source offers: the labelled images of a data set, without torch.

A new kind of data set is one subclass of `ImageSource`, declared in the entry-point group
`mnet_cli.sources`.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.image_files import ImageFile, Stamp
from mnet_cli.data.paths import Names
from mnet_cli.errors import DataError, MnetError


@dataclass(frozen=True, eq=False)
class ImageSource(Sequence[ImageFile]):
    """The N labelled images of one split, in a fixed order.

    A source can be pickled: worker processes get a copy. What cannot be pickled, such as an open
    file, is opened when it is needed first and left out of the state.

    Attributes:
        root: The data set, as the user named it: a path or a URL.
        place: The part of the data set that holds this split, for messages.
        class_names: The classes, in the order of the labels. A class may have no image.
        names: Names of the images below `root`, such as `train/daisy/1.jpg`, each once.
        labels: For each image the index of its class in `class_names`, (N,).
        ignored: What was skipped, one short printable note each.
    """

    root: str
    place: str
    class_names: tuple[str, ...]
    names: Names
    labels: NDArray[np.int64]
    ignored: tuple[str, ...] = ()

    layout: ClassVar[str]
    """How such a data set looks, in a few words for error messages."""
    general: ClassVar[bool] = False
    """Whether a root that another source matches too is left to the other."""

    @classmethod
    @abstractmethod
    def matches(cls, root: str) -> bool:
        """Whether `root` is a data set of this kind; fast, and without an error."""

    @classmethod
    @abstractmethod
    def open(cls, root: str) -> dict[str, Self]:
        """List the images of each split; no image is read.

        Nothing about the classes is refused here: `check_classes` does that for all sources.

        Returns:
            `{"train": …, "val": …}`, with `"test"` if there is one, or `{"all": …}` if the data
            set is not split.

        Raises:
            DataError: The data set cannot be read, or no image has a class.
        """

    @classmethod
    def unlabelled(cls, root: str) -> Iterator[ImageFile]:
        """Give the images of all splits, also those without a class, for prediction.

        Raises:
            DataError: As `open` does.
        """
        for source in cls.open(root).values():
            yield from source

    @classmethod
    def splits(cls, root: str) -> tuple[str, ...]:
        """The names that `open` gives, for kinds of data sets that can tell them faster."""
        return tuple(cls.open(root))

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Read the encoded bytes of image `index`; several threads may read at once.

        Raises:
            DataError: They cannot be read; the error names the image as `where` does.
        """

    def where(self, index: int) -> str:
        """The full name of image `index` in output and errors."""
        return f"{self.root}/{self.names[index]}"

    def stamp(self, index: int) -> Stamp | None:
        """Return values that change whenever the bytes of image `index` change.

        With None the image is checked again in every run.
        """
        return None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> "SourceImage":  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(index)
        return SourceImage(self, index)


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of a source, as an `ImageFile`.

    Attributes:
        source: The source.
        index: Of the image in the source.
    """

    source: ImageSource
    index: int

    @property
    def name(self) -> str:
        """Its name below the root of the data set."""
        return self.source.names[self.index]

    @property
    def where(self) -> str:
        """Its full name in output and errors."""
        return self.source.where(self.index)

    def read(self) -> bytes:
        """Read the encoded bytes; see `ImageSource.read`."""
        try:
            return self.source.read(self.index)
        except MnetError:
            raise
        except Exception as error:  # a source of another package may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise DataError(self.where, f"cannot be read ({reason})") from error

    def stamp(self) -> Stamp | None:
        """See `ImageSource.stamp`."""
        return self.source.stamp(self.index)
