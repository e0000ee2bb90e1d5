"""The error family of mnet and its exit codes.

Every error says *where: what was found; what was expected. What to do next.* The command
line prints it as one line and leaves with the class's exit code; nothing else in the
program handles errors of its own kind.
"""

from collections.abc import Sequence


class MnetError(Exception):
    """An error with a cause that the user can act on.

    Args:
        where: The file, key, option or address that the error is about.
        found: What was found there.
        expected: What was expected instead; may be empty.
        next_step: What to do next, as a sentence without its full stop; may be empty.
        details: Further lines that are printed before the error line, one each.
    """

    exit_code = 1

    def __init__(
        self,
        where: str,
        found: str,
        expected: str = "",
        next_step: str = "",
        details: Sequence[str] = (),
    ) -> None:
        self.where = where
        self.found = found
        self.expected = expected
        self.next_step = next_step
        self.details = tuple(details)
        line = f"{where}: {found}"
        if expected:
            line += f"; {expected}"
        if next_step:
            line += f". {next_step}"
        super().__init__(line)

    def __reduce__(self) -> tuple[type["MnetError"], tuple[object, ...]]:
        """Let an error travel whole from a worker process."""
        return type(self), (self.where, self.found, self.expected, self.next_step, self.details)


class UsageError(MnetError):
    """A command line that cannot be carried out as typed."""

    exit_code = 2


class RecipeError(MnetError):
    """A recipe that is missing, unreadable, invalid or contradicts itself."""

    exit_code = 2


class DataError(MnetError):
    """A data set or image that cannot be used."""

    exit_code = 3


class WeightsError(MnetError):
    """A weights file or checkpoint that is missing, damaged, hostile or does not fit."""

    exit_code = 4


class MachineError(MnetError):
    """The machine's fault: disk, network, permissions, a missing extra or device."""

    exit_code = 5


class RefusedError(MnetError):
    """A result that a gate refused: accuracy, parity or a loss that is not a number."""

    exit_code = 6
