"""A run as one HTML file without scripts or links; it contains all pictures."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mnet_cli.data.image_files import ImageFile
from mnet_cli.data.images import read_image
from mnet_cli.errors import DataError
from mnet_cli.inference.evaluate import MAX_MATRIX_CLASSES, MAX_PAIRS, Evaluation
from mnet_cli.system.atomic import atomic_write
from mnet_cli.system.text import listing, printable
from mnet_cli.training.events import COLUMNS

MAX_WRONG = 24
MAX_DOTTED_EPOCHS = 40  # beyond that, dots hide the line
THUMBNAIL_SIZE = (320, 320)  # twice the shown size, for dense screens

CURVES = (  # title, unit of the y axis, (epoch key, legend)
    ("Loss", "cross-entropy", (("train_loss", "train"), ("val_loss", "val"))),
    ("Validation scores", "share", (("top1", "top-1"), ("macro_f1", "macro F1"))),
)


@dataclass(frozen=True)
class WrongImage:
    """An image that the model got wrong.

    Attributes:
        name: The path to show, usually relative to the data set.
        file: The image to make a thumbnail of; if it cannot be read, none is shown.
        true_class: Name of its class.
        predicted_class: Name of the class that it was given.
        probability: Softmax probability of the predicted class, in 0..1.
    """

    name: str
    file: ImageFile
    true_class: str
    predicted_class: str
    probability: float


@dataclass(frozen=True)
class Frame:
    """A chart's drawing area in SVG units; the plot lies between the four edges."""

    width: int = 480
    height: int = 250
    left: int = 48
    right: int = 468
    top: int = 28
    bottom: int = 214


@dataclass(frozen=True)
class Series:
    """One line of a chart: unbroken runs of (x, y) in SVG units, and dots with a caption."""

    name: str
    runs: list[list[tuple[float, float]]]
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """A line chart over epochs; ticks are (position in SVG units, label)."""

    title: str
    unit: str
    series: list[Series]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    best_x: float | None


def write_report(
    path: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    epochs: Sequence[Mapping[str, float]],
    evaluation: Evaluation,
    wrong: Sequence[WrongImage] = (),
    next_commands: Sequence[str] = (),
    best_epoch: int | None = None,
    recipe: str = "",
    environment: Sequence[tuple[str, str]] = (),
) -> None:
    """Write a run's results as one self-contained HTML file.

    All text is escaped: markup stays text, control codes are spelled out.

    Args:
        path: The file to write; its folder must exist.
        title: The page's heading.
        facts: (name, value) pairs to show under the headline metrics.
        epochs: A row an epoch in order, with the names of `COLUMNS` as keys; a missing or
            non-finite value leaves a gap. Without rows there are no curves.
        evaluation: On the validation images.
        wrong: Wrong images; the `MAX_WRONG` of highest probability are shown.
        next_commands: Commands to try next, one a line.
        best_epoch: The epoch whose checkpoint the results are of.
        recipe: The resolved recipe as text.
        environment: (name, value) pairs about versions and machine.

    Raises:
        MachineError: The file cannot be written.
    """
    most_confident = sorted(wrong, key=lambda image: -image.probability)[:MAX_WRONG]
    content = (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            facts=facts,
            **_headline(evaluation),
            **_learning_curves(epochs, best_epoch),
            **_class_tables(evaluation),
            wrong=[(image, _thumbnail(image.file)) for image in most_confident],
            next_commands=next_commands,
            recipe_lines=recipe.rstrip().split("\n") if recipe else [],
            environment=environment,
        )
    )
    with atomic_write(path, "w") as file:
        file.write(content)


def _environment() -> Environment:
    """Template settings under which no expression can reach the page unescaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        # Markup is what the template's own macros return; all other text is data.
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    return environment


def _headline(evaluation: Evaluation) -> dict[str, Any]:
    """Top-1 with its 95% interval, and macro F1 with the classes that it is over."""
    without = evaluation.without_images()
    return {
        "top1": evaluation.top1,
        "interval": evaluation.interval,
        "macro_f1": evaluation.macro_f1,
        "correct": int((evaluation.predictions.classes == evaluation.labels).sum()),
        "total": len(evaluation.labels),
        "scored": len(evaluation.class_names) - len(without),
        "without_images": listing(without) if without else "",
    }


def _learning_curves(
    epochs: Sequence[Mapping[str, float]], best_epoch: int | None
) -> dict[str, Any]:
    """The charts and the table of every epoch."""
    return {
        "best_epoch": best_epoch,
        "frame": Frame(),
        "charts": [_chart(*curve, epochs, best_epoch) for curve in CURVES] if epochs else [],
        "epoch_headings": [column.title for column in COLUMNS],
        "epoch_rows": [
            [
                column.form.format(row[column.name]) if column.name in row else "-"
                for column in COLUMNS
            ]
            for row in epochs
        ],
    }


def _class_tables(evaluation: Evaluation) -> dict[str, Any]:
    """Few classes: the matrix, in class order. Many: the worst pairs and classes first."""
    names = evaluation.class_names
    if len(names) <= MAX_MATRIX_CLASSES:
        matrix, pairs = _heat(evaluation.confusion), []
        rows = list(zip(names, evaluation.scores, strict=True))
    else:
        matrix, pairs = None, evaluation.confused()[:MAX_PAIRS]
        rows = evaluation.weakest()
    return {"class_names": names, "matrix": matrix, "pairs": pairs, "score_rows": rows}


def _chart(
    title: str,
    unit: str,
    keys: Sequence[tuple[str, str]],
    epochs: Sequence[Mapping[str, float]],
    best_epoch: int | None,
) -> Chart:
    """Lay out one chart of the epoch values named by `keys`."""
    frame = Frame()
    first, last = int(epochs[0]["epoch"]), int(epochs[-1]["epoch"])
    x_low, x_high = (first, last) if first < last else (first - 0.5, first + 0.5)
    values = [row.get(key, math.nan) for row in epochs for key, _ in keys]
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    y_ticks = _ticks(min(finite), max(finite), 5)
    x_at = _scale(x_low, x_high, frame.left, frame.right)
    y_at = _scale(y_ticks[0][0], y_ticks[-1][0], frame.bottom, frame.top)
    return Chart(
        title=title,
        unit=unit,
        series=[_series(epochs, key, name, best_epoch, x_at, y_at) for key, name in keys],
        x_ticks=[
            (x_at(tick), f"{tick:.0f}")
            for tick, _ in _ticks(first, last, 8)
            if tick in range(first, last + 1)
        ],
        y_ticks=[(y_at(tick), label) for tick, label in y_ticks],
        best_x=None if best_epoch is None else x_at(best_epoch),
    )


def _series(
    epochs: Sequence[Mapping[str, float]],
    key: str,
    name: str,
    best_epoch: int | None,
    x_at: Callable[[float], float],
    y_at: Callable[[float], float],
) -> Series:
    """The line of one epoch value; what is missing or not finite breaks it."""
    runs: list[list[tuple[float, float]]] = [[]]
    dots = []
    for row in epochs:
        value = row.get(key, math.nan)
        if math.isfinite(value):
            point = x_at(row["epoch"]), y_at(value)
            runs[-1].append(point)
            if len(epochs) <= MAX_DOTTED_EPOCHS or row["epoch"] == best_epoch:
                dots.append((*point, f"{name} {value:.4g}, epoch {row['epoch']:.0f}"))
        elif runs[-1]:
            runs.append([])
    return Series(name, runs, dots)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The straight map of low..high onto start..end, in tenths of an SVG unit."""
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def _ticks(low: float, high: float, intervals: int) -> list[tuple[float, str]]:
    """Round numbers that span low..high, with labels of equal precision.

    The step is 1, 2 or 5 times a power of ten; there are about `intervals` of them.
    """
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):
        low, high = low - abs(low) / 10 - 0.01, high + abs(high) / 10 + 0.01
    least = (high - low) / intervals
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    form = f".{max(0, -math.floor(math.log10(step)))}f" if high < 1e5 else ".3g"
    ticks = [n * step for n in range(math.floor(low / step), math.ceil(high / step) + 1)]
    return [(tick, f"{tick:{form}}") for tick in ticks]


def _heat(confusion: np.ndarray) -> list[list[tuple[int, float]]]:
    """Counts with their share of the row (the true class), in 0..1."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    return [
        list(zip(counts, row, strict=True))
        for counts, row in zip(confusion.tolist(), shares.tolist(), strict=True)
    ]


def _thumbnail(file: ImageFile) -> str | None:
    """A small JPEG as base64; None if the image cannot be read."""
    try:
        image = read_image(file)
    except DataError:
        return None
    image.thumbnail(THUMBNAIL_SIZE)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return base64.b64encode(content.getvalue()).decode("ascii")
