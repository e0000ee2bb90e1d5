"""A small drawn data set: five kinds of flowers that differ in shape more than in colour.

It needs no download, so that every command can be tried, and tested, within seconds.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from mnet_cli.data.sample.scene import CLASS_NAMES, draw_flower
from mnet_cli.errors import DataError
from mnet_cli.system.atomic import atomic_folder, atomic_write
from mnet_cli.system.text import printable

__all__ = ["CLASS_NAMES", "MARKER", "draw_flower", "draw_sample"]

MARKER = "sample.json"

_VERSION = 1  # of the drawings: goes up when the same seed gives other pictures
_SEEDS = 1_000_000  # pictures of one sample; val and the tulip have numbers of their own
_FIRST_VAL = 500_000
_TULIP = _SEEDS - 1
_TULIP_SIZE = 320
_JPEG_QUALITY = 90

Picture = tuple[str, str, int, int]  # path, class, number, side


def draw_sample(
    folder: Path,
    *,
    train_per_class: int = 80,
    val_per_class: int = 20,
    size: int = 160,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Draw train/<class>/NNN.jpg, val/<class>/NNN.jpg and tulip.jpg, a clear tulip apart.

    Every picture depends on the seed, its class and its number alone, so a larger sample
    contains the smaller one. The folder appears complete or not at all.

    Args:
        folder: The data set's folder: new, empty, or of the same sample.
        train_per_class: Training images of each class, from 1.
        val_per_class: Validation images of each class, from 1.
        size: Side of these images in pixels; tulip.jpg always has 320.
        seed: From 0; the same seed gives the same bytes with the same Pillow and numpy.
        on_progress: Called with pictures drawn and pictures in all.

    Returns:
        Whether it was drawn; False if `folder` already held this very sample.

    Raises:
        DataError: `folder` holds anything else; it is left as it is.
        MachineError: The disk refuses.
    """
    marker = {
        "version": _VERSION,
        "seed": seed,
        "train_per_class": train_per_class,
        "val_per_class": val_per_class,
        "size": size,
    }
    pictures = _pictures(train_per_class, val_per_class, size)
    if _is_there(folder, marker, pictures):
        return False
    with atomic_folder(folder) as temporary:
        for done, (path, name, number, side) in enumerate(pictures, 1):
            image = draw_flower(name, seed * _SEEDS + number, side, clear=number == _TULIP)
            _save(image, temporary / path)
            if on_progress:
                on_progress(done, len(pictures))
        with atomic_write(temporary / MARKER, "w") as file:
            file.write(json.dumps(marker, indent=4) + "\n")
    return True


def _pictures(train: int, val: int, size: int) -> list[Picture]:
    """Path, class, number and side of every picture."""
    splits = (("train", 0, train), ("val", _FIRST_VAL, val))
    pictures = [
        (f"{split}/{name}/{number:03d}.jpg", name, first + number, size)
        for split, first, count in splits
        for name in CLASS_NAMES
        for number in range(count)
    ]
    return [*pictures, ("tulip.jpg", "tulips", _TULIP, _TULIP_SIZE)]


def _save(image: Image.Image, path: Path) -> None:
    """Write a JPEG; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        image.save(file, "JPEG", quality=_JPEG_QUALITY)


def _is_there(folder: Path, marker: dict[str, int], pictures: Sequence[Picture]) -> bool:
    """Whether `folder` holds the sample of `marker`, as opposed to nothing; else an error."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    where, next_step = printable(str(folder)), "Choose another folder"
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            where, f"holds other files, and no readable {MARKER}", next_step=next_step
        ) from error
    if found != marker:
        raise DataError(where, f"holds another sample: {found}, not {marker}", next_step=next_step)
    missing = [path for path, *_ in pictures if not (folder / path).is_file()]
    if missing:
        raise DataError(
            where,
            f"{len(missing)} pictures are missing, such as {missing[0]}",
            next_step=next_step,
        )
    return True
