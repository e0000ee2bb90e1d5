"""The file formats by name and by suffix, from the entry points `mnet_cli.formats`."""

from functools import cache
from pathlib import Path

from mnet_cli.errors import MachineError, UsageError
from mnet_cli.formats.base import Format
from mnet_cli.system.plugins import FORMATS

PRECISIONS = {"float32": "", "float16": ".fp16", "int8": ".int8"}  # and their part of file names


def find_format(name: str, where: str = "") -> Format:
    """Return the format of that name.

    Args:
        name: As its entry point says.
        where: The option that gave the name, for errors.

    Raises:
        UsageError, MachineError: As `ExtensionPoint.load` does.
    """
    kind = FORMATS.load(name, where)
    try:
        found = kind()
    except Exception as error:  # of a package that is not made for this version
        raise _not_a_format(name, where, error) from error
    if not isinstance(found, Format) or not hasattr(found, "suffix"):
        raise _not_a_format(name, where, "it is no Format with a suffix")
    return found


def _not_a_format(name: str, where: str, reason: object) -> MachineError:
    return MachineError(
        where or "format",
        f'"{name}" cannot be used ({reason})',
        next_step="Update or uninstall the package that adds it",
    )


def format_for_export(name: str, precision: str) -> Format:
    """Return a format that can write a precision.

    Raises:
        UsageError: There is no such format, or it does not have that precision.
        MachineError: Its extra is not installed.
    """
    where = f"--format {name}"
    found = find_format(name, where)
    if found.missing_package():
        raise found.missing_extra(where)
    if precision not in found.precisions:
        raise UsageError(
            where,
            f"cannot be {precision}",
            next_step=f"Choose {' or '.join(found.precisions)}",
        )
    return found


def format_of(path: Path) -> Format | None:
    """Return the format whose files end as `path` does; None if there is none.

    Raises:
        MachineError: Two formats have that suffix.
    """
    names = _names_by_suffix().get(path.suffix, ())
    if len(names) > 1:
        raise MachineError(
            str(path),
            f"the formats {' and '.join(names)} both have the suffix {path.suffix}",
            next_step="Uninstall the package of one of them",
        )
    return find_format(names[0]) if names else None


@cache
def _names_by_suffix() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in FORMATS.names():
        try:
            suffix = find_format(name).suffix
        except MachineError:  # of a broken package: other formats do not need it
            continue
        found[suffix] = (*found.get(suffix, ()), name)
    return found
