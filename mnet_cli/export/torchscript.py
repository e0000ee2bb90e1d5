"""TorchScript files: a trace of the network, for programs that have torch."""

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mnet_cli.contract import KEY, Contract
from mnet_cli.export.formats import Setting
from mnet_cli.export.network import Network


def _convert(network: Network) -> Any:
    with without_advice():
        traced = torch.jit.trace(network.module, network.example(), check_trace=False)
        return torch.jit.freeze(traced)


PRECISIONS = {"float32": (Setting("", _convert),)}


def save(program: Any, path: Path, contract: Contract) -> None:
    """Write the archive with its contract as an extra file, and no paths of this machine."""
    with without_advice():
        torch.jit.save(program, path, _extra_files={KEY: contract.to_json()})
    drop_entries(path, ".debug_pkl")


def check(path: Path) -> None:
    """Load the archive."""
    with without_advice():
        torch.jit.load(path, "cpu")


def drop_entries(path: Path, suffix: str) -> None:
    """Write a zip archive again without the entries that end so: they name source files."""
    slim = path.with_name(f"{path.name}.slim")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(slim, "w") as copy:
        for entry in whole.infolist():
            if not entry.filename.endswith(suffix):
                copy.writestr(entry, whole.read(entry))
    slim.replace(path)


@contextmanager
def without_advice() -> Iterator[None]:
    """Keep torch's advice to move on from TorchScript off the screen of those who asked for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
