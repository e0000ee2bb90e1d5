"""`class_indices.json`: the class names by their index, beside a checkpoint."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnet_cli.errors import WeightsError
from mnet_cli.system.atomic import write_json
from mnet_cli.system.text import printable

CLASS_INDICES = "class_indices.json"


def write_class_indices(folder: Path, class_names: Sequence[str]) -> None:
    """Write the class names by their index into `class_indices.json` of a run directory."""
    names = {str(index): name for index, name in enumerate(class_names)}
    write_json(folder / CLASS_INDICES, names)


def check_class_indices(checkpoint: Path, class_names: Sequence[str]) -> None:
    """Refuse a `class_indices.json` beside a checkpoint that has other class names.

    Without such a file there is nothing to compare: a checkpoint has the names itself.

    Args:
        checkpoint: The file of the checkpoint or exported model.
        class_names: Its class names, in the order of the logits.

    Raises:
        WeightsError: The file cannot be read, is damaged, or has other names.
    """
    path = checkpoint.with_name(CLASS_INDICES)
    if not path.is_file():
        return
    try:
        # With this hook an object becomes a tuple of (key, value), repeated keys included.
        found = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=tuple)
        fault = _unlike(found, class_names, checkpoint.name)
    except OSError as error:
        fault = f"cannot be read ({error.strerror or error})"
    except (ValueError, RecursionError):
        fault = "not JSON in UTF-8"
    if fault:
        raise WeightsError(
            str(path),
            fault,
            next_step=f"Restore it, or delete it: {checkpoint.name} has the class names itself",
        )


def _unlike(found: Any, class_names: Sequence[str], checkpoint: str) -> str:
    """Say how the content of `class_indices.json` differs from the class names; nothing if not.

    Args:
        found: A tuple of (index as text, name) for an object.
        class_names: Of the checkpoint.
        checkpoint: Its file's name.
    """
    if not isinstance(found, tuple):
        return "no names by index"
    names = dict(found)
    for index, name in enumerate(class_names):
        key = str(index)
        if key not in names:
            return f"index {key} is missing"
        if names[key] != name:
            there, here = (printable(str(value), 60) for value in (names[key], name))
            return f"index {key} is '{there}', but '{here}' in {checkpoint}"
    if len(names) > len(class_names):
        more = min(names.keys() - set(map(str, range(len(class_names)))))
        return f"index {printable(more, 60)} lies beyond the {len(class_names)} classes"
    if len(names) < len(found):
        twice = next(key for key, count in Counter(key for key, _ in found).items() if count > 1)
        return f"index {twice} stands there twice"
    return ""
