"""The error classes of mnet and their exit codes.

Every error reads `where: what is wrong. What to do.` The command line prints it as one line
and exits with the code of its class.
"""

from collections.abc import Sequence


class MnetError(Exception):
    """An error with a cause that the user can fix.

    Args:
        where: The file, key, option or address that the error is about.
        found: What is wrong with it.
        next_step: What to do, as one imperative sentence; may be empty. Commands in it stand
            in double quotes.
        details: Further lines that are printed before the error line, one each.
    """

    exit_code = 1

    def __init__(
        self,
        where: str,
        found: str,
        next_step: str = "",
        details: Sequence[str] = (),
    ) -> None:
        self.where = where
        self.found = found
        self.next_step = next_step
        self.details = tuple(details)
        parts = (f"{where}: {found}", next_step)
        super().__init__(" ".join(map(_sentence, filter(None, parts))))

    def __reduce__(self) -> tuple[type["MnetError"], tuple[object, ...]]:
        """Pickle all parts, so that an error can come from a worker process."""
        return type(self), (self.where, self.found, self.next_step, self.details)


def _sentence(text: str) -> str:
    """End `text` with a full stop, unless it has an end already."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


class UsageError(MnetError):
    """A command line, or an argument of the Python API, that is not valid."""

    exit_code = 2


class RecipeError(MnetError):
    """A recipe that is missing, unreadable, invalid or contradicts itself."""

    exit_code = 2


class DataError(MnetError):
    """A data set or image that cannot be used."""

    exit_code = 3


class WeightsError(MnetError):
    """A weights file or checkpoint that is missing, damaged, unsafe or does not fit."""

    exit_code = 4


class MachineError(MnetError):
    """A problem of the environment: disk, network, permissions, a missing extra or device."""

    exit_code = 5


class RefusedError(MnetError):
    """A result that a check refused: too low accuracy, different outputs, a loss of NaN."""

    exit_code = 6
