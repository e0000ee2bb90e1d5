"""What the documentation says of commands, keys, codes and pages is so."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from typer.exceptions import Exit
from typer.main import get_command

from mnet_cli import errors
from mnet_cli.cli.app import app
from mnet_cli.recipe import json_schema, load_recipe, shipped_recipes

HERE = Path(__file__).resolve().parents[1]
WRITTEN = sorted(
    [
        *(HERE / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        HERE / "data_set/README.md",
        *(HERE / "docs").rglob("*.md"),
    ]
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The complete source of the documentation, as scripts/docs.py writes it."""
    spec = importlib.util.spec_from_file_location("docs", HERE / "scripts/docs.py")
    docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs)
    folder = tmp_path_factory.mktemp("docs") / "source"
    docs.main(folder)
    return folder


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of every `mnet …` command in code blocks and in code within sentences."""
    fences = re.findall(r"^```(.*)\n([^`]*?)^```$", text, re.MULTILINE)
    shell = "\n".join(code for kind, code in fences if kind == "shell")
    lines = shell.replace("\\\n", " ").splitlines()
    lines += re.findall(r"^ {4}(mnet .*)$", text, re.MULTILINE)
    lines += re.findall(r"`(mnet [^`]+)`", text)
    for line in lines:
        for part in re.split(r"&&|\|", re.sub(r"\s#.*|\s>.*", "", line)):
            if part.strip().startswith("mnet ") and "…" not in part:
                yield shlex.split(part)[1:]


EXAMPLES = [
    pytest.param(path, words, id=f"{path.relative_to(HERE).as_posix()}: {shlex.join(words)}")
    for path in WRITTEN
    for words in commands_in(path.read_text(encoding="utf-8"))
]


OVERRIDES = [
    example
    for example in EXAMPLES
    if "--set" in example.values[1] and "small_resnet" not in example.id  # it is not installed
]


def test_readme_is_short():
    assert len((HERE / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_documentation_has_examples():
    assert len(EXAMPLES) > 50


@pytest.mark.parametrize(("path", "words"), EXAMPLES)
def test_command_of_the_documentation_parses(path, words):
    command, name, rest = get_command(app), "mnet", list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name, command = f"{name} {rest[0]}", command.commands[rest.pop(0)]
    if hasattr(command, "commands"):  # `mnet data`, or an option of mnet itself
        assert set(rest) <= {name for option in command.params for name in option.opts} | {"--help"}
        return
    context = typer.Context(command, info_name=name)
    if not rest and any(parameter.required for parameter in command.params):
        return  # `mnet predict`, the name of a command
    with suppress(Exit), context:  # --help exits
        command.parse_args(context, rest)


@pytest.mark.parametrize(("path", "words"), OVERRIDES)
def test_overrides_of_the_documentation_fit_the_recipe(path, words):
    settings = [value for flag, value in pairwise(words) if flag == "--set"]
    named = [word for word in words if word in {path.stem for path in shipped_recipes()}]
    load_recipe(named[0] if named else "v2_flowers", [s for s in settings if "KEY" not in s])


def test_whole_recipes_of_the_documentation_are_valid(tmp_path):
    found = 0
    for path in WRITTEN:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"^```yaml\n(schema: 1.*?)^```$", text, re.MULTILINE | re.DOTALL):
            file = tmp_path / "recipe.yaml"
            file.write_text(block, encoding="utf-8")
            load_recipe(file, ())
            found += 1
    assert found


def test_troubleshooting_has_every_exit_code():
    text = (HERE / "docs/troubleshooting.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for code in {kind.exit_code for kind in kinds if issubclass(kind, errors.MnetError)}:
        assert f"| [{code}](#code-{code}) |" in text
        assert f"{{ #code-{code} }}" in text


def test_reference_has_every_command_and_key(pages):
    commands = (pages / "reference/commands.md").read_text(encoding="utf-8")
    recipe = (pages / "reference/recipe.md").read_text(encoding="utf-8")

    def expected(group, path):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from expected(command, f"{path} {name}")
            else:
                yield f"## {path} {name}\n"

    assert [
        heading for heading in expected(get_command(app), "mnet") if heading not in commands
    ] == []
    schema = json_schema()
    for section in ("Model", "Data", "Train", "Output", "Phase"):
        definition = schema["$defs"][section]
        for key, value in definition["properties"].items():
            prefix = "" if section == "Phase" else f"{section.lower()}."
            assert f"`{prefix}{key}`" in recipe
            assert " ".join(value["description"].split())[:20] in recipe


def test_shipped_recipes_are_listed(pages):
    text = (pages / "reference/recipes.md").read_text(encoding="utf-8")
    for path in shipped_recipes():
        assert f"## {path.stem}\n" in text


def test_links_lead_somewhere(pages):
    broken = []
    for page in [*pages.rglob("*.md"), *(p for p in WRITTEN if "docs" not in p.parts)]:
        text = re.sub(
            r"^```.*?^```$|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S
        )
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            name, _, anchor = target.partition("#")
            if "://" in target:
                continue
            file = page.parent / name if name else page
            if not file.exists() or (anchor and anchor not in anchors_of(file)):
                broken.append(f"{page.name}: {target}")
    assert not broken


def anchors_of(page: Path) -> set[str]:
    """The names that links can have behind `#` on a page."""
    text = page.read_text(encoding="utf-8")
    given = set(re.findall(r'\{ #([\w-]+) \}|id="([^"]+)"', text))
    found = {name for names in given for name in names if name}
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        words = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        found.add(re.sub(r"[\s-]+", "-", words))
    return found
