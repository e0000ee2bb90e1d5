"""YAML text to plain values that remember their lines; only the part of YAML recipes need.

Anchors, aliases, tags, deep nesting and second documents are refused while parsing, before
anything is built. Plain scalars follow YAML 1.2 (https://yaml.org/spec/1.2.2/, core schema);
those that YAML 1.1 reads otherwise are problems.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml import events as ev

from mnet_cli.errors import RecipeError
from mnet_cli.system.text import printable

MAX_SIZE = 64 * 1024
MAX_DEPTH = 16

KeyPath = tuple[str | int, ...]

_CORE_TAGS = "tag:yaml.org,2002:"
_NULL = ("", "~", "null", "Null", "NULL")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)
_MAX_DIGITS = 20  # beyond it a float stands in: int() is slow, and past 4300 digits it raises
_NUMBER = ("an octal, hexadecimal or base-60 number", "a plain decimal number")
_OLD_READINGS = {  # YAML 1.1's tag: what its readers see, what to write instead
    "bool": ("a boolean", "true, false or text"),
    "int": _NUMBER,
    "float": _NUMBER,
    "timestamp": ("a date", "text"),
}
_OLD_RESOLVER: Any = yaml.resolver.Resolver()


@dataclass(frozen=True)
class Origin:
    """Where a value comes from: a recipe, with a line (from 1) where there is one, or `--set`."""

    source: str
    line: int | None = None

    def at(self, path: KeyPath) -> str:
        """The place of a key as errors name it."""
        key = dotted(path)
        place = [self.source]
        if self.line is not None:
            place.append(f"line {self.line}")
        if key and not self.source.startswith(f"--set {key}="):
            place.append(key)
        return ", ".join(place)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one key, in the parts of an error line."""

    path: KeyPath
    origin: Origin
    found: str
    next_step: str = ""

    def as_error(self) -> RecipeError:
        """The problem as an error of its own."""
        return RecipeError(self.origin.at(self.path), self.found, next_step=self.next_step)


@dataclass
class Document:
    """Plain values (dict, list, str, int, float, bool, None) and where each came from.

    Args:
        source: What errors call the text, such as `recipe v2.yaml`.
        numbered: Whether origins have lines; the one line of `--set` needs none.
        values: The values as plain Python.
        origins: Where each key stands.
        problems: What is wrong with single values, so far.
    """

    source: str
    numbered: bool = True
    values: Any = None
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, mark: yaml.Mark) -> Origin:
        """The origin that a position in the text stands for."""
        return Origin(self.source, mark.line + 1 if self.numbered else None)

    def origin(self, path: KeyPath) -> Origin:
        """The origin of the key, or of the nearest one around it."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins[path] if path else Origin(self.source)


def dotted(path: KeyPath) -> str:
    """A path as errors and `--set` write it, such as train.phases.0.lr."""
    return ".".join(printable(str(step), 200) for step in path)


def read_yaml(text: str, source: str, *, path: KeyPath = (), numbered: bool = True) -> Document:
    """Read YAML; what is wrong with single values is collected in the document's problems.

    Args:
        text: One YAML document of at most `MAX_SIZE` characters.
        source: What errors call the text, such as `recipe v2.yaml`.
        path: The key whose value the text is; the default stands for a whole recipe.
        numbered: Whether errors name lines.

    Raises:
        RecipeError: The text as a whole cannot be read: bad syntax, too large or too deep,
            several documents, or anchors, aliases or tags.
    """
    if len(text) > MAX_SIZE:
        raise RecipeError(source, "too large", next_step=f"Keep it within {MAX_SIZE:,} characters")
    document = Document(source, numbered)
    events = _node_events(text, document)
    for event in events:
        document.values = _value(event, events, path, document)
    return document


def _node_events(text: str, document: Document) -> Iterator[Any]:
    """The parser's events inside the document, free of everything that recipes refuse."""
    depth = documents = 0
    for event in _parser_events(text, document):
        if isinstance(event, ev.CollectionStartEvent):
            depth += 1
        elif isinstance(event, ev.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, ev.DocumentStartEvent):
            documents += 1
        if fault := _refusal(event, depth, documents):
            found, next_step = fault
            where = document.place(event.start_mark).at(())
            raise RecipeError(where, found, next_step=next_step)
        if isinstance(event, ev.NodeEvent | ev.CollectionEndEvent):
            yield event


def _refusal(event: Any, depth: int, documents: int) -> tuple[str, str] | None:
    """What is refused about an event, and what to do about it."""
    if depth > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels", "Take the extra brackets or dashes out"
    if documents > 1:
        return "a second YAML document", "Keep one recipe a file"
    if getattr(event, "anchor", None):
        return "an anchor or alias (& or *), which recipes do not read", (
            "Write the value out, or quote it if it is text"
        )
    if tag := getattr(event, "tag", None):
        return f"the tag {printable(tag.replace(_CORE_TAGS, '!!'))}, which recipes do not read", (
            "Write the value without a tag, or quote it if it is text"
        )
    return None


def _parser_events(text: str, document: Document) -> Iterator[Any]:
    """All events of PyYAML's parser, its errors as ours."""
    try:
        parser: Any = yaml.SafeLoader(text)
        while parser.check_event():
            yield parser.get_event()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        raise _syntax_error(text, document, line, column, error.problem) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        column = error.position - text.rfind("\n", 0, error.position) - 1
        fault = f"the character {printable(text[error.position])}"
        raise _syntax_error(text, document, line, column, fault) from error
    except (ValueError, OverflowError) as error:  # from escapes such as "\U7FFFFFFF"
        fault = "an escape or version number out of range"
        raise _syntax_error(text, document, parser.line, parser.column, fault) from error


def _syntax_error(
    text: str, document: Document, line: int, column: int, fault: str | None
) -> RecipeError:
    """The error for the line and column (from 0) where the text stops being YAML."""
    tab = any("\t" in found for found in text.split("\n")[line : line + 1])
    place = f", line {line + 1}:{column + 1}" if document.numbered else ""
    return RecipeError(
        document.source + place,
        f"not YAML ({printable(fault or 'unreadable')})",
        next_step="Indent with spaces, not tabs" if tab else "Correct the line, or quote its text",
    )


def _value(event: Any, events: Iterator[Any], path: KeyPath, document: Document) -> Any:
    """The value that starts with `event`; takes its remaining events off the iterator."""
    document.origins.setdefault(path, document.place(event.start_mark))
    if isinstance(event, ev.MappingStartEvent):
        return _mapping(events, path, document)
    if isinstance(event, ev.SequenceStartEvent):
        items: list[Any] = []
        while not isinstance(event := next(events), ev.SequenceEndEvent):
            items.append(_value(event, events, (*path, len(items)), document))
        return items
    return _scalar(event, path, document)


def _mapping(events: Iterator[Any], path: KeyPath, document: Document) -> dict[str, Any]:
    """The keys and values up to the end of a mapping; of a key given twice, the first."""
    values: dict[str, Any] = {}
    while not isinstance(key := next(events), ev.MappingEndEvent):
        place = document.place(key.start_mark)
        if not isinstance(key, ev.ScalarEvent):
            fault = Problem(path, place, "a list or group as a key", "Write a name")
            _value(key, events, (), Document(document.source))
        elif key.value in values:
            inner = (*path, key.value)
            first = document.origins[inner].line
            found = f"given twice, first on line {first}" if first else "given twice"
            fault = Problem(inner, place, found, next_step="Remove one of the two")
        else:
            inner = (*path, key.value)
            document.origins[inner] = place
            values[key.value] = _value(next(events), events, inner, document)
            continue
        document.problems.append(fault)
        _value(next(events), events, (), Document(document.source))
    return values


def _scalar(event: Any, path: KeyPath, document: Document) -> Any:
    """The value of a scalar; its bare text where that is a problem."""
    text: str = event.value
    value = plain_scalar(text) if event.style is None else text
    if not isinstance(value, str):
        return value
    old_tag = "str" if event.style else _OLD_RESOLVER.resolve(yaml.ScalarNode, text, (True, False))
    shown = printable(text, 200)
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        fault: tuple[str, ...] = (
            f'"{shown}" has control characters',
            "Remove them",
        )
    elif reading := _OLD_READINGS.get(old_tag.removeprefix(_CORE_TAGS)):
        fault = (
            f"{shown} is {reading[0]} for some YAML readers",
            f'Write {reading[1]}; if text is meant, quote it: "{shown}"',
        )
    else:
        return text
    document.problems.append(Problem(path, document.origins[path], *fault))
    return text


def plain_scalar(text: str) -> Any:
    """The value of an unquoted scalar in YAML 1.2; the text itself when it is a string."""
    if text in _NULL:
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text) and len(text) <= _MAX_DIGITS:
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text
