"""`mnet data`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mnet_cli.cli import console
from mnet_cli.errors import DataError, UsageError
from mnet_cli.system.text import readable

if TYPE_CHECKING:
    from mnet_cli.data.audit import Audit, Finding
    from mnet_cli.data.split import SplitCounts

LISTED = 10  # findings of a kind on the screen; --json lists all
NAMED = 4  # images of a finding on the screen

FolderArgument = Annotated[Path, typer.Argument(help="Where to put it.")]
ValOption = Annotated[
    float, typer.Option("--val", min=0.001, max=0.999, help="Share of each class set aside as val.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Another seed gives another set.")]


def check(
    root: Annotated[
        str,
        typer.Argument(
            help="A data set, such as a folder with train/ and val/, or one folder of classes."
        ),
    ],
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with 3 for any finding, not only for serious ones."),
    ] = False,
) -> None:
    """Find bad images, duplicates and problems with the classes; change nothing."""
    from mnet_cli.data.audit import SERIOUS, examine

    with console.bar("checking") as on_progress, console.bar("comparing", "step") as on_comparing:
        audit = examine(root, on_progress, on_comparing)
    document = {
        "root": readable(root),
        "images": audit.images,
        "findings": [
            {"serious": SERIOUS[finding.kind], **asdict(finding)} for finding in audit.findings
        ],
    }
    console.show(document, lambda: _show_audit(audit))
    counted = audit.findings if strict else audit.serious
    if counted:
        raise DataError(
            root,
            f"{len(counted)} finding{'s' * (len(counted) > 1)}, {counted[0].kind} first",
            next_step="Fix what is listed above",
        )


def sample(folder: FolderArgument = Path("data_set/sample"), seed: SeedOption = 0) -> None:
    """Draw a small flower set, five classes of 80 + 20 pictures, and tulip.jpg."""
    from mnet_cli.data.sample import draw_sample

    with console.bar("drawing") as on_progress:
        drawn = draw_sample(folder, seed=seed, on_progress=on_progress)
    state = "drawn" if drawn else "already exists"
    console.show(
        {"folder": folder, "drawn": drawn},
        lambda: console.line(f"sample data set: {folder} ({state})"),
    )


def fetch(
    name: Annotated[str, typer.Argument(help='The data set, "flowers".')],
    folder: FolderArgument = Path("data_set"),
    val: ValOption = 0.1,
    seed: SeedOption = 0,
) -> None:
    """Download the 3,670 flower photographs (229 MB), then split them into train and val."""
    from mnet_cli.data.sources.flower_photos import fetch_flower_photos

    if name != "flowers":
        raise UsageError(f'"{name}"', "unknown data set", next_step='Use "flowers"')
    with console.bar("downloading", unit="B") as on_progress:
        photos = fetch_flower_photos(folder, on_progress=on_progress)
    _split(photos, folder / "flowers", val=val, seed=seed, copy=False)


def split(
    source: Annotated[Path, typer.Argument(help="One folder of classes.")],
    destination: Annotated[Path, typer.Argument(help="Where train/ and val/ go.")],
    val: ValOption = 0.1,
    seed: SeedOption = 0,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the files even if hard links are possible.")
    ] = False,
) -> None:
    """Split a folder of classes into train and val, the same way each time."""
    _split(source, destination, val=val, seed=seed, copy=copy)


def pack(
    source: Annotated[str, typer.Argument(help="A data set of any kind.")],
    destination: Annotated[str, typer.Argument(help="The folder for the shards.")],
    kind: Annotated[
        Literal["tar", "parquet"], typer.Option("--format", help="The format of the shards.")
    ] = "tar",
    shard_mb: Annotated[
        float, typer.Option(min=0.001, max=1e6, help="Megabytes of images in a shard.")
    ] = 256,
    size: Annotated[
        int | None,
        typer.Option(
            min=32,
            help="Store larger images with this many pixels on the short side.",
            show_default="as they are",
        ),
    ] = None,
) -> None:
    """Write a data set as tar or Parquet shards; the same command continues what was stopped."""
    from mnet_cli.data.pack import pack as write_shards

    with console.bar("packing") as on_progress:
        packed = write_shards(
            source, destination, kind, round(shard_mb * 1e6), size, on_progress=on_progress
        )
    state = "packed" if packed.fresh else "already packed"
    console.show(
        {"folder": destination, **asdict(packed)},
        lambda: console.line(
            f"{state}: {destination}, {console.counts(packed.images)} in {packed.shards} shards, "
            f"{packed.bytes / 1e6:,.1f} MB"
        ),
    )


def _split(source: Path, destination: Path, *, val: float, seed: int, copy: bool) -> None:
    from mnet_cli.data.split import split_folder

    with console.bar("splitting") as on_progress:
        counts = split_folder(
            source, destination, val_fraction=val, seed=seed, copy=copy, on_progress=on_progress
        )
    state = "already split" if counts.already_split else "split"
    console.show(
        {"folder": destination, **asdict(counts)},
        lambda: _show_split(f"{state}: {destination}", counts),
    )


def _show_split(title: str, counts: "SplitCounts") -> None:
    console.table(
        ("class", ">train", ">val"),
        [(name, counts.train[name], counts.val[name]) for name in counts.train],
        title=title,
    )


def _show_audit(audit: "Audit") -> None:
    splits = list(audit.images)
    names = sorted({name for counts in audit.images.values() for name in counts})
    rows = [(name, *(audit.images[split].get(name, "none") for split in splits)) for name in names]
    console.table(("class", *(f">{split}" for split in splits)), rows)
    kinds: dict[str, list[Finding]] = {}
    for finding in audit.findings:
        kinds.setdefault(finding.kind, []).append(finding)
    for kind, found in kinds.items():
        console.line(f"{kind}: {len(found)}")
        for finding in found[:LISTED]:
            console.line(f"  {_named(finding.paths)}{finding.detail}")
        if len(found) > LISTED:
            console.line(f"  … and {len(found) - LISTED} more (--json lists all)")
    if not kinds:
        console.line("nothing found")


def _named(paths: Sequence[str]) -> str:
    """The first images of a finding, how many more there are, and the last.

    Images are in the order of splits and classes, so that the last shows another of them.
    """
    if len(paths) > NAMED:
        paths = [*paths[: NAMED - 1], f"… {len(paths) - NAMED:,} more …", paths[-1]]
    return " = ".join(paths) + ": " if paths else ""
