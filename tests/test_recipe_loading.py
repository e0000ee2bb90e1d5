"""Recipes from files and `--set`, and back to YAML."""

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mnet_cli.errors import RecipeError, UsageError
from mnet_cli.recipe import (
    Recipe,
    dump_recipe,
    find_recipe,
    json_schema,
    load_recipe,
    parse_recipe,
    plain_values,
    shipped_recipes,
)

BASE = "schema: 1\nmodel:\n  arch: mobilenet_v2\ndata:\n  root: flowers\n"
PHASES = "phases: [{epochs: 1, freeze: features, lr: 1e-3}, {epochs: 2, freeze: none, lr: 1e-4}]"
WITH_PHASES = f"{BASE}train:\n  {PHASES}\n"


def refusal(text, overrides, kind=RecipeError):
    """The single problem of a recipe, as its error line."""
    with pytest.raises(kind) as caught:
        parse_recipe(text, "v2.yaml", overrides)
    assert caught.value.exit_code == 2
    assert not caught.value.details
    return str(caught.value)


def test_overrides_change_any_key_and_the_last_one_wins():
    overrides = ["train.lr=1e-2", "output.name=a=b", "train.epochs=3", "train.epochs=4"]
    recipe = parse_recipe(BASE, "v2.yaml", overrides)
    assert (recipe.train.lr, recipe.output.name, recipe.train.epochs) == (0.01, "a=b", 4)


def test_an_override_with_null_or_nothing_removes_the_key():
    text = WITH_PHASES
    for removal in ("train.phases=null", "train.phases="):
        recipe = parse_recipe(text, "v2.yaml", [removal, "train.epochs=2"])
        assert [phase.epochs for phase in recipe.phases] == [2]


def test_an_override_reaches_into_phases_and_makes_whole_sections():
    recipe = parse_recipe(WITH_PHASES, "v2.yaml", ["train.phases.1.epochs=7"])
    assert [phase.epochs for phase in recipe.phases] == [1, 7]
    recipe = parse_recipe(BASE, "v2.yaml", ["train={epochs: 2, freeze: null}"])
    assert recipe.train.epochs == 2


def test_an_override_repairs_a_wrong_value_of_the_file():
    assert parse_recipe(BASE + "train: {lr: -1}", "v2.yaml", ["train.lr=1"]).train.lr == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochz=3", '--set train.epochz=3: unknown key. Did you mean "epochs"?'),
        ("train.lr=0", "--set train.lr=0: 0 is not valid. Give a number above 0"),
        ("train.amp=yes", "--set train.amp=yes: yes is a boolean for some YAML readers"),
        ("train.seed=010", "--set train.seed=010: 010 is an octal"),
        ("train.lr=[", "--set train.lr=[: not YAML"),
        ("train.lr=!!python/name:os.system", "the tag !!python/name:os.system"),
        ("train.momentum=0.5", "--set train.momentum=0.5: no effect with train.optimizer: adamw"),
        ("=3", "--set =3: unknown key"),
        ("train..lr=3", "--set train..lr=3, train.: unknown key"),
        ("train.lr=a\x1b[31m", "--set train.lr=a\\x1b[31m: not YAML"),
        ("train.lr=\udcff", "--set train.lr=\\udcff: not YAML"),
        ("train={lr: 1, lr: 2}", "train.lr: given twice. Remove"),
        ("train.lr.x=1", "--set train.lr.x=1, train.lr: "),
    ],
)
def test_a_problem_of_an_override_names_the_override(override, message):
    assert message in refusal(BASE, [override])


@pytest.mark.parametrize("override", ["train.epochs", "", "train.phases.5.lr=1", "schema.x=1"])
def test_an_override_that_cannot_be_placed_is_a_usage_error(override):
    assert refusal(WITH_PHASES, [override], UsageError).startswith(f"--set {override}")


@pytest.mark.parametrize(
    "text",
    [
        BASE,
        WITH_PHASES,
        BASE + "train: {optimizer: sgd, schedule: cosine, momentum: 0.5, lr: 1e-7}",
        BASE + "  augment: none",
        BASE.replace("v2\n", "v2\n  dropout: 0.5\n  freeze: [features.0.*, '010', 'yes']\n"),
        BASE + "output: {name: '1e-3', root: 'true'}",
    ],
)
def test_a_dumped_recipe_loads_back_equal(text):
    recipe = parse_recipe(text, "v2.yaml")
    assert parse_recipe(dump_recipe(recipe), "dump") == recipe
    assert Recipe.model_validate(plain_values(recipe)) == recipe


def test_a_dump_lists_every_key_but_those_ruled_out():
    keys = {f"{s}.{k}" for s, model in json_schema()["$defs"].items() for k in model["properties"]}
    dumped = yaml.safe_load(dump_recipe(parse_recipe(WITH_PHASES, "v2.yaml")))
    listed = {f"{s.title()}.{k}" for s, values in dumped.items() if s != "schema" for k in values}
    missing = {key for key in keys - listed if not key.startswith("Phase.")}
    assert missing == {"Train.epochs", "Train.lr", "Train.momentum", "Model.freeze"}


PATHS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    root=PATHS, name=st.from_regex(r"[^/\\.\x00-\x1f\x7f-\x9f][\w .:#'\"-]{0,9}", fullmatch=True)
)
def test_any_path_and_name_survive_a_dump(root, name):
    recipe = Recipe.model_validate(
        {
            "schema": 1,
            "model": {"arch": "mobilenet_v2", "freeze": [root, name]},
            "data": {"root": root},
            "output": {"name": name},
        }
    )
    assert parse_recipe(dump_recipe(recipe), "dump") == recipe


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_bare_name_is_found_here_then_in_recipes_with_or_without_suffix(folder):
    (folder / "recipes").mkdir()
    (folder / "recipes" / "mine.yaml").write_text(BASE)
    assert find_recipe("mine") == find_recipe("mine.yaml") == Path("recipes/mine.yaml")
    (folder / "mine").mkdir()
    assert find_recipe("mine") == Path("recipes/mine.yaml")
    (folder / "mine.yaml").write_text(BASE)
    assert find_recipe("mine") == Path("mine.yaml")
    assert (
        find_recipe(folder / "mine.yaml") == find_recipe(str(folder / "mine")) != Path("mine.yaml")
    )


def test_an_empty_file_does_not_hide_a_recipe(folder):
    # As "mnet recipes show quickstart > quickstart.yaml" begins.
    (folder / "quickstart.yaml").touch()
    assert find_recipe("quickstart").stat().st_size
    assert find_recipe(folder / "quickstart.yaml") == folder / "quickstart.yaml"


def test_every_shipped_recipe_opens_with_its_command_and_loads():
    assert len(shipped_recipes()) >= 7
    for path in shipped_recipes():
        header = path.read_text(encoding="utf-8").partition("schema:")[0]
        assert f"mnet train --recipe {path.stem}" in header, path.name
        assert load_recipe(path).output.name == path.stem


def test_shipped_recipes_are_found_from_any_folder(folder):
    assert shipped_recipes()
    for path in shipped_recipes():
        assert find_recipe(path.stem) == path
        assert isinstance(load_recipe(path.stem), Recipe)


def test_an_unknown_name_gets_the_nearest_ones(folder):
    (folder / "v2_flowers.yaml").write_text(BASE)
    with pytest.raises(RecipeError, match=r'recipe v2_flowrs: not found in .*mean "v2_flowers"'):
        find_recipe("v2_flowrs")
    with pytest.raises(RecipeError, match="not found in nowhere"):
        find_recipe("nowhere/v2_flowers.yaml")


def test_the_run_is_named_after_the_file_unless_the_recipe_names_it(folder):
    (folder / "v2.flowers.yaml").write_text(BASE)
    assert load_recipe("v2.flowers").output.name == "v2.flowers"
    assert load_recipe("v2.flowers", ["output.name=mine"]).output.name == "mine"
    (folder / ".a\\b\x1b.yaml").write_text(BASE)
    recipe = load_recipe(".a\\b\x1b.yaml")
    assert recipe.output.name == "a-b-"
    assert parse_recipe(dump_recipe(recipe), "dump") == recipe


def test_a_folder_a_fifo_and_impossible_names_are_refused(folder):
    (folder / "here").mkdir()
    os.mkfifo(folder / "pipe")
    for name, kind in (("here", "a folder"), ("pipe", "not a regular file"), (".", "a folder")):
        with pytest.raises(RecipeError, match=kind):
            load_recipe(name)
    for name in ("x" * 5000, "a\x00b", "\udcff", ""):
        with pytest.raises(RecipeError):
            load_recipe(name)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_an_unreadable_file_is_told(folder):
    with pytest.raises(RecipeError, match=r"recipe /proc/self/mem: cannot be read \(Input/output"):
        load_recipe("/proc/self/mem")


def test_a_file_that_is_not_utf_8_or_too_large_is_refused(folder):
    (folder / "a.yaml").write_bytes(BASE.encode() + b"# caf\xe9\n")
    with pytest.raises(RecipeError, match=r"recipe a.yaml, line 6: byte 0xe9 is not UTF-8"):
        load_recipe("a")
    (folder / "b.yaml").write_bytes(b"#" * 2**20)
    with pytest.raises(RecipeError, match=r"recipe b.yaml: too large"):
        load_recipe("b")
    (folder / "c.yaml").write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert load_recipe("c").model.arch == "mobilenet_v2"
