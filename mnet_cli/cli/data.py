"""`mnet data`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mnet_cli.cli import console
from mnet_cli.errors import DataError, UsageError

if TYPE_CHECKING:
    from mnet_cli.data.audit import Finding, Health
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
        Path, typer.Argument(help="A folder with train/ and val/, or one folder of classes.")
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 at any finding, not at serious ones only.")
    ] = False,
) -> None:
    """Look for bad images, duplicates and classes that do not fit; change nothing."""
    from mnet_cli.data.audit import SERIOUS, examine

    with console.bar("looking") as on_progress, console.bar("comparing", "step") as on_comparing:
        health = examine(root, on_progress, on_comparing)
    document = {
        "root": root,
        "images": health.images,
        "findings": [
            {"serious": SERIOUS[finding.kind], **asdict(finding)} for finding in health.findings
        ],
    }
    console.show(document, lambda: _show_health(health))
    counted = health.findings if strict else health.serious
    if counted:
        raise DataError(
            str(root),
            f"{len(counted)} finding{'s' * (len(counted) > 1)}, {counted[0].kind} first",
            "none was expected" if strict else "no serious one was expected",
            "Fix what is listed above",
        )


def sample(folder: FolderArgument = Path("data_set/sample"), seed: SeedOption = 0) -> None:
    """Draw a small flower set, five classes of 80 + 20 pictures, and tulip.jpg."""
    from mnet_cli.data.sample import draw_sample

    with console.bar("drawing") as on_progress:
        drawn = draw_sample(folder, seed=seed, on_progress=on_progress)
    state = "drawn" if drawn else "there already"
    console.show(
        {"folder": folder, "drawn": drawn},
        lambda: console.line(f"sample data set: {folder} ({state})"),
    )


def fetch(
    name: Annotated[str, typer.Argument(help='What to fetch; so far "flowers".')],
    folder: FolderArgument = Path("data_set"),
    val: ValOption = 0.1,
    seed: SeedOption = 0,
) -> None:
    """Download the 3,670 flower photographs (229 MB), then split them into train and val."""
    from mnet_cli.data.sources.flower_photos import fetch_flower_photos

    if name != "flowers":
        raise UsageError(f'"{name}"', "nothing of that name to fetch", '"flowers" was expected')
    with console.bar("downloading", unit="B") as on_progress:
        photos = fetch_flower_photos(folder, on_progress=on_progress)
    _split(photos, folder / "flowers", val=val, seed=seed, copy=False)


def split(
    source: Annotated[Path, typer.Argument(help="One folder of classes.")],
    destination: Annotated[Path, typer.Argument(help="Where train/ and val/ go.")],
    val: ValOption = 0.1,
    seed: SeedOption = 0,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the files even where a hard link would do.")
    ] = False,
) -> None:
    """Split a folder of classes into train and val, the same way each time."""
    _split(source, destination, val=val, seed=seed, copy=copy)


def _split(source: Path, destination: Path, *, val: float, seed: int, copy: bool) -> None:
    from mnet_cli.data.split import split_folder

    with console.bar("splitting") as on_progress:
        counts = split_folder(
            source, destination, val_fraction=val, seed=seed, copy=copy, on_progress=on_progress
        )
    state = "split already" if counts.already_split else "split"
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


def _show_health(health: "Health") -> None:
    splits = list(health.images)
    names = sorted({name for counts in health.images.values() for name in counts})
    rows = [(name, *(health.images[split].get(name, "none") for split in splits)) for name in names]
    console.table(("class", *(f">{split}" for split in splits)), rows)
    kinds: dict[str, list[Finding]] = {}
    for finding in health.findings:
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
