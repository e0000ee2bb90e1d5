"""Image sources: the kinds of data sets that `data.root` and `--data` can name."""

import os
from functools import cache

from mnet_cli.data.sources.base import ImageSource
from mnet_cli.data.sources.classes import check_classes
from mnet_cli.errors import DataError
from mnet_cli.system.plugins import SOURCES
from mnet_cli.system.text import printable
from mnet_cli.system.urls import refuse_credentials


def find_source(root: str) -> type[ImageSource] | None:
    """Choose the kind of source that reads `root`; None if no kind does.

    Raises:
        DataError: Two kinds match.
        MachineError: A package that declares a source cannot be imported.
    """
    matching = {name: source for name, source in _sources().items() if source.matches(root)}
    special = {name: source for name, source in matching.items() if not source.general}
    chosen = special or matching
    if len(chosen) > 1:
        raise DataError(
            printable(root),
            f"the image sources {' and '.join(chosen)} both match",
            next_step="Move the files of one kind elsewhere, or uninstall the package of one",
        )
    return next(iter(chosen.values()), None)


def open_source(root: str | os.PathLike[str]) -> dict[str, ImageSource]:
    """List the images of a data set of any kind; nothing about the classes is refused.

    Args:
        root: A path or URL.

    Returns:
        A source for each split; see `ImageSource.open`.

    Raises:
        DataError: No kind of source matches, two do, or the data set cannot be read.
        MachineError: A package that declares a source cannot be imported.
        UsageError: A URL has credentials in it.
    """
    root = os.fspath(root)
    refuse_credentials(root, "--data")
    source = find_source(root)
    if source is None:
        missing = "://" not in root and not os.path.lexists(root)
        kinds = "; ".join(f"{name}: {source.layout}" for name, source in _sources().items())
        raise DataError(
            printable(root),
            "does not exist" if missing else "is not a data set of a known kind",
            next_step=f"Use one of the known kinds ({kinds})",
        )
    return dict(source.open(root))


def open_checked(root: str | os.PathLike[str], least_classes: int = 2) -> dict[str, ImageSource]:
    """List the images of a data set and refuse classes that no classifier can learn.

    Args:
        root: A path or URL.
        least_classes: How many classes there must be.

    Returns:
        As `open_source` does; all splits have the classes of `train`.

    Raises:
        DataError: As `open_source` and `check_classes` do.
    """
    return check_classes(open_source(root), least_classes)


@cache
def _sources() -> dict[str, type[ImageSource]]:
    """The sources of all installed packages by name."""
    return {
        name: source
        for name, source in SOURCES.usable()
        if isinstance(source, type) and issubclass(source, ImageSource)
    }
