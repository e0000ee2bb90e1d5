"""Epoch rows as TensorBoard scalars."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mnet_cli.errors import MachineError
from mnet_cli.system.atomic import not_writable
from mnet_cli.training.events import EpochEnded, Event

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def require_tensorboard() -> "type[SummaryWriter]":
    """Return torch's writer of event files.

    Raises:
        MachineError: The tensorboard package is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MachineError(
            "tensorboard",
            f"cannot be imported ({error})",
            next_step='Run: pip install "mnet-cli[tensorboard]"',
        ) from error
    return SummaryWriter


class EpochWriter:
    """Writes the rows of epochs into an event file of TensorBoard.

    Each value but `epoch` becomes a scalar of its own name at that epoch, which can be seen in
    TensorBoard at once. An event file is a log that grows under its own name, so it is not
    renamed into place; a reader leaves out a broken last record.

    Args:
        folder: Where the event file goes; made if it does not exist.

    Raises:
        MachineError: The tensorboard package is missing, or `folder` cannot be written;
            calls raise it too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        writer_class = require_tensorboard()
        with _writing(folder):
            self.writer = writer_class(str(folder))

    def __call__(self, event: Event) -> None:
        """Add the row of an epoch that has ended."""
        if not isinstance(event, EpochEnded):
            return
        with _writing(self.folder):
            for name, value in event.row.items():
                if name != "epoch":
                    self.writer.add_scalar(name, value, int(event.row["epoch"]))
            self.writer.flush()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusal into a MachineError about `folder`."""
    try:
        yield
    except OSError as error:
        raise not_writable(folder, error) from error
