"""Write the documentation's source: the pages of docs/ and those that derive from the code.

Usage: python scripts/docs.py FOLDER

FOLDER is replaced. Derived pages are the commands (from Typer), the recipe's keys (from the JSON
Schema), the shipped recipes, the names that can be chosen, and the changelog.
"""

import html
import inspect
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from mnet_cli.cli.app import app
from mnet_cli.data.sources import SOURCES
from mnet_cli.formats.registry import find_format
from mnet_cli.models.registry import find_architecture
from mnet_cli.recipe import json_schema, shipped_recipes
from mnet_cli.system.plugins import ARCHITECTURES, FORMATS

HERE = Path(__file__).resolve().parents[1]
SHARED_OPTIONS = ("--json", "--quiet", "--traceback")


def main(folder: Path) -> None:
    """Replace `folder` by the complete source of the documentation."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE / "docs", folder)
    pages: dict[str, Callable[[], Iterator[str]]] = {
        "reference/commands.md": command_page,
        "reference/recipe.md": recipe_page,
        "reference/recipes.md": shipped_page,
        "reference/names.md": names_page,
    }
    for name, page in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(page()) + "\n", encoding="utf-8")
    shutil.copy(HERE / "CHANGELOG.md", folder / "changelog.md")


def command_page() -> Iterator[str]:
    """One section a command, with its usage, arguments and options as `--help` gives them."""
    yield "# Commands\n"
    yield "Results go to stdout, everything else to stderr. Every command has these options:\n"
    root = get_command(app)
    yield from _options(root.commands["train"], "mnet train", shared=True)
    yield "\nThe [exit codes](../troubleshooting.md) are the same for all commands."
    yield "`mnet` without a command has these options:\n"
    yield from _options(root, "mnet")
    yield from _commands(root, "mnet")


def _commands(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        full = f"{path} {name}"
        if hasattr(command, "commands"):
            yield from _commands(command, full)
            continue
        context = typer.Context(command, info_name=full)
        yield f"\n## {full}\n"
        yield f"{_paragraphs(command.help)}\n"
        yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
        yield from _options(command, full)


def _options(command: Any, path: str, *, shared: bool = False) -> Iterator[str]:
    context = typer.Context(command, info_name=path)
    rows = [
        record
        for parameter in command.params
        if any(option in SHARED_OPTIONS for option in parameter.opts) == shared
        and (record := parameter.get_help_record(context))
    ]
    if rows:
        yield "| option | meaning |\n| --- | --- |"
    for name, text in rows:
        yield f"| {_code(name)} | {_cell(_with_limits(text))} |"


def _with_limits(text: str) -> str:
    """Write `[default: 8; 1<=x<=4096]` at the end of an option's help as sentences."""
    text, _, limits = text.partition("  [")
    for limit in filter(None, limits.rstrip("]").split("; ")):
        if found := re.fullmatch(r"(.*)<=x<=(.*)", limit):
            text += f" From {found[1]} to {found[2]}."
        elif found := re.fullmatch(r"default: \(?(.*?)\)?", limit):
            text += f" Default: {found[1]}."
        elif found := re.fullmatch(r"x>=(.*)", limit):
            text += f" At least {found[1]}."
        elif limit != "required":
            text += f" {limit.capitalize()}."
    return text


def recipe_page() -> Iterator[str]:
    """One section a part of the recipe, with each key's meaning, values and default."""
    schema = json_schema()
    yield "# Recipe\n"
    yield "A recipe is a YAML file with `schema: 1` and the sections below. Only `model.arch` and"
    yield "`data.root` have no default. `--set SECTION.KEY=VALUE` overrides a key on the command"
    yield "line, and `mnet recipes show NAME` prints a recipe with every key.\n"
    yield "Unknown keys, duplicate keys, wrong types, and keys that contradict each other or have"
    yield "no effect are errors. All are reported together, with their line numbers.\n"
    yield "`mnet recipes schema > mnet.schema.json` writes the JSON Schema of this page. Editors"
    yield "use it to complete and check keys."
    for name, section in schema["properties"].items():
        if reference := section.get("$ref"):
            definition = _definition(schema, reference)
            yield f"\n## {name}\n\n{definition['description']}\n"
            yield from _keys(schema, name, definition)
    phase = schema["$defs"]["Phase"]
    yield f"\n## An entry of train.phases\n\n{phase['description']}\n"
    yield from _keys(schema, "", phase)


def _keys(schema: Mapping[str, Any], section: str, definition: Mapping[str, Any]) -> Iterator[str]:
    required = definition.get("required", ())
    yield "| key | meaning |\n| --- | --- |"
    for key, value in definition["properties"].items():
        full = f"{section}.{key}".lstrip(".")
        default = "Required." if key in required else f"Default: `{_yaml(value['default'])}`."
        anchor = f'<span id="{full}"></span>' if section else ""
        kind = _cell(_kind(schema, value))
        yield f"| {anchor}`{full}` | {_cell(value['description'])}<br>Value: {kind}. {default} |"


def _kind(schema: Mapping[str, Any], value: Mapping[str, Any]) -> str:
    """The values that a key takes, in words."""
    if "$ref" in value:
        value = {**_definition(schema, value["$ref"]), **value}
    if title := value.get("title"):
        return title
    if options := value.get("anyOf"):
        return " or ".join(_kind(schema, option) for option in options)
    if "const" in value:
        return f"`{_yaml(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{name}`" for name in value["enum"])
    words = {"boolean": "`true` or `false`", "null": "`null`", "string": "text", "array": "a list"}
    kind = value.get("type", "")
    if kind not in ("integer", "number"):
        return words.get(kind, kind)
    bounds = [
        f"{word} {value[limit]:,g}" if limit in value else ""
        for limit, word in (
            ("minimum", "from"), ("exclusiveMinimum", "above"),
            ("maximum", "to"), ("exclusiveMaximum", "below"),
        )
    ]  # fmt: skip
    return " ".join([kind, *filter(None, bounds)])


def _yaml(value: object) -> str:
    """A plain value as it stands in a recipe."""
    return value if isinstance(value, str) else json.dumps(value)


def _definition(schema: Mapping[str, Any], reference: str) -> Mapping[str, Any]:
    definition: Mapping[str, Any] = schema["$defs"][reference.rpartition("/")[2]]
    return definition


def shipped_page() -> Iterator[str]:
    """One section a shipped recipe: the comment that it opens with, then its keys."""
    yield "# Shipped recipes\n"
    yield "`mnet train NAME` runs one of them. `mnet recipes list` lists them, and"
    yield "`mnet recipes show NAME` prints every key. To change one, copy its text to a file and"
    yield "train with that file's name. The [recipe reference](recipe.md) explains the keys.\n"
    yield "[How well and how fast they train](../benchmarks.md#recipes) stands with the other"
    yield "measurements."
    for path in shipped_recipes():
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = [line for line in lines if line.startswith("#")]
        yield f"\n## {path.stem}\n"
        for line in comment:
            text = line.removeprefix("#").strip()
            yield f"`{text}`\n" if text.startswith("mnet ") else text
        yield "\n```yaml"
        yield from lines[len(comment) :]
        yield "```"


def names_page() -> Iterator[str]:
    """The architectures, formats and image sources that packages declare."""
    yield "# Architectures, formats, sources\n"
    yield "This is what mnet brings. [Other packages](../extending.md) can add more.\n"
    yield "## Architectures\n"
    yield "`model.arch` in a recipe, and `mnet info NAME`. The last column has the widths for which"
    yield "weights are published; `mnet info --weights` lists them.\n"
    yield "| name | network | paper | options | published widths |"
    yield "| --- | --- | --- | --- | --- |"
    for name in ARCHITECTURES.names():
        found = find_architecture(name)
        paper = f"[arXiv {found.paper}](https://arxiv.org/abs/{found.paper})"
        options = ", ".join(f"`{option}`" for option in sorted(found.options - {"norm_eps"}))
        widths = ", ".join(f"{width:g}" for width in found.widths)
        yield f"| `{name}` | {found.title} | {paper} | {options} | {widths} |"
    yield "\n## Formats\n"
    yield "`mnet export --format NAME`. [Export](../export.md) says which one to choose.\n"
    yield "| name | files | precisions | needs | images a call |"
    yield "| --- | --- | --- | --- | --- |"
    for name in FORMATS.names():
        form = find_format(name)
        files = ", ".join(f"`{suffix}`" for suffix in (form.suffix, form.companion) if suffix)
        needs = re.sub(r".*\[(.*)\]", r"the extra `\1`", form.extra)
        if form.runs_on:
            needs += {"darwin": "; runs on macOS only"}.get(
                form.runs_on, f"; runs on {form.runs_on}"
            )
        batch = "1" if form.static else "any number"
        yield f"| `{name}` | {files} | {', '.join(form.precisions)} | {needs} | {batch} |"
    yield "\n`--batch N` fixes the images a call to N."
    yield "\n## Image sources\n"
    yield "`data.root` in a recipe, `--data`, and the paths of `mnet predict`.\n"
    yield "| name | data set |\n| --- | --- |"
    for name in SOURCES.names():
        yield f"| `{name}` | {_cell(SOURCES.load(name).layout)} |"


def _paragraphs(text: str) -> str:
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text))


def _code(text: str) -> str:
    """Make code of one table cell, where a bar would end the cell."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _cell(text: str) -> str:
    """Make text of one table cell: no line breaks, no bars, and `<` and `[` as themselves."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"\[(?=[^\]]*\])", "\\[", text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
