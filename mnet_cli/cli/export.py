"""`mnet export`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mnet_cli.cli import console
from mnet_cli.cli.options import run_behind
from mnet_cli.errors import RefusedError, UsageError
from mnet_cli.system.plugins import FORMATS

if TYPE_CHECKING:
    from mnet_cli.export.pipeline import Exported
    from mnet_cli.inference.classifier import Classifier
    from mnet_cli.inference.timing import Timing

ROUNDS = 50  # calls of each file that the table's milliseconds come from


def export(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="A run directory or checkpoint.", show_default="runs/latest", callback=run_behind
        ),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help=f"{', '.join(FORMATS.names())}; or several, with commas.",
        ),
    ] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit integers, calibrated on training photographs.")
    ] = False,
    half: Annotated[
        bool,
        typer.Option("--half", help="Half precision: half the size; slower on most CPUs."),
    ] = False,
    bake: Annotated[
        bool,
        typer.Option("--bake", help="Take uint8 pixels and give probabilities."),
    ] = False,
    batch: Annotated[
        int,
        typer.Option(min=0, max=4096, help="Number of images in each call; 0 for any number."),
    ] = 0,
    calibration: Annotated[
        int | None,
        typer.Option(
            min=1, max=5_000, help="Photographs that --int8 calibrates on.", show_default="200"
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="How much top-1 may fall with --int8; 0.01 is one percentage point.",
            show_default="0.01",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled images that outputs are compared on.", show_default="the recipe's"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder for the files.", show_default="the checkpoint's"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Write files for other runtimes, compared with the checkpoint on validation photographs."""
    if int8 and half:
        raise UsageError("--int8", "given with --half", next_step="Choose one of the two")
    for option, value in (("--calibration", calibration), ("--max-drop", max_drop)):
        if value is not None and not int8:
            raise UsageError(option, "no effect without --int8")

    from mnet_cli.export import pipeline
    from mnet_cli.formats.checkpoint import load_checkpoint
    from mnet_cli.inference.classifier import open_classifier
    from mnet_cli.system.atomic import write_json
    from mnet_cli.training.run_directory import latest_run
    from mnet_cli.training.run_images import open_images

    where = run or latest_run()
    source = where / "best.pt" if where.is_dir() else where
    checkpoint = load_checkpoint(source)
    plan = pipeline.Plan(
        formats=list(dict.fromkeys(name.strip() for name in formats.split(","))),
        precision="int8" if int8 else "float16" if half else "float32",
        bake=bake,
        batch=batch,
        calibration=200 if calibration is None else calibration,
        max_drop=0.01 if max_drop is None else max_drop,
        out=out or source.parent,
        force=force,
    )
    pipeline.check_plan(checkpoint, plan)  # before a minute is spent
    reference = open_classifier(source, "cpu")
    with console.bar("checking images") as on_progress:
        images = open_images(reference, str(data) if data else None, on_progress)
    console.notes(images.notes)
    results = []
    for result in pipeline.export(checkpoint, source, images, plan, console.note):
        results.append(result)
        for setting, reason in result.tried:
            console.note(f"note: {result.format}, {setting}: {reason}")
    document = _document(source, results, _time(reference, results))
    write_json(plan.out / "export.json", _with_earlier(plan.out / "export.json", document))
    console.show(document, lambda: _show(document))
    refused = [result for result in results if result.refused]
    if refused:
        raise RefusedError(
            ", ".join(f"{result.format} {result.precision}" for result in refused),
            refused[0].refused,
            next_step="No file was written or replaced",
        )


def _time(reference: "Classifier", results: "Sequence[Exported]") -> "dict[str, Timing]":
    """Time the checkpoint and every file that runs here, in turns."""
    from mnet_cli.inference.classifier import open_classifier
    from mnet_cli.inference.timing import time_classifiers

    classifiers = {"checkpoint": reference} | {
        str(result.path): open_classifier(result.path, "cpu")
        for result in results
        if result.path and result.report
    }
    with console.bar("timing", unit="round") as on_progress:
        return time_classifiers(classifiers, ROUNDS, on_progress)


def _document(
    source: Path, results: "Sequence[Exported]", timings: "dict[str, Timing]"
) -> dict[str, Any]:
    """The result; files are named as they stand beside `export.json`."""
    rows = []
    for result in results:
        row: dict[str, Any] = {
            "format": result.format,
            "precision": result.precision,
            "setting": result.setting,
            "file": result.path.name if result.path else None,
            "bytes": result.size or None,
            **(result.report.to_dict() if result.report else {}),
            "note": result.note or None,
            "refused": result.refused or None,
            "tried": [dict(zip(("setting", "refused"), one, strict=True)) for one in result.tried],
        }
        if str(result.path) in timings:
            row |= vars(timings[str(result.path)])
        rows.append(row)
    return {
        "checkpoint": {
            "file": source.name,
            "runs_by": "ONNX Runtime, float32",
            "bytes": source.stat().st_size,
            **vars(timings["checkpoint"]),
        },
        "threads": 1,
        "files": rows,
    }


def _with_earlier(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Add the rows that earlier exports wrote there, of files that are still as they were."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))["files"]
        new = {row["file"] for row in document["files"]} | {None}
        kept = [
            row
            for row in earlier
            if row["file"] not in new and path.with_name(row["file"]).exists()
        ]
    except (OSError, ValueError, KeyError, TypeError):
        kept = []  # none there, or not ours
    return {**document, "files": [*kept, *document["files"]]}


def _show(document: dict[str, Any]) -> None:
    percent, checkpoint = console.percent, document["checkpoint"]
    compared = next((row for row in document["files"] if "reference_top1" in row), None)
    rows: list[tuple[str, ...]] = [
        (
            f"{checkpoint['file']} by ONNX Runtime",
            "float32",
            f"{checkpoint['bytes'] / 1e6:.1f}",
            "",
            "",
            percent(compared["reference_top1"]) if compared else "",
            f"{checkpoint['median_ms']:.1f}",
            "",
        )
    ]
    for row in document["files"]:
        measured = "max_delta" in row
        rows.append(
            (
                row["file"] or f"{row['format']}: refused",
                row["precision"],
                f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else "",
                f"{row['max_delta']:.1e}" if measured else "",
                percent(row["agreement"]) if measured else "",
                percent(row["top1"]) if measured else "",
                f"{row['median_ms']:.1f}" if "median_ms" in row else "",
                ", ".join(filter(None, (row["setting"], row["note"]))),
            )
        )
    columns = ("file", "precision", ">MB", ">Δ logit", ">agreement", ">top-1", ">ms", "setting")
    console.table(columns, rows)
    if compared:
        console.line(
            f"compared on {compared['images']} photographs; milliseconds of one image on one thread"
        )
    for row in document["files"]:
        if row["precision"] != "float32" and "median_ms" in row:
            share = row["median_ms"] / checkpoint["median_ms"]
            faster = f"{1 / share:.1f}x as fast as the checkpoint"
            gain = faster if share < 0.95 else "saves size only, it is not faster here"
            console.line(f"{row['file']}: {gain}")
