"""Prepare the folder of a new run's images: download it, or split it, where the recipe lets us."""

from collections.abc import Callable
from pathlib import Path

from mnet_cli.data.sources import find_source, flower_photos
from mnet_cli.data.split import split_folder
from mnet_cli.errors import MachineError
from mnet_cli.recipe import Recipe
from mnet_cli.system.text import printable
from mnet_cli.system.urls import is_url

VAL_FRACTION = 0.2  # of a folder that is not split, where the recipe does not say


def download_data(
    recipe: Recipe,
    on_note: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Download and split the data set that `data.download` names, if `data.root` is missing.

    Args:
        recipe: Without `data.download`, and where `data.root` exists, nothing is done.
        on_note: Called with one line before the download.
        on_progress: Called with bytes received and bytes in total.

    Raises:
        MachineError: The network or the disk refuses.
        DataError: The downloaded archive is not usable.
    """
    if not recipe.data.download or is_url(recipe.data.root):
        return
    root = Path(recipe.data.root)
    if root.exists():
        return
    on_note(
        f"data.root: {root} does not exist: downloading {recipe.data.download} (3,670 photographs, "
        f"{flower_photos.SIZE / 1e6:.0f} MB) from {flower_photos.URL}"
    )
    try:
        photos = flower_photos.fetch_flower_photos(
            root.parent,
            url=flower_photos.URL,
            sha256=flower_photos.SHA256,
            size=flower_photos.SIZE,
            on_progress=on_progress,
        )
    except MachineError as error:
        advice = f'{error.next_step}, or train on your own images with "--data DIR"'
        raise MachineError(error.where, error.found, next_step=advice) from error
    split_folder(photos, root)


def with_validation(recipe: Recipe, on_note: Callable[[str], None] = lambda text: None) -> Recipe:
    """Set `data.val_fraction` for a data set that is not split into train and val.

    Args:
        recipe: Returned as it is where the data set is split or missing, or `data.val_fraction`
            is set.
        on_note: Called with one line that says what was set.

    Raises:
        DataError: The data set cannot be listed.
    """
    root = recipe.data.root
    if recipe.data.val_fraction is not None:
        return recipe
    source = find_source(root)
    if source is None or "all" not in source.splits(root):
        return recipe
    on_note(
        f"{printable(root)} has no train/ and val/: {VAL_FRACTION:.0%} of each class is used for "
        f"validation (data.val_fraction: {VAL_FRACTION})"
    )
    return with_fraction(recipe, VAL_FRACTION)


def with_fraction(recipe: Recipe, val_fraction: float | None) -> Recipe:
    """Return a copy of a recipe with another `data.val_fraction`."""
    data = recipe.data.model_copy(update={"val_fraction": val_fraction})
    return recipe.model_copy(update={"data": data})
