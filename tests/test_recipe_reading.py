"""Reading YAML: what is refused, where errors point, and that hostile text costs nothing."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnet_cli.errors import RecipeError
from mnet_cli.recipe import parse_recipe
from mnet_cli.recipe.reading import MAX_SIZE, read_yaml

BASE = "schema: 1\nmodel:\n  arch: mobilenet_v2\ndata:\n  root: flowers\n"  # five lines


def refusal(text):
    """The single problem of a recipe, as its error line."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "v2.yaml")
    assert not caught.value.details
    return str(caught.value)


def value(text):
    """What a bare scalar is read as; it must be no problem."""
    document = read_yaml(f"key: {text}", "text")
    assert not document.problems
    return document.values["key"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", "none"),
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("false", False),
        ("0", 0),
        ("-12", -12),
        ("+7", 7),
        ("1e3", 1000.0),
        ("1.", 1.0),
        ("-.5E-1", -0.05),
        (".INF", float("inf")),
        ("inf", "inf"),
        ("1e", "1e"),
        ("1.0.0", "1.0.0"),
        ("y", "y"),
        ('"yes"', "yes"),
        ("'010'", "010"),
        ('"1e-3"', "1e-3"),
        ("花/été", "花/été"),
        ("features[:3]", "features[:3]"),
    ],
)
def test_a_scalar_is_read_as_yaml_1_2_reads_it(text, expected):
    assert value(text) == expected
    assert type(value(text)) is type(expected)


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        *((word, "a boolean") for word in ("yes", "No", "on", "OFF", "True", "FALSE")),
        *((word, "an octal") for word in ("010", "-07", "0x1F", "0b11", "1_000", "1:30", "1:30.5")),
        ("010.5", "an octal"),
        ("2020-01-01", "a date"),
        ("2020-01-01 10:00:00", "a date"),
    ],
)
def test_a_scalar_that_yaml_1_1_reads_otherwise_must_be_quoted(text, reading):
    message = refusal(BASE + f"train:\n  lr: {text}\n")
    assert message.startswith(f"recipe v2.yaml, line 7, train.lr: {text} is a")
    assert f"is {reading}" in message
    assert message.endswith(f'quote it: "{text}".')


@pytest.mark.parametrize("key", ["yes", "010", "2020-01-01", "null", "1.5", "<<", "="])
def test_a_key_is_its_text_whatever_yaml_makes_of_it(key):
    assert f"line 6, {key}: unknown key" in refusal(BASE + f"{key}: 1\n")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("---\n...\n", "empty"),
        ("[1, 2]", "a list"),
        ("- a\n", "a list"),
        ("flowers", "a single value"),
        ("3", "a single value"),
    ],
)
def test_what_is_no_mapping_is_told(text, kind):
    message = refusal(text)
    assert message.startswith(f"recipe v2.yaml: {kind}")
    assert "not the sections model, data, train, output" in message


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (BASE + "train:\n\tlr: 1\n", "line 7:1: not YAML"),
        (BASE + "train: [1\n", "line 7:1: not YAML"),
        (BASE + "train: a: b\n", "line 6:9: not YAML"),
        (BASE + "train: @a\n", "line 6:8: not YAML"),
        (BASE + "train: \x07\n", "line 6:8: not YAML (the character \\x07)"),
        (BASE + 'train: "\\U7fffffff"\n', "line 6:11: not YAML (an escape"),
        ("%YAML " + "9" * 5000 + ".1\n---\na: 1", "line 1:7: not YAML"),
        ("%YAML 3.0\n---\na: 1", "line 1:1: not YAML"),
    ],
)
def test_a_syntax_error_has_its_line_and_column(text, place):
    assert refusal(text).startswith(f"recipe v2.yaml, {place}")


def test_a_tab_is_named():
    assert refusal(BASE + "train:\n\tlr: 1\n").endswith("Indent with spaces, not tabs.")


def test_a_duplicate_key_names_both_lines():
    text = BASE + "train:\n  lr: 1\n  seed: 3\n  lr: 2\n"
    message = (
        "recipe v2.yaml, line 9, train.lr: given twice, first on line 7. Remove one of the two."
    )
    assert refusal(text) == message
    assert "line 6, model: given twice, first on line 2" in refusal(BASE + "model: {arch: x}\n")


def test_a_key_that_is_a_list_is_refused():
    assert "line 6: a list or group as a key" in refusal(BASE + "? [a, b]\n: 3\n")


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("!!python/object/apply:os.mkdir [MARK]", "the tag !!python/object/apply:os.mkdir"),
        ("!!python/name:os.system", "the tag !!python/name:os.system"),
        ("!!python/object/new:os.mkdir {args: [MARK]}", "the tag !!python/object/new:os.mkdir"),
        ("!mine 3", "the tag !mine"),
        ("!!str 010", "the tag !!str"),
        ("! x", "the tag !"),
        ("!<tag:x,2000:\x85> x", "not YAML"),
        ("&a 3", "an anchor or alias"),
        ("*a", "an anchor or alias"),
        ("&a [*a]", "an anchor or alias"),
    ],
)
def test_tags_and_anchors_are_refused_and_never_run(tmp_path, written, shown):
    mark = tmp_path / "ran"
    message = refusal(BASE + "train: " + written.replace("MARK", str(mark)) + "\n")
    assert message.startswith("recipe v2.yaml, line 6")
    assert shown in message
    assert not mark.exists()


def test_a_second_document_is_refused():
    assert "line 6: a second YAML document" in refusal(BASE + "---\nschema: 1\n")


@pytest.mark.parametrize("escape", ["\\e[31m", "\\ud800", "\\0", "a\\nb"])
def test_control_characters_are_refused_and_never_shown(escape):
    message = refusal(BASE + f'train: {{optimizer: "{escape}"}}\n')
    assert "train.optimizer: " in message
    assert "has control characters" in message
    assert message.isprintable()


def test_a_long_or_hostile_key_is_shown_short_and_escaped():
    message = refusal(BASE + '"\\e[31m' + "k" * 500 + '": 1\n')
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 2000 + "]" * 2000,
        "a: " + "{b: " * 2000 + "}" * 2000,
        "- " * 2000 + "a",
        "".join(" " * n + "a:\n" for n in range(300)),
        "[" * MAX_SIZE,
        "{" * MAX_SIZE,
        "? " * (MAX_SIZE // 2),
    ],
)
def test_deep_nesting_costs_nothing(text):
    began = time.monotonic()
    assert "nested deeper than 16 levels" in refusal(text)
    assert time.monotonic() - began < 5


def test_an_alias_bomb_is_refused_at_its_first_anchor():
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 99)
    )
    assert "line 1: an anchor or alias" in refusal(bomb)


def test_a_text_that_is_too_large_is_refused():
    assert "too large" in refusal("#" * (MAX_SIZE + 1))
    assert "too large" not in refusal("#" * MAX_SIZE)


PIECES = st.sampled_from(
    [
        "\n",
        "\n  ",
        "\n\t",
        "\r",
        " #",
        ": ",
        "- ",
        "? ",
        ", ",
        "&a ",
        "!!x ",
        "---\n",
        "...\n",
        "null",
    ]
) | st.sampled_from("ab10eU-:?[]{}*|>%@`\"'\\#.=<~\x00\x85\u2028\ufeff\ud800")


@settings(deadline=None, derandomize=True, max_examples=600)
@given(pieces=st.lists(PIECES, max_size=30))
def test_any_text_is_read_or_refused(pieces):
    try:
        document = read_yaml("".join(pieces), "text")
    except RecipeError as error:
        assert str(error).startswith("text")
    else:
        assert all(isinstance(problem.as_error(), RecipeError) for problem in document.problems)
