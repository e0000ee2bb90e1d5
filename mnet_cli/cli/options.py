"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        "-c",
        help="A checkpoint, run directory or exported file.",
        show_default="runs/latest",
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda or mps; auto takes the fastest there is.")
]
BatchSizeOption = Annotated[
    int, typer.Option(min=1, max=4096, help="Images that each core takes at a time.")
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
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in train.epochs=3."),
]
