"""TorchScript files: a trace of the network, for programs that have torch."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from mnet_cli.formats.contract import KEY, Contract
from mnet_cli.formats.network import Network
from mnet_cli.formats.registry import Setting
from mnet_cli.runtimes.torchscript import load
from mnet_cli.system.quiet import quiet
from mnet_cli.system.trusted_files import sign


def _convert(network: Network) -> Any:
    with quiet():
        traced = torch.jit.trace(network.module, network.example(), check_trace=False)  # type: ignore[no-untyped-call]
        return torch.jit.freeze(traced)


PRECISIONS = {"float32": (Setting("", _convert),)}


def save(program: Any, path: Path, contract: Contract) -> None:
    """Write the archive with its contract as an extra file, and no paths of this machine."""
    whole = io.BytesIO()  # torch makes a RuntimeError of what the disk says
    with quiet():
        torch.jit.save(program, whole, _extra_files={KEY: contract.to_json()})
    content = without_entries(whole, ".debug_pkl")  # they name source files
    path.write_bytes(content)
    sign(content)


def check(path: Path) -> None:
    """Load the archive."""
    load(path, "cpu")


def without_entries(archive: io.BytesIO, suffix: str) -> bytes:
    """A zip archive without the entries whose names end so."""
    slim = io.BytesIO()
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(slim, "w") as copy:
        for entry in whole.infolist():
            if not entry.filename.endswith(suffix):
                copy.writestr(entry, whole.read(entry))
    return slim.getvalue()
