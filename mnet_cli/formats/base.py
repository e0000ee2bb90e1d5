"""What a file format is, and the helpers that the formats share; nothing here imports torch."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mnet_cli.errors import MachineError, UsageError, WeightsError
from mnet_cli.formats.contract import Contract

if TYPE_CHECKING:
    from mnet_cli.formats.network import Network

Run = Callable[[NDArray[Any]], NDArray[np.float32]]
"""From what an exported file takes to what it gives, as its contract says."""


@dataclass(frozen=True)
class Setting:
    """One way to convert a network to a precision.

    Attributes:
        title: What the export command calls it.
        convert: From a network to what the format's `save` takes.
    """

    title: str
    convert: "Callable[[Network], Any]"


class Format(ABC):
    """A file format of trained networks: how a file is written, checked and run.

    A package adds one with a subclass, declared in the group `mnet_cli.formats` of its entry
    points. The module should import heavy libraries inside the methods only: `mnet predict`
    imports all formats to find the one of a file.

    Attributes:
        suffix: Of its files, with the dot.
        companion: Suffix of a second file that belongs to each; empty if there is none.
        extra: What pip installs to use it, such as `mnet-cli[openvino]`; empty if nothing.
        packages: What `extra` installs, by the names that Python imports.
        static: Whether the number of images a call is always fixed.
        runs_on: The one system, as in `sys.platform`, where its files run; empty for all.
    """

    suffix: ClassVar[str]
    companion: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    static: ClassVar[bool] = False
    runs_on: ClassVar[str] = ""

    @property
    @abstractmethod
    def precisions(self) -> Mapping[str, tuple[Setting, ...]]:
        """The precisions (`float32`, `float16`, `int8`) with the settings that reach each.

        An export tries the settings in order until one passes the parity check.
        """

    @abstractmethod
    def save(self, program: Any, path: Path, contract: Contract) -> None:
        """Write to `path` what a setting's `convert` gave, with the contract in its metadata."""

    @abstractmethod
    def check(self, path: Path) -> None:
        """Run the format's own checker on a file, which raises what it likes."""

    @abstractmethod
    def load(self, path: Path, device: str) -> tuple[Run, Contract]:
        """Open a file to run it; several threads may call what is returned.

        Args:
            path: The file.
            device: `auto`, `cpu`, `cuda` or `mps`.

        Raises:
            WeightsError: The file is missing, damaged, or not from mnet export.
            MachineError: What runs such files is not installed.
            UsageError: The device is not available for it.
        """

    @property
    def runs_here(self) -> bool:
        """Whether its files run on this system, so that an export can compare outputs."""
        return self.runs_on in ("", sys.platform)

    def missing_package(self) -> str:
        """The first of `packages` that is not installed; empty if all are."""
        return next((package for package in self.packages if not _is_installed(package)), "")

    def missing_extra(self, where: str) -> MachineError:
        """The error for a format whose extra is not installed, with the command to install it."""
        package = self.missing_package() or self.packages[0]
        return MachineError(
            where, f"{package} is not installed", next_step=f'Run: pip install "{self.extra}"'
        )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # a parent of a dotted name
        return False


def require_cpu(path: Path, device: str) -> None:
    """Refuse another device for a file that runs on the CPU only.

    Raises:
        UsageError: Another device was named.
    """
    if device not in ("auto", "cpu"):
        raise UsageError(
            f"--device {device}",
            f"{path.name} runs on the CPU only",
            next_step="Leave --device out, or name best.pt",
        )


def not_loadable(path: Path, kind: str) -> WeightsError:
    """The error for a file that is missing, damaged or of another kind."""
    return WeightsError(
        str(path),
        f"cannot be loaded as {kind}",
        next_step="Name a file that mnet export wrote, or export it again",
    )


def filled(inputs: NDArray[Any], size: int) -> NDArray[Any]:
    """Repeat the last input until there are `size`."""
    missing = size - len(inputs)
    return np.concatenate([inputs, *[inputs[-1:]] * missing]) if missing else inputs
