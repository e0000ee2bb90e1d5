"""Recipes by name or path, with overrides, to Recipe and back to YAML."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mnet_cli.errors import RecipeError, UsageError, WeightsError
from mnet_cli.recipe.checking import check, check_whole, plain_values, value_at
from mnet_cli.recipe.reading import (
    MAX_SIZE,
    Document,
    KeyPath,
    Origin,
    plain_scalar,
    read_yaml,
)
from mnet_cli.recipe.schema import Recipe
from mnet_cli.system.text import printable
from mnet_cli.system.urls import refuse_credentials

_PACKAGE = Path(__file__).parent.parent


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe with overrides; without output.name it is named after its file.

    Args:
        name: A path, or a bare name for `find_recipe`.
        overrides: `KEY=VALUE` texts; see `parse_recipe`.

    Raises:
        RecipeError: The recipe is missing, unreadable or invalid.
        UsageError: An override has no `=` or no such place, or `data.root` has credentials.
    """
    path = find_recipe(name)
    recipe = parse_recipe(_read_text(path), str(path), overrides)
    refuse_credentials(recipe.data.root, "data.root")
    if recipe.output.name is not None:
        return recipe
    stem = "".join(c if c.isprintable() and c not in "/\\" else "-" for c in path.stem)
    output = recipe.output.model_copy(update={"name": stem.lstrip(".") or "recipe"})
    return recipe.model_copy(update={"output": output})


def load_resolved(path: Path) -> Recipe:
    """Load the `recipe.yaml` that a run keeps.

    It was checked when the run started. Rules that a later version has added are not applied, so
    that the run can still be resumed.

    Raises:
        RecipeError: The file is missing, unreadable, or not of this version's schema.
    """
    document = read_yaml(_read_text(path), f"recipe {printable(str(path))}")
    check_whole(document)
    return check(document, rules=())


def parse_recipe(text: str, where: str, overrides: Sequence[str] = ()) -> Recipe:
    """Turn a recipe's YAML into a Recipe.

    Args:
        text: One YAML document.
        where: What errors call it, such as a file's name.
        overrides: `KEY=VALUE` texts, applied in order: a dotted key such as `train.epochs`
            or `train.phases.0.lr`, and its value as YAML. A null value removes the key.

    Raises:
        RecipeError: The text is no valid recipe; its details name every problem.
        UsageError: An override has no `=` or no such place.
    """
    document = read_yaml(text, f"recipe {printable(where)}")
    check_whole(document)
    for override in overrides:
        _override(document, override)
    return check(document)


def restore_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """Rebuild the recipe that `plain_values` took apart, as it stands in a checkpoint.

    Raises:
        WeightsError: The values are no recipe of this version.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise WeightsError(
            where,
            f"its recipe has {error.error_count()} unknown or wrong keys",
            next_step="Update mnet, or name the images with --data DIR",
        ) from error


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML with every key but those that another key has ruled out.

    `parse_recipe` turns the text into an equal recipe.
    """
    return yaml.dump(
        plain_values(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000
    )


def find_recipe(name: str | Path) -> Path:
    """Find a recipe's file; `.yaml` may be left out.

    A bare name is looked up in the working folder, then in its `recipes/`, then among the
    recipes that ship with mnet; empty files are passed over.

    Raises:
        RecipeError: There is no such recipe, or it is not a file.
    """
    given = Path(name)
    where = f"recipe {printable(str(name))}"
    bare = len(given.parts) < 2 and not given.is_absolute()
    folders = [Path(), Path("recipes"), _shipped_folder()] if bare else [given.parent]
    spellings = dict.fromkeys((given.name, given.name.removesuffix(".yaml") + ".yaml"))
    try:
        for folder in folders:
            for spelling in spellings:
                file = folder / spelling
                # `mnet recipes show X > X.yaml` makes an empty file before it looks for X.
                if file.is_file() and (not bare or file.stat().st_size):
                    return file
        kind = "a folder" if given.is_dir() else "not a regular file"
        exists = given.exists()
    except (OSError, ValueError) as error:
        raise _unreadable(where, error) from error
    if exists:
        raise RecipeError(where, kind, next_step="Name a YAML file")
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    near = get_close_matches(given.name.removesuffix(".yaml"), known, 3)
    places = "the working folder, its recipes/ and the shipped recipes"
    names = ", ".join(f'"{printable(stem)}"' for stem in near or known[:20])
    raise RecipeError(
        where,
        f"not found in {places if bare else printable(str(given.parent))}",
        next_step=f"Did you mean {names}?" if near else f"There are {names}" if names else "",
    )


def shipped_recipes() -> list[Path]:
    """The recipes that ship with mnet, by name."""
    return sorted(_shipped_folder().glob("*.yaml"))


def _shipped_folder() -> Path:
    """`recipes` inside an installed package, beside the package in a source checkout."""
    inside = _PACKAGE / "recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def _read_text(path: Path) -> str:
    where = f"recipe {printable(str(path))}"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise _unreadable(where, error) from error
    if len(content) > MAX_SIZE:
        raise RecipeError(where, "too large", next_step=f"Keep it within {MAX_SIZE:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"{where}, line {line}",
            f"byte 0x{content[error.start]:02x} is not UTF-8",
            next_step="Save the file as UTF-8",
        ) from error


def _unreadable(where: str, error: OSError | ValueError) -> RecipeError:
    reason = getattr(error, "strerror", None) or error
    return RecipeError(where, f"cannot be read ({reason})", next_step="Check its permissions")


def _override(document: Document, override: str) -> None:
    """Put one `KEY=VALUE` into the document, with its origin and its problems."""
    source = f"--set {printable(override)}"
    key, equals, text = override.partition("=")
    if not equals:
        raise UsageError(source, "no = in it", next_step="Write KEY=VALUE, as in train.epochs=3")
    path = _path_of(key.strip(), document.values)
    addition = read_yaml(text, source, path=path, numbered=False)
    document.values = _replaced(document.values, path, addition.values, source)
    kept = {old: at for old, at in document.origins.items() if old[: len(path)] != path}
    own = {path[:2]: Origin(source)}  # a section made on the way is nobody's mistake
    document.origins = own | kept | {path: Origin(source)} | addition.origins
    document.problems += addition.problems


def _path_of(key: str, values: Any) -> KeyPath:
    """The path of a dotted key; a number means an item where the values hold a list."""
    path: list[str | int] = []
    for name in key.split("."):
        step = int(name) if isinstance(values, list) and name.isdecimal() else name
        path.append(step)
        values = value_at(values, (step,))
    return tuple(path)


def _replaced(values: Any, path: KeyPath, value: Any, source: str) -> Any:
    """A copy of the values with another one at the path; groups on the way are made."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    inner = value_at(values, (step,))
    if values is None or isinstance(values, dict):
        return {**(values or {}), step: _replaced(inner, rest, value, source)}
    if isinstance(values, list) and isinstance(step, int) and step < len(values):
        return [*values[:step], _replaced(inner, rest, value, source), *values[step + 1 :]]
    kind = f"a list of {len(values)}" if isinstance(values, list) else "a single value"
    raise UsageError(
        source, f"no {printable(str(step))} in {kind}", next_step="Name a key of the recipe"
    )


class _Dumper(yaml.SafeDumper):
    """Quotes text that our reader, unlike PyYAML's, would take for a number; no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(plain_scalar(text), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)
