"""The only room that prints: results on stdout, everything else on stderr."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnet_cli.errors import MnetError
from mnet_cli.text import printable, readable

if TYPE_CHECKING:
    from rich.table import Table

NOTES = 10  # lines of one kind
UNLIMITED = 1_000_000  # columns, to find out how wide a table is


@dataclass
class Settings:
    """What the options that every command has ask for."""

    json: bool = False
    quiet: bool = False
    traceback: bool = False


settings = Settings()


def line(text: object = "") -> None:
    """Print one line of a result."""
    sys.stdout.write(printable(str(text)) + "\n")


def text(content: str) -> None:
    """Print text of several lines, which mnet made itself, as a result."""
    sys.stdout.write(content)


def note(text: object) -> None:
    """Print one line of news on stderr, unless `--quiet`."""
    if settings.quiet:
        return
    with _above_bars():
        sys.stderr.write(printable(str(text)) + "\n")


def notes(texts: Sequence[str]) -> None:
    """Print the first of many lines of news, and how many more there are."""
    for content in texts[:NOTES]:
        note(f"note: {content}")
    if len(texts) > NOTES:
        note(f"note: … and {len(texts) - NOTES} more like these")


def error(problem: MnetError) -> None:
    """Print an error: its details, then the one line that says it all."""
    for detail in problem.details:
        sys.stderr.write(printable(detail) + "\n")
    sys.stderr.write(f"mnet: error: {printable(str(problem))}\n")


def document(content: Any) -> None:
    """Print one JSON document as a result."""
    sys.stdout.write(json.dumps(content, indent=2, default=_plain_value) + "\n")


def json_line(content: Any) -> None:
    """Print one JSON document on one line as a result."""
    sys.stdout.write(json.dumps(content, default=_plain_value) + "\n")


def show(content: Any, render: Callable[[], None]) -> None:
    """Print a result: `content` as JSON if asked for, else whatever `render` prints."""
    if settings.json:
        document(content)
    else:
        render()


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    news: bool = False,
) -> None:
    """Print a table; columns whose name starts with `>` are set to the right.

    Args:
        columns: The header.
        rows: The cells; numbers as the caller formatted them.
        title: Above the table.
        news: Print on stderr and respect `--quiet`: the table is no result.
    """
    if news and settings.quiet:
        return
    from rich.console import Console

    stream = sys.stderr if news else sys.stdout
    drawn = _draw(columns, rows, title)
    width = None if stream.isatty() else _width(drawn)
    with _above_bars():
        Console(file=stream, width=width, highlight=False).print(drawn)


def fits(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bool:
    """Whether `table` can print on stdout without breaking a cell: always off a terminal."""
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
    """Columns that a table takes with no cell broken."""
    from rich.console import Console

    return Console(width=UNLIMITED).measure(drawn).maximum


@contextmanager
def bar(title: str, unit: str = "image") -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr; yields `on_progress(done, total)`.

    It appears with the first step, goes with the last, and comes back for another round.
    There is none where stderr is no terminal, with NO_COLOR, or with `--quiet`.
    """
    if settings.quiet or not sys.stderr.isatty() or "NO_COLOR" in os.environ:
        yield lambda done, total: None
        return
    from tqdm import tqdm

    drawn: tqdm[Any] | None = None

    def advance(done: int, total: int) -> None:
        nonlocal drawn
        if drawn is None:
            scale = unit == "B"
            drawn = tqdm(
                desc=title,
                unit=unit,
                total=total,
                unit_scale=scale,
                leave=False,
                dynamic_ncols=True,
            )
        drawn.update(done - drawn.n)
        if done >= total:
            drawn.close()
            drawn = None

    try:
        yield advance
    finally:
        if drawn is not None:
            drawn.close()


def _above_bars() -> AbstractContextManager[None]:
    """Take the bars that are on the screen, if any, out of the way of what is written."""
    if "tqdm" not in sys.modules:
        return nullcontext()
    from tqdm import tqdm

    return tqdm.external_write_mode(file=sys.stderr)


def discard_output() -> None:
    """Send the rest of stdout nowhere: its reader has left, and that is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def percent(share: float) -> str:
    """A share in 0..1 as a percentage with one decimal."""
    return f"{100 * share:.1f}%"


def of_classes(scored: int, total: int) -> str:
    """What a mean over classes is over, where it is not all of them: ` over 4 of 5 classes`."""
    return f" over {scored:,} of {total:,} classes" if scored < total else ""


def counts(values: Mapping[str, int]) -> str:
    """Named numbers as a phrase: `700 train, 200 val`."""
    return ", ".join(f"{number:,} {name}" for name, number in values.items())


def _plain_value(value: object) -> object:
    if isinstance(value, Path):
        return readable(str(value))
    raise TypeError(f"{type(value).__name__} is no plain value")
