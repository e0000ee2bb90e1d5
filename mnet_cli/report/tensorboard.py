"""Epoch rows as TensorBoard scalars."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mnet_cli.errors import MachineError
from mnet_cli.system.atomic import not_writable
from mnet_cli.training.events import EpochEnded, Event, Row, RunStarted

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
    TensorBoard at once. A run that goes on writes its epochs again, into a new file that takes
    the place of the older ones: a process that was killed may have saved an epoch that its file
    lacks, and no reader may find an epoch twice. An event file is a log that grows under its own
    name, so it is not renamed into place; a reader leaves out a broken last record.

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
            self._older = list(folder.glob("events.out.tfevents.*"))
            # A TensorBoard that is open drops the epochs from purge_step on that it has read.
            self.writer = writer_class(str(folder), purge_step=1 if self._older else None)

    def __call__(self, event: Event) -> None:
        """Add the row of an epoch that has ended, or those of a run that goes on."""
        if isinstance(event, EpochEnded):
            self._write(event.row, time.time())
        elif isinstance(event, RunStarted):
            ended = time.time() - sum(row["seconds"] for row in event.state.rows)
            for row in event.state.rows:
                ended += row["seconds"]  # as if training had not been stopped
                self._write(row, ended)
            with _writing(self.folder):
                for file in self._older:
                    file.unlink()

    def finish(self) -> None:
        """Close the event file."""
        with _writing(self.folder):
            self.writer.close()

    def _write(self, row: Row, ended: float) -> None:
        """Write the row of an epoch that ended at a time in seconds since 1970."""
        with _writing(self.folder):
            for name, value in row.items():
                if name != "epoch":
                    self.writer.add_scalar(name, value, int(row["epoch"]), walltime=ended)
            self.writer.flush()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusal into a MachineError about `folder`."""
    try:
        yield
    except OSError as error:
        raise not_writable(folder, error) from error
