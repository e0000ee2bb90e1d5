"""`mnet bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mnet_cli.cli import console


def bench(
    files: Annotated[
        list[Path], typer.Argument(help="Checkpoints, run directories or exported files.")
    ],
    rounds: Annotated[
        int, typer.Option(min=1, max=100_000, help="Calls of each with one image.")
    ] = 100,
) -> None:
    """Time checkpoints and exported files against each other, decoding not included."""
    from mnet_cli.inference.classifier import open_classifier
    from mnet_cli.inference.timing import time_classifiers
    from mnet_cli.system.machine import BATCH, cores

    classifiers = {str(file): open_classifier(file, "cpu") for file in dict.fromkeys(files)}
    with console.bar("timing", unit="round") as on_progress:
        timings = time_classifiers(classifiers, rounds, on_progress)
    document: dict[str, Any] = {
        "threads": {"latency": 1, "throughput": cores()},
        "batch": {"latency": 1, "throughput": BATCH},
        "rounds": rounds,
        "files": [{"file": name, **vars(timing)} for name, timing in timings.items()],
    }
    console.show(document, lambda: _show(document))


def _show(document: dict[str, Any]) -> None:
    console.table(
        ("file", ">median ms", ">95% ms", ">images/s"),
        [
            (
                row["file"],
                f"{row['median_ms']:.2f}",
                f"{row['p95_ms']:.2f}",
                f"{row['images_per_second']:,.0f}",
            )
            for row in document["files"]
        ],
    )
    threads, batch = document["threads"], document["batch"]
    console.line(
        f"milliseconds: one image on one thread, {document['rounds']} calls in turns; images/s: "
        f"batches of {batch['throughput']} on {threads['throughput']} threads"
    )
