"""Recipes: keys, their ranges and defaults, contradictions, and the JSON Schema."""

import string

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mnet_cli.errors import MnetError, RecipeError
from mnet_cli.models.registry import find_architecture
from mnet_cli.recipe import (
    Phase,
    Recipe,
    dump_recipe,
    json_schema,
    parse_recipe,
)
from mnet_cli.system.plugins import ARCHITECTURES

BASE = "schema: 1\nmodel:\n  arch: mobilenet_v2\ndata:\n  root: flowers\n"  # five lines
PHASES = "phases: [{epochs: 1, freeze: features, lr: 1e-3}, {epochs: 2, freeze: none, lr: 1e-4}]"

FREEZES = "none, features, all_but_last, features[:N] or a list of name"


def section(name, *lines):
    """The base recipe with further lines in one section, from line 7 on in a new section."""
    if name == "model":
        return BASE.replace("v2\n", "v2\n" + "".join(f"  {line}\n" for line in lines))
    if name == "data":
        return BASE + "".join(f"  {line}\n" for line in lines)
    return BASE + f"{name}:\n" + "".join(f"  {line}\n" for line in lines)


def refusal(text, overrides=(), kind=RecipeError):
    """The single problem of a recipe, as its error line."""
    with pytest.raises(kind) as caught:
        parse_recipe(text, "v2.yaml", overrides)
    assert caught.value.exit_code == 2
    assert not caught.value.details
    return str(caught.value)


def problems(text, overrides=()):
    """Several problems of a recipe, one line each."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "v2.yaml", overrides)
    assert str(caught.value).startswith(f"recipe v2.yaml: {len(caught.value.details)} problems")
    return caught.value.details


def test_a_short_recipe_gets_the_documented_defaults():
    recipe = parse_recipe(BASE, "v2.yaml")
    assert recipe.model.weights == "imagenet"
    assert recipe.model.freeze == "features"
    assert (recipe.data.image_size, recipe.data.workers) == (224, "auto")
    assert (recipe.train.epochs, recipe.train.lr, recipe.train.monitor) == (10, 1e-3, "top1")
    assert (recipe.output.root, recipe.output.name) == ("runs", None)


def test_null_empty_sections_and_absent_keys_are_the_same():
    text = BASE + "train:\n  epochs: null\n  lr: ~\n  seed:\noutput:\n"
    assert parse_recipe(text, "v2.yaml") == parse_recipe(BASE, "v2.yaml")


def test_a_recipe_without_phases_is_one_phase():
    recipe = parse_recipe(section("train", "epochs: 3", "lr: 0.1"), "v2.yaml")
    assert recipe.phases == (Phase(epochs=3, freeze="features", lr=0.1),)


def test_phases_are_kept_in_order():
    recipe = parse_recipe(section("train", PHASES), "v2.yaml")
    assert [(p.epochs, p.freeze, p.lr) for p in recipe.phases] == [
        (1, "features", 1e-3),
        (2, "none", 1e-4),
    ]


def test_a_recipe_cannot_be_changed_and_can_be_hashed():
    recipe = parse_recipe(section("model", "freeze: [features.0.*]"), "v2.yaml")
    assert hash(recipe) == hash(recipe.model_copy())
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.epochs = 3


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "1.e-3", ".001", "+0.001", "0.001"])
def test_every_spelling_of_a_number_is_a_number(written):
    assert parse_recipe(section("train", f"lr: {written}"), "v2.yaml").train.lr == 0.001


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("none", "none"),
        ("features", "features"),
        ("features[:3]", "features[:3]"),
        ("['features.0.*', 'features.1']", ("features.0.*", "features.1")),
    ],
)
def test_every_form_of_freeze_is_read(written, value):
    assert parse_recipe(section("model", f"freeze: {written}"), "v2.yaml").model.freeze == value


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("model", "width_mult: 0", "a number above 0 up to 4"),
        ("model", "width_mult: true", "a number above 0 up to 4"),
        ("model", "dropout: 1", "a number from 0 to below 1"),
        (
            "model",
            "freeze: 'features[:0]'",
            FREEZES,
        ),
        ("model", "freeze: []", FREEZES),
        ("model", "freeze: [1]", FREEZES),
        ("model", "weights: 3", "imagenet, imagenet-v1, starter, none or the path"),
        ("data", "val_fraction: 1.0", "a number above 0 to below 1"),
        ("data", "image_size: 31", "a whole number from 32 up to 1024"),
        ("data", "image_size: 224.0", "a whole number"),
        ("data", "batch_size: '32'", "a whole number"),
        ("data", "workers: -1", "auto or a whole number from 0"),
        ("data", "random_erasing: 1.5", "a number from 0 up to 1"),
        ("data", "skip_bad: 1", "true or false"),
        ("data", "background: pink", "white, black or grey"),
        ("train", "epochs: 0", "a whole number from 1"),
        ("train", "epochs: true", "a whole number from 1"),
        ("train", "lr: .nan", "a number above 0"),
        ("train", "lr: .inf", "a number above 0"),
        ("train", "lr: 1e999", "a number above 0"),
        ("train", "lr: -1e-3", "a number above 0"),
        ("train", "lr: 0", "a number above 0"),
        ("train", "lr: [1]", "a number above 0"),
        ("train", "ema: 1", "a number from 0 to below 1"),
        ("train", "seed: 99999999999999999999999999", "a whole number from 0"),
        ("train", "phases: []", "a list of phases"),
        ("output", "name: ../x", "a name without slashes"),
        ("output", "root: ''", "the path of a folder"),
        ("output", "trackers: mlflow", "a list of tensorboard, mlflow or both"),
    ],
)
def test_a_wrong_value_is_told_with_its_key_and_range(name, line, expected):
    message = refusal(section(name, line))
    assert f"{name}.{line.split(':')[0]}: " in message
    assert f"is not valid. Give {expected}" in message
    assert message.startswith("recipe v2.yaml, line ")


def test_a_near_value_is_suggested():
    assert refusal(section("train", "monitor: macro_f")).endswith(
        'Did you mean "macro_f1"? Give top1, macro_f1 or loss.'
    )


@pytest.mark.parametrize(
    ("lines", "trackers"),
    [
        (["trackers: [mlflow, tensorboard]"], ("mlflow", "tensorboard")),
        (["tensorboard: true"], ("tensorboard",)),
        (["tensorboard: false"], ()),
        (["tensorboard: false", "trackers: [mlflow]"], ("mlflow",)),
    ],
)
def test_trackers_are_a_list_and_the_older_key_is_still_read(lines, trackers):
    recipe = parse_recipe(section("output", *lines), "v2.yaml")
    assert recipe.output.trackers == trackers
    assert parse_recipe(dump_recipe(recipe), "again.yaml") == recipe
    assert "tensorboard:" not in dump_recipe(recipe)


def test_the_older_key_of_trackers_does_not_stand_beside_them():
    text = section("output", "tensorboard: true", "trackers: [mlflow]")
    assert "line 7, output.tensorboard: unknown key" in refusal(text)
    assert 'Did you mean "tensorboard"?' in refusal(section("output", "trackers: [tensorbord]"))


def test_an_unknown_key_names_the_nearest_one():
    message = 'recipe v2.yaml, line 7, train.epochz: unknown key. Did you mean "epochs"?'
    assert refusal(section("train", "epochz: 3")) == message


def test_a_key_in_the_wrong_section_names_the_right_one():
    assert refusal(section("train", "image_size: 64")).endswith('Did you mean "data.image_size"?')
    assert refusal(BASE, ["epochs=3"]).endswith('Did you mean "train.epochs"?')


def test_an_unknown_key_without_a_near_one_says_where_the_keys_are():
    assert "mnet recipes schema" in refusal(section("train", "zzz: 3"))


def test_a_section_of_the_wrong_kind_is_told():
    assert "train: 3 is not valid. Give a group of keys" in refusal(BASE + "train: 3\n")
    assert "train.phases.0: 3 is not valid. Give a group of keys" in refusal(
        section("train", "phases: [3]")
    )


def test_missing_required_keys_are_all_told():
    lines = problems("output: {name: a}\n")
    assert lines[0].startswith("recipe v2.yaml, schema: missing. Add the line")
    assert [line.split(":")[0].split()[-1] for line in lines] == [
        "schema",
        "model.arch",
        "data.root",
    ]


def test_a_newer_schema_names_both_versions_and_nothing_else():
    message = refusal("schema: 2\nfuture: 1\n")
    assert "line 1, schema: version 2, but this mnet reads version 1" in message


@pytest.mark.parametrize("version", ["'1'", "true", "1.0", "0", "-1"])
def test_only_the_number_1_is_the_schema(version):
    assert "schema: " in refusal(BASE.replace("schema: 1", f"schema: {version}"))


def test_all_problems_are_told_together_in_order_of_lines():
    lines = problems(
        section("train", "epochz: 3", "amp: yes", "momentum: 0.5", "lr: -1"), ["data.image_size=3"]
    )
    assert [line.split(", ")[1] for line in lines[:4]] == [f"line {n}" for n in (7, 8, 9, 10)]
    assert lines[4].startswith("--set data.image_size=3: 3 is not valid")


def test_very_many_problems_are_cut_to_a_screen():
    with pytest.raises(RecipeError, match="500 problems") as caught:
        parse_recipe(BASE + "".join(f"key{n}: 1\n" for n in range(500)), "v2.yaml")
    assert caught.value.details[-1] == "and 480 more"
    assert len(caught.value.details) == 21


@pytest.mark.parametrize(
    ("text", "key", "other"),
    [
        (section("train", "epochs: 3", PHASES), "train.epochs", "train.phases"),
        (section("train", "lr: 0.1", PHASES), "train.lr", "train.phases"),
        (section("model", "freeze: none") + f"train: {{{PHASES}}}", "model.freeze", "train.phases"),
        (section("train", "momentum: 0.9"), "train.momentum", "train.optimizer: adamw"),
        (
            section("train", "optimizer: sgd", "momentum: 0.8"),
            "train.momentum",
            "train.schedule: onecycle",
        ),
        (section("train", "warmup_epochs: 1"), "train.warmup_epochs", "train.schedule: onecycle"),
        (
            section("train", "schedule: cosine", "warmup_epochs: 3", "epochs: 3"),
            "train.warmup_epochs",
            "train.epochs: 3",
        ),
        (
            section("data", "augment: none", "crop_scale_min: 0.08"),
            "data.crop_scale_min",
            "data.augment: none",
        ),
        (
            section("data", "augment: none", "random_erasing: 0.1"),
            "data.random_erasing",
            "data.augment: none",
        ),
        (
            section("data", "cached_views: 2") + "train: {cutmix: 1.0}",
            "data.cached_views",
            "train.cutmix: 1.0",
        ),
        (
            section("data", "cached_views: 2", "augment: none"),
            "data.cached_views",
            "data.augment: none",
        ),
        (
            section("data", "cached_views: 1") + f"train: {{{PHASES.replace('features', 'none')}}}",
            "data.cached_views",
            "nothing frozen",
        ),
        (
            section("data", "cached_views: 4") + "train: {epochs: 3}",
            "data.cached_views",
            "train.epochs: 3",
        ),
        (
            section("data", "cached_views: 3") + f"train: {{{PHASES}}}",
            "data.cached_views",
            "train.phases",
        ),
        (
            section("data", "cached_views: 2") + f"train: {{{PHASES}}}",
            "data.cached_views",
            "train.phases",
        ),
        (section("train", "epochs: 3", "early_stop: 2"), "train.early_stop", "train.epochs: 3"),
        (section("train", "early_stop: 50"), "train.early_stop", "train.epochs: 10"),
        (section("train", "early_stop: 2", PHASES), "train.early_stop", "train.phases"),
        (section("model", "reduced_tail: true"), "model.reduced_tail", "model.arch: mobilenet_v2"),
        (
            section("model", "reduced_tail: true").replace("_v2", "_v3_large"),
            "model.reduced_tail",
            "model.weights: imagenet",
        ),
        (section("model", "width_mult: 0.33"), "model.width_mult", "model.weights: imagenet"),
        (section("model", "weights: starter"), "model.weights", "model.width_mult: 1.0"),
    ],
)
def test_keys_that_contradict_or_have_no_effect_are_both_named(text, key, other):
    message = refusal(text)
    assert f", {key}: " in message
    assert other in message
    assert message.count("line ") == 1


@pytest.mark.parametrize(
    "text",
    [
        section("train", "optimizer: sgd", "momentum: 0", "schedule: cosine"),
        section("train", "schedule: cosine", "warmup_epochs: 0.5"),
        section("train", "warmup_epochs: 0", "ema: 0", "mixup: 0"),
        section("data", "augment: none", "random_erasing: 0"),
        section("data", "balance: class_weights") + "train: {mixup: 0.2, cutmix: 1.0}",
        section("data", "cached_views: 0") + "train: {mixup: 0.2}",
        section("data", "cached_views: 1", "augment: none"),
        section("model", "freeze: none") + "  cached_views: auto\n",
        section("data", "cached_views: 1") + f"train: {{{PHASES}}}",
        section("data", "cached_views: 2")
        + f"train: {{{PHASES.replace('none', '[features.0.*]')}}}",
        section("train", "epochs: 3", "early_stop: 1"),
        section("train", "early_stop: 1", PHASES),
        section("train", "epochs: 1", "early_stop: 0"),
        section("model", "width_mult: 0.33", "weights: none"),
        section("model", "width_mult: 0.35", "weights: starter"),
        section("model", "width_mult: 0.33", "weights: ./mine.pt"),
        section("model", "reduced_tail: true", "weights: none").replace("_v2", "_v3_small"),
        section("model", "reduced_tail: false"),
    ],
)
def test_keys_that_do_have_an_effect_pass(text):
    assert isinstance(parse_recipe(text, "v2.yaml"), Recipe)


@pytest.mark.parametrize("arch", ARCHITECTURES.names())
def test_widths_without_published_weights_name_those_with_them(arch):
    text = section("model", "width_mult: 0.33").replace("mobilenet_v2", arch)
    widths = find_architecture(arch).widths
    listed = ", ".join(f"{width:g}" for width in widths)
    assert f"Choose one of {listed}, for which weights are published" in refusal(text)
    for width in widths:
        assert parse_recipe(text.replace("0.33", str(width)), "v2.yaml").model.width_mult == width


def test_a_wrong_value_is_not_also_a_contradiction():
    assert "train.momentum: 2 is not valid" in refusal(section("train", "momentum: 2"))
    assert "model.arch" in refusal(section("model", "width_mult: 0.3").replace("_v2", "_v9"))


def test_every_key_of_the_json_schema_is_described_and_closed():
    schema = json_schema()
    parts = [schema, *schema["$defs"].values()]
    keys = [value for part in parts for value in part["properties"].values()]
    described = [
        (schema["$defs"][key["$ref"].split("/")[-1]] if "$ref" in key else key)["description"]
        for key in keys
    ]
    assert len(described) > 40
    assert all(text.endswith(".") for text in described)
    assert all(part["additionalProperties"] is False for part in parts)
    assert "schema" in schema["required"]


KEYS = sorted({key for part in json_schema()["$defs"].values() for key in part["properties"]})
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 10**30)
    | st.floats()
    | st.sampled_from(
        ["none", "features", "adamw", "sgd", "mobilenet_v2", "starter", "auto", "1e-3"]
    )
    | st.text(string.printable, max_size=8)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=12,
)
SECTIONS = st.dictionaries(st.sampled_from(["schema", "model", "data", "train", "output"]), TREES)


def recipe_or_error(text, overrides=()):
    try:
        assert isinstance(parse_recipe(text, "random", overrides), Recipe)
    except MnetError as error:
        assert error.exit_code == 2
        assert "\n" not in str(error)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(tree=SECTIONS | TREES)
def test_any_tree_is_a_recipe_or_a_recipe_error(tree):
    recipe_or_error(yaml.safe_dump(tree))


@settings(deadline=None, derandomize=True, max_examples=300)
@given(key=st.sampled_from(KEYS), part=st.sampled_from(["model", "data", "train"]), value=TREES)
def test_any_value_of_a_known_key_is_a_recipe_or_a_recipe_error(key, part, value):
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n")
    recipe_or_error(BASE, [f"{part}.{key}={text}"])


@settings(deadline=None, derandomize=True, max_examples=400)
@given(
    text=st.text(st.sampled_from("abc:-?![]{}&*#|>%@`'\"\\U0x1.~=<, \t\n\r\x85\u2028"), max_size=40)
)
def test_any_text_is_a_recipe_or_a_recipe_error(text):
    recipe_or_error(text)
    recipe_or_error(BASE + "train:\n  lr: " + text)
    recipe_or_error(BASE, [text, "train.lr=" + text])
