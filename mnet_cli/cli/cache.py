"""`mnet cache`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mnet_cli.cli import console
from mnet_cli.cli.options import DeviceOption, OverrideOption, RayOption
from mnet_cli.errors import UsageError

if TYPE_CHECKING:
    from mnet_cli.features.cache import CachedFolder
    from mnet_cli.training.batches import CacheUse


def show_cache() -> None:
    """List what is kept of frozen parts of networks, the last used first."""
    from mnet_cli.features.cache import cache_cap, cache_folders, cache_root

    folders = cache_folders()
    document = {
        "folder": cache_root(),
        "bytes": sum(folder.size for folder in folders),
        "cap_bytes": cache_cap(),
        "stores": [
            {
                "folder": folder.path.name,
                "bytes": folder.size,
                "used": _time(folder.used),
                "about": folder.about,
            }
            for folder in folders
        ],
    }
    console.show(document, lambda: _show(document, folders))


def fill(
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="A recipe file, or the name of a shipped recipe.",
            show_default="v2_flowers, with --data",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Replaces data.root, as in mnet train.", show_default="the recipe's"),
    ] = None,
    overrides: OverrideOption = None,
    device: DeviceOption = "auto",
    ray: RayOption = None,
) -> None:
    """Compute the features that a recipe trains on, so that training begins at once."""
    from mnet_cli.models.device import choose_device
    from mnet_cli.recipe import select_recipe
    from mnet_cli.training.data_root import with_validation
    from mnet_cli.training.fill import fill_cache
    from mnet_cli.training.prepare import prepare_data

    if not recipe and not data:
        raise UsageError("mnet cache fill", "no recipe", next_step='Add "--recipe NAME"')
    chosen = choose_device(device)
    resolved = with_validation(select_recipe(recipe, overrides or [], data), console.note)
    with console.bar("checking images") as on_progress:
        images = prepare_data(resolved, on_progress)
    console.notes(images.notes)
    with console.bar("weights", unit="B") as on_weights, console.bar("features") as on_features:
        found = fill_cache(resolved, images, chosen, ray, on_features, on_weights)
    console.show([asdict(one) for one in found], lambda: _show_filled(found))


def _show_filled(found: "Sequence[CacheUse]") -> None:
    for one in found:
        console.line(
            f"{one.boundary}: {one.rows:,} rows, {one.fresh:,} computed, "
            f"{one.rows - one.fresh:,} found, {one.row_bytes:,} bytes each"
        )


def clear() -> None:
    """Remove all kept activations; the next training computes them again."""
    from mnet_cli.features.cache import cache_root, clear_cache

    freed = clear_cache()
    console.show(
        {"folder": cache_root(), "freed_bytes": freed},
        lambda: console.line(f"cleared: {cache_root()}, {freed / 1e6:,.1f} MB"),
    )


def _show(document: Mapping[str, Any], folders: "list[CachedFolder]") -> None:
    if folders:
        console.table(
            ("network", "views", ">pixels", ">bytes a view", ">MB", "last used"),
            [
                (
                    _of(folder.about, "network", "title"),
                    _of(folder.about, "augmentation", "policy"),
                    _of(folder.about, "preprocess", "image_size"),
                    _of(folder.about, "row_bytes"),
                    f"{folder.size / 1e6:,.1f}",
                    _time(folder.used),
                )
                for folder in folders
            ],
        )
    console.line(
        f"{document['folder']}: {document['bytes'] / 1e6:,.1f} MB "
        f"of at most {document['cap_bytes'] / 1e9:g} GB (MNET_CACHE_GB)"
    )


def _of(about: Mapping[str, Any], *keys: str) -> Any:
    """A value of a store's description; `?` where the description is not whole."""
    value: Any = about
    for key in keys:
        value = value.get(key, "?") if isinstance(value, dict) else "?"
    return value


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="minutes")
