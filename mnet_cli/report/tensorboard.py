"""Epoch rows as TensorBoard scalars."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mnet_cli.errors import MachineError

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
            "the tensorboard extra was expected",
            'Run: pip install "mnet-cli[tensorboard]"',
        ) from error
    return SummaryWriter


def epoch_writer(folder: Path) -> Callable[[Mapping[str, float]], None]:
    """Open an event file in `folder` and return a function that adds an epoch row to it.

    Each value but `epoch` becomes a scalar of its own name at that epoch; a row can be seen
    in TensorBoard once the function returns. An event file is a log that grows under its
    own name, so it is not renamed into place; a reader leaves out a broken last record.

    Args:
        folder: Where the event file goes; made if it does not exist.

    Raises:
        MachineError: The tensorboard package is missing, or `folder` cannot be written;
            the returned function raises it too.
    """
    writer_class = require_tensorboard()
    with _writing(folder):
        writer = writer_class(str(folder))

    def write_epoch(row: Mapping[str, float]) -> None:
        with _writing(folder):
            for name, value in row.items():
                if name != "epoch":
                    writer.add_scalar(name, value, int(row["epoch"]))
            writer.flush()

    return write_epoch


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusal into a MachineError about `folder`."""
    try:
        yield
    except OSError as error:
        raise MachineError(
            str(folder),
            f"cannot be written ({error.strerror or error})",
            "a writable folder with free space was expected",
            "Free some space or choose another folder",
        ) from error
