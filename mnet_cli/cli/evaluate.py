"""`mnet eval`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mnet_cli.cli import console
from mnet_cli.cli.options import (
    BatchSizeOption,
    CheckpointOption,
    DeviceOption,
    FastDecodeOption,
    RayOption,
)
from mnet_cli.errors import DataError, RefusedError, UsageError
from mnet_cli.system.hashing import content_sha256
from mnet_cli.system.text import listing, readable
from mnet_cli.system.urls import refuse_credentials

if TYPE_CHECKING:
    from mnet_cli.inference.evaluate import Evaluation

WRONG_LISTED = 20  # wrong files on the screen; --json lists all
WEAKEST_LISTED = 20  # classes on the screen where there are too many for a matrix; --json lists all
MAX_JSON_CLASSES = 100  # whose confusion matrix --json gives: 10,000 lines


def evaluate(
    path: Annotated[
        str | None,
        typer.Argument(
            help="Labelled images: a data set of any kind, or a URL of one.",
            show_default="the recipe's",
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    data: Annotated[
        str | None,
        typer.Option(help="The same as PATH."),
    ] = None,
    split: Annotated[
        Literal["train", "val", "test"] | None,
        typer.Option(help="Which split.", show_default="val, or all of --data"),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit with 6 if top-1 is below this share."),
    ] = None,
    batch_size: BatchSizeOption = 8,
    fast_decode: FastDecodeOption = False,
    device: DeviceOption = "auto",
    ray: RayOption = None,
) -> None:
    """Evaluate a trained model on labelled images and list the wrong predictions."""
    for place in (path, data):
        refuse_credentials(place or "", "mnet eval")
    if path and data:
        raise UsageError(f"--data {data}", f"given with {path}", next_step="Give one of the two")

    from mnet_cli.inference import evaluate as evaluation
    from mnet_cli.inference.classifier import open_classifier
    from mnet_cli.training.run_directory import latest_run
    from mnet_cli.training.run_images import open_images

    classifier = open_classifier(checkpoint or latest_run(), device)
    if classifier.note:
        console.note(f"note: {classifier.note}")
    with console.bar("checking images") as on_progress:
        images = open_images(classifier, path or data, on_progress)
    console.notes(images.notes)
    chosen = split or ("all" if "all" in images.splits else "val")
    if chosen not in images.splits:
        raise DataError(
            f"--split {chosen}",
            f"{images.root} has no such split",
            next_step=f"Choose from {', '.join(images.splits)}",
        )
    samples = images.splits[chosen]
    with console.bar("evaluating") as on_progress:
        if ray:
            source = classifier.source
            labelled = evaluation.LabelledImages(
                source, content_sha256(source), device, samples, batch_size, fast_decode
            )
            result = evaluation.evaluate_on_cluster(
                labelled, classifier.class_names, ray, on_progress
            )
        else:
            result = evaluation.evaluate(
                classifier.classify,
                classifier.preprocess,
                images.files(chosen),
                samples.labels,
                classifier.class_names,
                batch_size=batch_size,
                fast_decode=fast_decode,
                parallel=classifier.parallel,
                on_progress=on_progress,
            )
    document = {
        "checkpoint": classifier.source,
        "data": readable(images.root),
        "split": chosen,
        "skipped": len(images.skipped),
        **_as_document(result),
    }
    console.show(document, lambda: _show(document, result))
    if min_top1 is not None and result.top1 < min_top1:
        raise RefusedError(
            str(classifier.source),
            f"top-1 is {result.top1:.4f}, below --min-top1 {min_top1:g}",
            next_step="Train longer, or inspect the wrong files above",
        )


def _as_document(result: "Evaluation") -> dict[str, Any]:
    classes = zip(result.class_names, result.scores, strict=True)
    few = len(result.class_names) <= MAX_JSON_CLASSES
    return {
        "images": len(result.labels),
        **result.figures(),
        "top1_interval": list(result.interval),
        "classes_without_images": result.without_images(),
        "classes": {name: vars(score) for name, score in classes},
        "confusion": result.confusion.tolist() if few else None,
        "confused": result.confused(),
        "wrong": [{"path": readable(row.pop("image").where), **row} for row in result.wrong()],
    }


def _show(document: dict[str, Any], result: "Evaluation") -> None:
    percent = console.percent
    low, high = (percent(bound) for bound in result.interval)
    without, total = document["classes_without_images"], len(result.class_names)
    console.line(f"{document['checkpoint']} on {document['data']} ({document['split']})")
    console.line(
        f"top-1 {percent(result.top1)} (95% interval {low} to {high} on {len(result.labels)} "
        f"images)  top-3 {percent(result.top3)}  macro-F1 {percent(result.macro_f1)}"
        f"{console.of_classes(total - len(without), total)}"
    )
    console.line(f"loss {result.loss:.4f}  calibration error {percent(result.calibration_error)}")
    if without:
        console.line(f"no images of {listing(without)}: left out of macro-F1")
    _show_classes(result)
    _show_confusion(result)
    _show_wrong(document["wrong"])


def _show_classes(result: "Evaluation") -> None:
    """Print the scores of every class, or of those with the lowest F1 if there are many."""
    from mnet_cli.inference.evaluate import MAX_MATRIX_CLASSES

    percent, total = console.percent, len(result.class_names)
    rows, title = list(zip(result.class_names, result.scores, strict=True)), ""
    if total > MAX_MATRIX_CLASSES:
        rows = result.weakest()[:WEAKEST_LISTED]
        title = f"the {len(rows)} classes of lowest F1; {total - len(rows):,} are not shown"
    console.table(
        ("class", ">precision", ">recall", ">F1", ">images"),
        [
            (name, percent(s.precision), percent(s.recall), percent(s.f1), s.support)
            for name, s in rows
        ],
        title=title,
    )


def _show_confusion(result: "Evaluation") -> None:
    """Print the confusion matrix, or the most confused pairs if it is too wide."""
    from mnet_cli.inference.evaluate import MAX_MATRIX_CLASSES, MAX_PAIRS

    names = result.class_names
    if len(names) <= MAX_MATRIX_CLASSES:
        columns = ("true \\ predicted", *(f">{name}" for name in names))
        rows = [
            (name, *(count or "·" for count in counts))
            for name, counts in zip(names, result.confusion.tolist(), strict=True)
        ]
        if console.fits(columns, rows):
            console.table(columns, rows)
            return
        console.line("The confusion matrix is wider than this terminal; --json gives it.")
    pairs = result.confused()
    shown, hidden = pairs[:MAX_PAIRS], len(pairs[MAX_PAIRS:])
    if shown:
        console.table(
            ("true", "predicted", ">images", ">of the class"),
            [
                (pair["true"], pair["predicted"], pair["count"], console.percent(pair["share"]))
                for pair in shown
            ],
            title=f"the {len(shown)} most confused pairs"
            + (f"; {hidden:,} are not shown" if hidden else ""),
        )


def _show_wrong(wrong: list[dict[str, Any]]) -> None:
    """Print the wrong files of which the model was most confident."""
    if wrong:
        console.table(
            ("wrong file", "true", "predicted", ">prob", ">true prob"),
            [
                (w["path"], w["true"], w["predicted"], f"{w['prob']:.2f}", f"{w['true_prob']:.2f}")
                for w in wrong[:WRONG_LISTED]
            ],
            title=f"{len(wrong)} wrong, the most confident first"
            + (f"; the first {WRONG_LISTED} of them" if len(wrong) > WRONG_LISTED else ""),
        )
