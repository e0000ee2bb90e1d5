"""`mnet recipes`."""

from typing import Annotated

import typer

from mnet_cli.cli import console
from mnet_cli.cli.options import OverrideOption


def list_recipes() -> None:
    """List the recipes that ship with mnet."""
    from mnet_cli.recipe import load_recipe, shipped_recipes

    recipes = [(path.stem, load_recipe(path)) for path in shipped_recipes()]
    console.show(
        [name for name, _ in recipes],
        lambda: console.table(
            ("recipe", "arch", ">width_mult", "weights", "freeze", ">epochs", "data"),
            [
                (
                    name,
                    recipe.model.arch,
                    f"{recipe.model.width_mult:g}",
                    recipe.model.weights,
                    ", then ".join(str(phase.freeze) for phase in recipe.phases),
                    sum(phase.epochs for phase in recipe.phases),
                    recipe.data.root,
                )
                for name, recipe in recipes
            ],
        ),
    )


def show(
    name: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: OverrideOption = None,
) -> None:
    """Print a recipe with every key resolved."""
    from mnet_cli.recipe import dump_recipe, load_recipe, plain_values

    recipe = load_recipe(name, overrides or ())
    console.show(plain_values(recipe), lambda: console.text(dump_recipe(recipe)))


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from mnet_cli.recipe import json_schema

    console.document(json_schema())
