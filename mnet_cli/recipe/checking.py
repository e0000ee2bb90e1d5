"""A document's values to a Recipe, or to one error that tells everything wrong with them."""

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from mnet_cli.errors import RecipeError
from mnet_cli.recipe.reading import Document, KeyPath, Problem, dotted
from mnet_cli.recipe.rules import RULES, Rule
from mnet_cli.recipe.schema import SCHEMA_VERSION, Recipe, json_schema
from mnet_cli.system.text import printable

MAX_PROBLEMS = 20  # what fits a screen

Fragment = dict[str, Any]  # a part of the JSON Schema

_SCHEMA = json_schema()
_BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "up to",
    "exclusiveMaximum": "to below",
}
_SECTIONS = ("model", "data", "train", "output")


def check_whole(document: Document) -> None:
    """Refuse at once what is no recipe at all or of another version of the format.

    Raises:
        RecipeError: The document is empty, no mapping, or its `schema` is another version.
    """
    values = document.values
    if not isinstance(values, dict):
        kind = {type(None): "empty", list: "a list"}.get(type(values), "a single value")
        sections = ", ".join(_SECTIONS)
        raise RecipeError(
            document.source,
            f"{kind}, not the sections {sections}",
            next_step="Copy a recipe that ships with mnet and edit it",
        )
    version = values.get("schema")
    if type(version) is int and version != SCHEMA_VERSION:
        raise Problem(
            ("schema",),
            document.origin(("schema",)),
            f"version {printable(str(version))}, but this mnet reads version {SCHEMA_VERSION}",
            "Update mnet" if version > SCHEMA_VERSION else f"Write schema: {SCHEMA_VERSION}",
        ).as_error()


def check(document: Document, rules: Sequence[Rule] = RULES) -> Recipe:
    """Check all keys of a document that is a mapping; null and an absent key are the same.

    Args:
        document: The recipe.
        rules: That keys must keep to, besides the schema.

    Raises:
        RecipeError: Something is wrong. One problem is the error itself; several are its
            details, in the order of their lines.
    """
    values = {section: {} for section in _SECTIONS} | _without_nulls(document.values)
    problems = list(document.problems)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        recipe = None
        problems += _schema_problems(error, values, document)
    problems += _broken_rules(rules, values, document, {problem.path for problem in problems})
    if recipe is None or problems:
        raise _as_error(problems, document)
    return recipe


def plain_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain Python: every key but those that another key has ruled out."""
    values = recipe.model_dump(mode="json", by_alias=True)
    idle = [rule.keys[0] for rule in RULES if rule.broken(*_rule_values(rule, values))]
    for section, key in (key.split(".") for key in idle):
        values[section].pop(key, None)
    return values


def _without_nulls(values: Any) -> Any:
    """The values without keys that are null; items of lists stay."""
    if isinstance(values, dict):
        return {key: _without_nulls(v) for key, v in values.items() if v is not None}
    return [_without_nulls(item) for item in values] if isinstance(values, list) else values


def _schema_problems(error: ValidationError, values: Any, document: Document) -> Iterator[Problem]:
    """Pydantic's errors in our words, one a key, less those that reading has named already."""
    named = {problem.path for problem in document.problems}
    found: dict[KeyPath, Problem] = {}
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        problem = _schema_problem(detail["type"], detail["loc"], values, document)
        if problem.path not in named:
            found.setdefault(problem.path, problem)
    outer = {path[:length] for path in found for length in range(len(path))}
    return (problem for path, problem in found.items() if path not in outer)


def _schema_problem(kind: str, loc: KeyPath, values: Any, document: Document) -> Problem:
    """One of pydantic's errors in our words."""
    if kind == "extra_forbidden":
        return Problem(loc, document.origin(loc), "unknown key", _meant_key(loc))
    path, fragment = _locate(loc)
    advice = f"Give {_expectation(fragment)}"
    origin = document.origin(path)
    if kind == "missing":
        line = f"Add the line {dotted(path)}: {fragment['const']}" if "const" in fragment else ""
        return Problem(path, origin, "missing", line or advice)
    value = value_at(values, path)
    shown = printable(json.dumps(value, ensure_ascii=False), 60)
    near = get_close_matches(str(value)[:50], map(str, fragment.get("enum", ())), 1)
    meant = f'Did you mean "{near[0]}"? ' if near else ""
    return Problem(path, origin, f"{shown} is not valid", f"{meant}{advice}")


def _meant_key(path: KeyPath) -> str:
    """What to do about an unknown key: the same name in another section, or a near one."""
    *outer, last = path
    name = str(last)[:50]
    sections = [section for section in _SECTIONS if name in _keys(_locate((section,))[1])]
    near = get_close_matches(name, _keys(_locate(tuple(outer))[1]), 1)
    for meant in (*(f"{section}.{name}" for section in sections), *near):
        return f'Did you mean "{meant}"?'
    return 'Run "mnet recipes schema" for the keys'


def _keys(fragment: Fragment) -> list[str]:
    return list(fragment.get("properties", ()))


def _locate(loc: KeyPath) -> tuple[KeyPath, Fragment]:
    """The deepest key on the way that the schema knows, and its part of the schema.

    Pydantic lets a location run on into the branches of a union, which are no keys.
    """
    path: KeyPath = ()
    fragment = _SCHEMA
    for step in loc:
        inner = fragment.get("items") if isinstance(step, int) else None
        inner = inner or fragment.get("properties", {}).get(step)
        if inner is None:
            break
        path, fragment = (*path, step), _resolved(inner)
    return path, fragment


def _resolved(fragment: Fragment) -> Fragment:
    """The fragment with its reference, or its only choice besides null, in its place."""
    choices = [choice for choice in fragment.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        return {"default": fragment.get("default")} | _resolved(choices[0])
    if "$ref" in fragment:
        definition: Fragment = _SCHEMA["$defs"][fragment["$ref"].rpartition("/")[2]]
        return definition
    return fragment


def _expectation(fragment: Fragment) -> str:
    """What a key takes, in words."""
    choices = [text for choice in fragment.get("anyOf", [fragment]) for text in _choices(choice)]
    return " or ".join(part for part in (", ".join(choices[:-1]), choices[-1]) if part)


def _choices(fragment: Fragment) -> list[str]:
    """The values a fragment of one type takes: by name, or in words for all of them."""
    kind = fragment["type"]
    if "enum" in fragment or "const" in fragment:
        return [str(value) for value in fragment.get("enum", [fragment.get("const")])]
    if kind in ("integer", "number"):
        noun = "a whole number" if kind == "integer" else "a number"
        bounds = [f"{word} {fragment[key]}" for key, word in _BOUNDS.items() if key in fragment]
        return [" ".join((noun, *bounds))]
    return [
        {"boolean": "true or false", "object": "a group of keys"}.get(kind) or fragment["title"]
    ]


def _broken_rules(
    rules: Sequence[Rule], values: Any, document: Document, wrong: set[KeyPath]
) -> Iterator[Problem]:
    """What the rules say of the given keys, where nothing else is wrong with those involved."""
    for rule in rules:
        paths = [_path(key) for key in rule.keys]
        if value_at(values, paths[0]) is None or not wrong.isdisjoint(paths):
            continue
        involved = _rule_values(rule, values)
        if rule.broken(*involved):
            yield Problem(paths[0], document.origin(paths[0]), *rule.texts(involved))


def _rule_values(rule: Rule, values: Any) -> list[Any]:
    """The values of a rule's keys, the default for one that is not given."""
    paths = [_path(key) for key in rule.keys]
    given = [value_at(values, path) for path in paths]
    defaults = [_locate(path)[1].get("default") for path in paths]
    return [d if v is None else v for v, d in zip(given, defaults, strict=True)]


def _path(key: str) -> KeyPath:
    return tuple(key.split("."))


def value_at(values: Any, path: KeyPath) -> Any:
    """The value of a key; None where there is none."""
    for step in path:
        if isinstance(values, dict):
            values = values.get(step)
        elif isinstance(values, list) and isinstance(step, int) and step < len(values):
            values = values[step]
        else:
            return None
    return values


def _as_error(problems: list[Problem], document: Document) -> RecipeError:
    """One problem as the error itself; several as the details of one, in order of lines."""
    if len(problems) == 1:
        return problems[0].as_error()
    problems = sorted(problems, key=lambda p: (p.origin.line is None, p.origin.line or 0))
    details = [str(problem.as_error()) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        details.append(f"and {len(problems) - MAX_PROBLEMS} more")
    found = f"{len(problems)} problems"
    return RecipeError(document.source, found, next_step="Correct the lines above", details=details)
