"""Recipes: the YAML files that describe a training run."""

from mnet_cli.recipe.checking import plain_values
from mnet_cli.recipe.loading import (
    dump_recipe,
    find_recipe,
    load_recipe,
    load_resolved,
    parse_recipe,
    restore_recipe,
    shipped_recipes,
)
from mnet_cli.recipe.schema import Data, Model, Output, Phase, Recipe, Train, json_schema
from mnet_cli.recipe.selection import as_overrides, data_overrides, select_recipe

__all__ = [
    "Data",
    "Model",
    "Output",
    "Phase",
    "Recipe",
    "Train",
    "as_overrides",
    "data_overrides",
    "dump_recipe",
    "find_recipe",
    "json_schema",
    "load_recipe",
    "load_resolved",
    "parse_recipe",
    "plain_values",
    "restore_recipe",
    "select_recipe",
    "shipped_recipes",
]
