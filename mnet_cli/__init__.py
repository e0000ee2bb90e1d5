"""mnet: transfer learning for the MobileNet family.

The Python API has two functions, which are imported when they are first used:

    >>> import mnet_cli
    >>> result = mnet_cli.train("v2_flowers", {"data.root": "photos"})
    >>> classifier = mnet_cli.load("runs/latest")
    >>> classifier.predict("rose.jpg").class_name
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnet_cli.api import load, train

__version__ = "0.1.0"
__all__ = ["__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used (PEP 562)."""
    if name not in ("load", "train"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = getattr(import_module("mnet_cli.api"), name)
    globals()[name] = function
    return function


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
