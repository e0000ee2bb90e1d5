"""Extension points: what installed packages offer by name, through entry points.

A package offers an object in the `[project.entry-points."GROUP"]` table of its pyproject.toml;
mnet's own are declared there in the same way. Listing names reads the metadata of installed
packages and imports nothing
(https://packaging.python.org/specifications/entry-points).
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mnet_cli.errors import MachineError, UsageError


@dataclass(frozen=True)
class ExtensionPoint:
    """A kind of object that packages can add.

    Attributes:
        group: Group of the entry points, such as `mnet_cli.formats`.
        kind: What one object is called in error messages, such as `format`.
    """

    group: str
    kind: str

    def names(self) -> tuple[str, ...]:
        """The names of all objects, sorted; nothing is imported."""
        return tuple(sorted(_declared(self.group)))

    def load(self, name: str, where: str = "") -> Any:
        """Import the object of that name.

        Args:
            name: As declared.
            where: The option or key that gave the name, for errors.

        Raises:
            UsageError: No package offers that name; the error lists the nearest names.
            MachineError: The package that offers it cannot be imported, or two packages do.
        """
        declared = _declared(self.group).get(name, ())
        where = where or self.kind
        if not declared:
            near = get_close_matches(name, self.names(), n=1)
            meant = f'Did you mean "{near[0]}"? ' if near else ""
            raise UsageError(
                where,
                f'unknown {self.kind} "{name}"',
                next_step=f"{meant}Choose one of {', '.join(self.names())}",
            )
        if len(declared) > 1:
            packages = " and ".join(_package(one) for one in declared)
            raise MachineError(
                where,
                f'{self.kind} "{name}" is declared by {packages}',
                next_step="Uninstall one of them",
            )
        [point] = declared
        try:
            return point.load()
        except Exception as error:  # an import can raise anything
            raise MachineError(
                where,
                f'{self.kind} "{name}" of the package {_package(point)} cannot be imported '
                f"({type(error).__name__}: {error})",
                next_step="Update or uninstall that package",
            ) from error

    def usable(self) -> Iterator[tuple[str, Any]]:
        """Import every object by its name; those that cannot be imported are left out."""
        for name in self.names():
            with suppress(MachineError):
                yield name, self.load(name)


@cache
def _declared(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    """The entry points of a group by their names."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=group):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unknown package"


ARCHITECTURES = ExtensionPoint("mnet_cli.architectures", "architecture")
FORMATS = ExtensionPoint("mnet_cli.formats", "format")
SOURCES = ExtensionPoint("mnet_cli.sources", "image source")
