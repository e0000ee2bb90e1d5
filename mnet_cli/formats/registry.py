"""The formats that mnet exports, as data.

A format's writer is a module of this folder with

- `PRECISIONS`: precision to the ladder of settings that reach it, each a `Setting`;
- `save(program, path, contract)`: writes what a setting's `convert` gave, metadata included;
- `check(path)`: the format's own checker.

Its reader is the adapter of `mnet_cli.runtimes`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

from mnet_cli.errors import MachineError, UsageError
from mnet_cli.formats.contract import Contract
from mnet_cli.formats.network import Network

PRECISIONS = {"float32": "", "float16": ".fp16", "int8": ".int8"}  # and their part of file names


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: Of its files.
        companion: Suffix of a second file that belongs to each; empty if there is none.
        writer: The module of this folder that writes them.
        extra: The extra of mnet-cli that installs what it needs; empty if nothing else.
        packages: What the extra brings, by the names they are imported by.
        static: The number of images a call is always fixed, to one unless another is wanted.
        runs_on: The one system, as `sys.platform` names it, where such files run; empty for all.
    """

    suffix: str
    writer: str
    extra: str = ""
    packages: tuple[str, ...] = ()
    companion: str = ""
    static: bool = False
    runs_on: str = ""

    @property
    def runs_here(self) -> bool:
        """Whether its files can be run, and so proven, on this system."""
        return self.runs_on in ("", sys.platform)


FORMATS = {
    "onnx": Format(".onnx", "onnx"),
    "torchscript": Format(".torchscript", "torchscript"),
    "pt2": Format(".pt2", "pt2"),
    "openvino": Format(".xml", "openvino", "openvino", ("openvino", "nncf"), companion=".bin"),
    "tflite": Format(
        ".tflite",
        "tflite",
        "tflite",
        ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
        static=True,
    ),
    "coreml": Format(
        ".mlpackage", "coreml", "coreml", ("coremltools",), static=True, runs_on="darwin"
    ),
    "executorch": Format(".pte", "executorch", "executorch", ("executorch",), static=True),
}


@dataclass(frozen=True)
class Setting:
    """One way to reach a precision.

    Attributes:
        title: For people.
        convert: From a network to what the writer's `save` takes.
    """

    title: str
    convert: Callable[[Network], Any]


class Writer(Protocol):
    """What each writer's module has."""

    PRECISIONS: dict[str, tuple[Setting, ...]]

    def save(self, program: Any, path: Path, contract: Contract) -> None:
        """Write the file."""

    def check(self, path: Path) -> None:
        """Raise whatever the format's own checker raises."""


def find_writer(name: str, precision: str) -> Writer:
    """Load the writer of a format that can give a precision.

    Raises:
        UsageError: There is no such format, or it cannot give that precision.
        MachineError: Its extra is not installed.
    """
    if name not in FORMATS:
        raise UsageError(f"--format {name}", "unknown", f"{', '.join(FORMATS)} were expected")
    wanted = FORMATS[name]
    missing = [package for package in wanted.packages if not _installed(package)]
    if missing:
        raise MachineError(
            f"--format {name}",
            f"{missing[0]} is not installed",
            f"the {wanted.extra} extra was expected",
            f'Run: pip install "mnet-cli[{wanted.extra}]"',
        )
    writer = cast(Writer, import_module(f"mnet_cli.formats.{wanted.writer}"))
    if precision not in writer.PRECISIONS:
        raise UsageError(
            f"--format {name}",
            f"cannot be {precision}",
            f"{' or '.join(writer.PRECISIONS)} was expected",
        )
    return writer


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # a parent of a dotted name
        return False
