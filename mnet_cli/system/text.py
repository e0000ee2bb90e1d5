"""Text from outside (file names, class names, recipes) made fit for one line."""

from collections.abc import Collection
from itertools import islice


def readable(text: str) -> str:
    """Escape bytes that are not UTF-8 (surrogates), so that the text can be encoded."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str, limit: int | None = None) -> str:
    """Escape line ends, control codes and undecodable bytes; cut what is beyond `limit`.

    No name can then forge a line of output or send a terminal a command.
    """
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in readable(text)
    )
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


def listing(names: Collection[str], most: int = 20) -> str:
    """The first of many names in quotes, and how many more there are."""
    shown = ", ".join(f"'{printable(name)}'" for name in islice(names, most))
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")
