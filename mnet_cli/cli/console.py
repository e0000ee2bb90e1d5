"""The only module that prints: results on stdout, everything else on stderr."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mnet_cli.errors import MachineError, MnetError
from mnet_cli.system.text import printable, readable

if TYPE_CHECKING:
    from rich.table import Table
    from tqdm import tqdm

NOTES = 10  # lines of one kind that are shown
UNLIMITED = 1_000_000  # columns, to measure the width of a table


@dataclass
class Settings:
    """How the running command prints.

    Attributes:
        json: Print the result as JSON.
        quiet: Print results and errors only.
        traceback: Show the Python traceback of an error.
        needs_reader: A closed stdout is an error, as in training.
        is_silent: Print nothing at all: another process prints.
    """

    json: bool = False
    quiet: bool = False
    traceback: bool = False
    needs_reader: bool = False
    is_silent: bool = False


settings = Settings()


class OutputClosedError(MachineError):
    """stdout was closed by its reader, as in `mnet … | head`, which is no error of the command."""


def line(content: object = "") -> None:
    """Print one line of a result."""
    text(printable(str(content)) + "\n")


def text(content: str) -> None:
    """Print text of several lines as a result; it must not contain unescaped names.

    Raises:
        OutputClosedError: The reader has closed it.
        MachineError: It cannot be written.
    """
    with _written(sys.stdout):
        sys.stdout.write(content)


def flush() -> None:
    """Write the buffer of stdout; raises as `text` does."""
    with _written(sys.stdout):
        sys.stdout.flush()


def note(content: object) -> None:
    """Print one line on stderr, unless `--quiet`."""
    if not settings.quiet:
        _write_news(printable(str(content)) + "\n")


def notes(texts: Sequence[str]) -> None:
    """Print the first lines of a long list on stderr, and how many more there are."""
    for content in texts[:NOTES]:
        note(f"note: {content}")
    if len(texts) > NOTES:
        note(f"note: … and {len(texts) - NOTES} more like these")


def error(problem: MnetError) -> None:
    """Print an error: its details, then its message on one line."""
    if settings.is_silent:
        return
    lines = [*problem.details, f"mnet: error: {problem}"]
    with suppress(MachineError), _written(sys.stderr):  # closed: only the code is left
        sys.stderr.write("".join(printable(one) + "\n" for one in lines))


def document(content: Any) -> None:
    """Print one JSON document as a result."""
    text(json.dumps(content, indent=2, default=_plain_value) + "\n")


def json_line(content: Any) -> None:
    """Print one JSON document on one line as a result."""
    text(json.dumps(content, default=_plain_value) + "\n")


def show(content: Any, render: Callable[[], None]) -> None:
    """Print a result: `content` as JSON with `--json`, else what `render` prints.

    If the reader closes stdout before the end, the rest is dropped and the command continues,
    because later checks may change its exit code.
    """
    with suppress(OutputClosedError):
        if settings.json:
            document(content)
        else:
            render()
        flush()


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    news: bool = False,
) -> None:
    """Print a table; columns whose name starts with `>` are aligned right.

    Args:
        columns: The header.
        rows: The cells; numbers as the caller formatted them.
        title: Above the table.
        news: Print on stderr, unless `--quiet`: the table is not a result.
    """
    if news and settings.quiet:
        return
    from rich.console import Console

    stream = sys.stderr if news else sys.stdout
    drawn = _draw(columns, rows, title)
    terminal = stream.isatty()
    width = None if terminal else _width(drawn)
    # Not directly to the stream: rich exits the process if a pipe is closed.
    page = io.TextIOWrapper(io.BytesIO(), stream.encoding, errors="backslashreplace")
    Console(file=page, width=width, force_terminal=terminal, highlight=False).print(drawn)
    page.seek(0)
    (_write_news if news else text)(page.read())


def fits(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bool:
    """Whether `table` fits into the terminal without breaking a cell; always true elsewhere."""
    from rich.console import Console

    return not sys.stdout.isatty() or _width(_draw(columns, rows)) <= Console().width


def _draw(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> "Table":
    """Lay out a table; a cell that is too wide is broken into lines, never cut off."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        drawn.add_column(
            Text(printable(name.removeprefix(">"))),
            justify="right" if name[0] == ">" else "left",
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*(Text(printable(str(cell))) for cell in row))
    return drawn


def _width(drawn: "Table") -> int:
    """The width of a table in columns if no cell is broken."""
    from rich.console import Console

    return Console(width=UNLIMITED).measure(drawn).maximum


def has_bars() -> bool:
    """Whether progress bars are shown: on a terminal, without NO_COLOR and `--quiet`."""
    return not settings.quiet and sys.stderr.isatty() and "NO_COLOR" not in os.environ


class Bar:
    """A progress bar on stderr.

    The bar appears at the first step and disappears at the last; it can be used again.

    Args:
        title: What is done.
        unit: What is counted; `B` for bytes.
    """

    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit = title, unit
        self._drawn: tqdm[Any] | None = None

    @property
    def is_shown(self) -> bool:
        """Whether it is on the screen."""
        return self._drawn is not None

    def __call__(self, done: int, total: int, text: str | None = None) -> None:
        """Show that `done` of `total` steps are done; `text` stays until there is another."""
        if not has_bars():
            return
        if self._drawn is None:
            from tqdm import tqdm

            self._drawn = tqdm(
                desc=self.title,
                unit=self.unit,
                total=total,
                unit_scale=self.unit == "B",
                leave=False,
                dynamic_ncols=True,
            )
        if text is not None:
            self._drawn.set_postfix_str(text, refresh=False)
        self._drawn.update(done - self._drawn.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Take it off the screen."""
        if self._drawn is not None:
            self._drawn.close()
            self._drawn = None


@contextmanager
def bar(title: str, unit: str = "image") -> Iterator[Bar]:
    """Show a progress bar while the block runs."""
    shown = Bar(title, unit)
    try:
        yield shown
    finally:
        shown.close()


def _above_bars() -> AbstractContextManager[None]:
    """Clear the progress bars, if any, while something is written."""
    if "tqdm" not in sys.modules:
        return nullcontext()
    from tqdm import tqdm

    return tqdm.external_write_mode(file=sys.stderr)


def lost_stream(stream: TextIO, error: OSError) -> MachineError:
    """The error for a stream that cannot be written; later output is dropped.

    Args:
        stream: stdout or stderr. A closed stderr is an error, unless it is the same pipe as
            stdout (`mnet … 2>&1 | head`).
        error: The error that writing raised.
    """
    closed = isinstance(error, BrokenPipeError)
    shared = os.path.sameopenfile(stream.fileno(), sys.stdout.fileno())
    nowhere = os.open(os.devnull, os.O_WRONLY)
    # Otherwise the interpreter writes again at its exit, and exits with code 120.
    for lost in (stream, sys.stdout) if shared else (stream,):
        os.dup2(nowhere, lost.fileno())
    os.close(nowhere)
    kind = OutputClosedError if closed and shared and not settings.needs_reader else MachineError
    advice = "Send it to a program that reads all of it" if closed else "Free some space"
    return kind(
        "stderr" if stream is sys.stderr else "stdout",
        f"cannot be written ({error.strerror or error})",
        next_step=f"{advice}, or write to another file",
    )


@contextmanager
def _written(stream: TextIO) -> Iterator[None]:
    """Turn the errors of a write to stdout or stderr into MachineErrors."""
    try:
        yield
    except OSError as error:
        raise lost_stream(stream, error) from error


def _write_news(content: str) -> None:
    with _above_bars(), suppress(OutputClosedError), _written(sys.stderr):
        sys.stderr.write(content)


def percent(share: float) -> str:
    """A fraction in 0..1 as a percentage with one decimal."""
    return f"{100 * share:.1f}%"


def of_classes(scored: int, total: int) -> str:
    """Says over how many classes a mean was taken, if not all: ` over 4 of 5 classes`."""
    return f" over {scored:,} of {total:,} classes" if scored < total else ""


def counts(values: Mapping[str, int]) -> str:
    """Named numbers as a phrase: `700 train, 200 val`."""
    return ", ".join(f"{number:,} {name}" for name, number in values.items())


def _plain_value(value: object) -> object:
    if isinstance(value, Path):
        return readable(str(value))
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
