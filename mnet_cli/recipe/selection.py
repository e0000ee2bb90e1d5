"""Choose the recipe of a new training run, and the data set that it trains on."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnet_cli.errors import UsageError
from mnet_cli.recipe.loading import load_recipe, shipped_recipes
from mnet_cli.recipe.schema import Recipe
from mnet_cli.system.urls import refuse_credentials

DEFAULT = "v2_flowers"  # the shipped one, whatever the working folder holds


def select_recipe(
    name: str | Path | None, overrides: Sequence[str] = (), data: str | None = None
) -> Recipe:
    """Load a recipe by its name, or the default recipe for the images in `data`.

    The shipped recipe `v2_flowers` is the default; its run directory is then named after the
    folder of the images.

    Args:
        name: A path or a name, as for `load_recipe`; None for the default recipe.
        overrides: `KEY=VALUE` texts, as for `load_recipe`.
        data: Replaces `data.root`.

    Raises:
        RecipeError: The recipe is missing, unreadable or invalid.
        UsageError: An override is not valid, or `data` and `overrides` both set `data.root`.
    """
    settings = data_overrides(overrides, data)
    if name is None and data is not None:
        settings = [f"output.name={json.dumps(_run_name(data))}", *settings]
    if name is None:
        name = next(path for path in shipped_recipes() if path.stem == DEFAULT)
    return load_recipe(name, settings)


def data_overrides(overrides: Sequence[str], data: str | None) -> list[str]:
    """Add the overrides that `data` stands for.

    Images that the user names are never replaced by a download: with another `data.root`, the
    recipe's `data.download` is removed unless it is set too.

    Args:
        overrides: `KEY=VALUE` texts.
        data: The value for `data.root`; None leaves it as it is.

    Raises:
        UsageError: `overrides` sets `data.root` too, or `data` has credentials in it.
    """
    keys = {override.partition("=")[0].strip() for override in overrides}
    if data is None:
        return ["data.download=null", *overrides] if "data.root" in keys else list(overrides)
    refuse_credentials(data, "--data")
    if "data.root" in keys:
        raise UsageError(
            f"--data {data}", "given with --set data.root", next_step="Give one of the two"
        )
    root = f"data.root={json.dumps(data, ensure_ascii=False)}"
    return ["data.download=null", root, *overrides]


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Turn `{"train.epochs": 3}` into the `KEY=VALUE` texts of `load_recipe`."""
    return [
        f"{key}={json.dumps(value, ensure_ascii=False, default=os.fspath)}"
        for key, value in values.items()
    ]


def _run_name(data: str) -> str:
    """A name for a run directory: the last part of the path of the images."""
    name = Path(data).resolve().stem if "://" not in data else Path(data).stem
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).lstrip(".-")
    return plain[:200] or "run"
