"""Make text from outside (file names, class names, recipes) safe to print on one line."""

from collections.abc import Collection
from itertools import islice

_HTML = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")


def readable(text: str) -> str:
    """Escape bytes that are not UTF-8 (surrogates), so that the text can be encoded."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str, limit: int | None = None) -> str:
    """Escape line breaks, control codes and undecodable bytes; shorten to `limit` characters.

    A name can then neither add a line to the output nor send a command to the terminal.
    """
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in readable(text)
    )
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


def listing(names: Collection[str], most: int = 20) -> str:
    """The first names in quotes, and how many more there are."""
    shown = ", ".join(f"'{printable(name)}'" for name in islice(names, most))
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def text_in_place_of_data(start: bytes) -> tuple[str, str] | None:
    """Recognize text files that often stand where a binary file should be.

    Args:
        start: The first bytes of a file; 256 are enough.

    Returns:
        What the file is, such as `an HTML page`, and what to do, as a sentence without its
        full stop; None for anything else.
    """
    start = start.lstrip().lower()
    if start.startswith(_HTML):
        return "an HTML page", "Download the file itself; the address led to a web page"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer", 'Run "git lfs pull" in the repository that it comes from'
    return None
