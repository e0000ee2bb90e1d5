"""`mnet embed`."""

from pathlib import Path
from typing import Annotated

import typer

from mnet_cli.cli import console
from mnet_cli.cli.options import (
    BatchSizeOption,
    CheckpointOption,
    DeviceOption,
    FastDecodeOption,
    RayOption,
)
from mnet_cli.cli.predict import STDIN, arguments, check_out, show_written
from mnet_cli.errors import UsageError

ARRAY = ".npy"


def embed(
    paths: Annotated[
        list[str],
        typer.Argument(help="Files, folders, data sets, globs, or - for a list on stdin."),
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR|FILE.npy",
            help="A folder for Parquet files, or a .npy file with FILE.paths.csv beside it.",
        ),
    ],
    checkpoint: CheckpointOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing .npy file.")] = False,
    batch_size: BatchSizeOption = 8,
    fast_decode: FastDecodeOption = False,
    device: DeviceOption = "auto",
    ray: RayOption = None,
) -> None:
    """Write the features of photographs, a vector each, for search and clustering."""
    is_array = out.lower().endswith(ARRAY)
    if force and not is_array:
        raise UsageError("--force", f"has no effect without --out FILE{ARRAY}")
    check_out(out, [] if is_array else paths)

    from mnet_cli.inference import predict
    from mnet_cli.inference.rows import FeatureRows, paths_file, write_array, write_parts
    from mnet_cli.training.run_directory import latest_run

    for path in (Path(out), paths_file(Path(out))) if is_array and not force else ():
        if path.exists():
            advice = "Choose a new file, or add --force"
            raise UsageError(f"--out {path}", "the file exists", next_step=advice)
    given = {Path(path).resolve() for path in paths}
    if is_array and paths_file(Path(out)).resolve() in given:
        advice = "Choose another name for the array"
        raise UsageError(f"--out {out}", f"would replace {paths_file(Path(out))}", next_step=advice)
    predict.refuse_unmatched(path for path in paths if path != STDIN)
    images = predict.find_images(arguments(paths))
    source = FeatureRows(checkpoint or latest_run(), device, batch_size, fast_decode)
    with console.bar("features") as on_progress:
        write = write_array if is_array else write_parts
        written = write(source, images, Path(out), ray, on_progress)
    show_written(out, written)
