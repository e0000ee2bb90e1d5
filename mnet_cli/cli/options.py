"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer


def run_behind(path: Path | None) -> Path | None:
    """Resolve runs/latest where it is a text file instead of a link."""
    from mnet_cli.training.run_directory import follow_latest

    return path and follow_latest(path)


CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        "-c",
        help="A checkpoint, run directory or exported file.",
        show_default="runs/latest",
        callback=run_behind,
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda or mps; auto takes the fastest that is available.")
]
BatchSizeOption = Annotated[
    int, typer.Option(min=1, max=4096, help="Images per forward pass, on each core or on the GPU.")
]
FastDecodeOption = Annotated[
    bool,
    typer.Option(
        "--fast-decode",
        help="Decode large JPEGs at a half or a quarter of their size; pixels differ a little.",
    ),
]
OverrideOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the recipe, as in train.epochs=3."
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Compute on a Ray cluster: its address, auto for the running one, or local.",
        show_default="on this machine",
    ),
]
