"""`mnet predict`."""

import csv
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mnet_cli.cli import console
from mnet_cli.cli.options import (
    BatchSizeOption,
    CheckpointOption,
    DeviceOption,
    FastDecodeOption,
    RayOption,
)
from mnet_cli.errors import DataError, MachineError, UsageError
from mnet_cli.system.text import printable, readable
from mnet_cli.system.urls import is_url, without_credentials

if TYPE_CHECKING:
    from mnet_cli.inference.predict import Prediction
    from mnet_cli.inference.rows import Written

Write = Callable[["Prediction"], None]
STDIN = "-"


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(help="Files, folders, data sets, globs, or - for a list on stdin."),
    ],
    checkpoint: CheckpointOption = None,
    topk: Annotated[
        int | None,
        typer.Option(min=1, help="Show the K most probable classes.", show_default="all"),
    ] = None,
    reject: Annotated[
        float, typer.Option(min=0, max=1, help='Answer "unknown" below this probability.')
    ] = 0.0,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write the image with its prediction to this PNG file.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Open the picture of --plot.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Let --plot replace an existing file.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Write Parquet files into this folder; the same command adds what is missing.",
            show_default="print",
        ),
    ] = None,
    batch_size: BatchSizeOption = 8,
    fast_decode: FastDecodeOption = False,
    device: DeviceOption = "auto",
    ray: RayOption = None,
) -> None:
    """Classify one or many photographs."""
    if out:
        given = {"--csv": as_csv, "--topk": topk, "--plot": plot, "--force": force}
        for option in (name for name, value in given.items() if value):
            raise UsageError(option, "has no effect with --out, which writes all probabilities")
        check_out(out, paths)
    if ray and not out:
        raise UsageError("--ray", "given without --out", next_step='Add "--out DIR"')
    if as_csv and console.settings.json:
        raise UsageError("--csv", "cannot be used with --json", next_step="Use one of the two")
    if as_csv and topk:
        raise UsageError("--topk", "has no effect with --csv, which has a column for each class")
    if show and not plot:
        raise UsageError("--show", "no picture to open", next_step='Add "--plot FILE.png"')
    if plot and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot}", "not a PNG file", next_step="End its name in .png")
    if plot and not plot.parent.is_dir():
        raise UsageError(
            f"--plot {plot}",
            f"the folder {plot.parent} does not exist",
            next_step="Make it, or choose another",
        )
    if plot and plot.exists() and not force:
        raise UsageError(
            f"--plot {plot}", "the file exists", next_step="Choose a new file, or add --force"
        )

    from mnet_cli.inference import predict as prediction
    from mnet_cli.inference.classifier import open_classifier
    from mnet_cli.training.run_directory import latest_run

    prediction.refuse_unmatched(path for path in paths if path != STDIN)
    images = prediction.find_images(arguments(paths))
    if out:
        from mnet_cli.inference.rows import PredictionRows, write_parts

        source = PredictionRows(checkpoint or latest_run(), device, reject, batch_size, fast_decode)
        with console.bar("predicting") as on_progress:
            written = write_parts(source, images, Path(out), ray, on_progress)
        show_written(out, written)
        return
    first = list(islice(images, 2))
    one = len(first) == 1
    if plot and not one:
        raise UsageError(
            f"--plot {plot}",
            f"cannot show {len(first)} images or more",
            next_step="Give one image",
        )
    classifier = open_classifier(checkpoint or latest_run(), device)
    if classifier.note:
        console.note(f"note: {classifier.note}")
    names = classifier.class_names
    count = topk or len(names)
    if as_csv:
        write = _csv_writer(names, reject)
    elif console.settings.json:
        write = _json_writer(names, count, reject)
    else:
        write = _line_writer(names, count if one or topk else 0, reject, one=one)
    failures = 0
    for answer in prediction.predict(
        classifier.classify,
        classifier.preprocess,
        chain(first, images),
        batch_size=batch_size,
        fast_decode=fast_decode,
        parallel=classifier.parallel,
    ):
        write(answer)
        failures += answer.error is not None
        if plot and not answer.error:
            _plot(answer, plot, names, count, reject)
            if show:
                _open(plot)
    if failures:
        raise DataError(
            answer.name if one else "predict",
            f"no prediction for {failures} path{'s' * (failures > 1)}",
            next_step="See the records above for the reasons",
        )


def arguments(paths: list[str]) -> Iterator[str]:
    """The paths of the command line; `-` stands for the lines of stdin, however they end."""
    for path in paths:
        if path != STDIN:
            yield path
        elif sys.stdin is None:
            raise MachineError(
                STDIN, "stdin is closed", next_step="Pipe a list of paths in, or name the images"
            )
        else:
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())


def check_out(out: str, paths: Sequence[str]) -> None:
    """Refuse a place for answers that is a URL, or inside a folder of the images.

    Raises:
        UsageError: It is.
    """
    if is_url(out):
        raise UsageError(
            f"--out {without_credentials(out)}",
            "answers cannot be written to a URL",
            next_step="Write them to a folder, then copy that with the tool of your store",
        )
    for path in paths:
        is_local = path != STDIN and not is_url(path)
        if is_local and Path(out).resolve().is_relative_to(Path(path).resolve()):
            raise UsageError(f"--out {out}", f"is inside {path}", next_step="Choose another place")


def show_written(out: str, written: "Written") -> None:
    """Print what was written into `out`.

    Raises:
        DataError: There are errors among the rows, or arguments that gave no image.
    """
    for unusable in written.unusable:
        console.note(unusable)
    failures = written.errors + len(written.unusable)
    console.show(
        {"out": out, **asdict(written)},
        lambda: console.line(
            f"{out}: {written.images:,} images, {written.fresh:,} computed now, "
            f"rows with an error: {written.errors:,}"
        ),
    )
    if failures:
        raise DataError(
            out,
            f"no answer for {failures} path{'s' * (failures > 1)}",
            next_step="See the column error and the lines above for the reasons",
        )


def _line_writer(names: tuple[str, ...], count: int, reject: float, *, one: bool) -> Write:
    """Plain lines: one for each class of one image, or one for each of many images.

    Args:
        names: Of the classes.
        count: Classes to show; 0 for the answer alone.
        reject: The probability below which the answer is `unknown`.
        one: There is one image.
    """

    def classes(answer: "Prediction") -> Iterator[str]:
        if answer.answer(names, reject) != answer.ranked(names, 1)[0][0]:
            yield f"class: {'unknown':10} (below {reject:g})"
        for name, probability in answer.ranked(names, count):
            yield f"class: {name:10} prob: {probability:.3f}"

    def write(answer: "Prediction") -> None:
        if answer.error:
            console.line(f"{answer.name}  error: {answer.error.found}")
        elif one:
            for line in classes(answer):
                console.line(line)
        elif count:
            console.line("  ".join([answer.name, *classes(answer)]))
        else:
            best = answer.ranked(names, 1)[0][1]
            console.line(
                f"{answer.name}  class: {answer.answer(names, reject):10} prob: {best:.3f}"
            )

    return write


def _json_writer(names: tuple[str, ...], count: int, reject: float) -> Write:
    """One JSON document a line for each image."""

    def write(answer: "Prediction") -> None:
        record: dict[str, Any] = {"path": readable(answer.name)}
        if answer.error:
            record["error"] = answer.error.found
        else:
            ranked = answer.ranked(names, count)
            record["class"] = answer.answer(names, reject)
            record["prob"] = ranked[0][1]
            record["probs"] = dict(ranked)
        console.json_line(record)

    return write


def _csv_writer(names: tuple[str, ...], reject: float) -> Write:
    """A header, then one row an image with the probability of every class."""
    shown = tuple(map(printable, names))
    _csv_row("path", "class", "prob", *shown, "error")

    def write(answer: "Prediction") -> None:
        path = printable(answer.name)
        if answer.error:
            _csv_row(path, "", "", *("" for _ in shown), printable(answer.error.found))
        else:
            best = answer.ranked(shown, 1)[0][1]
            probabilities = (f"{probability:.6g}" for probability in answer.probabilities)
            _csv_row(path, answer.answer(shown, reject), f"{best:.6g}", *probabilities, "")

    return write


def _csv_row(*cells: str) -> None:
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow(cells)
    console.text(row.getvalue())


def _plot(
    answer: "Prediction", path: Path, names: tuple[str, ...], count: int, reject: float
) -> None:
    from mnet_cli.data.images import read_image
    from mnet_cli.report.picture import draw_prediction, save_picture

    ranked = answer.ranked(names, count)
    title = f"class: {answer.answer(names, reject)}  prob: {ranked[0][1]:.3f}"
    assert answer.image is not None, "an answer without an error has an image"
    save_picture(draw_prediction(read_image(answer.image), title, ranked), path)
    console.note(f"picture: {path}")


def _open(picture: Path) -> None:
    """Open a picture in the desktop's viewer, or say that there is none."""
    import webbrowser  # picks xdg-open, open or os.startfile

    desktop = sys.platform in ("win32", "darwin") or {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}
    if not (desktop and webbrowser.open(picture.absolute().as_uri())):
        console.note(f"note: no display to open the picture on: open {picture} yourself")
