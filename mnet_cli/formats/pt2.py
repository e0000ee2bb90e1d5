"""Archives of torch.export (.pt2): the network as a graph of ATen operators."""

import io
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from mnet_cli.formats.contract import KEY, Contract
from mnet_cli.formats.network import Network
from mnet_cli.formats.registry import Setting
from mnet_cli.runtimes.pt2 import load
from mnet_cli.system.trusted_files import sign


def _convert(network: Network) -> ExportedProgram:
    free = None if network.contract.batch else ({0: Dim("batch")},)
    program = torch.export.export(network.module, (network.example(),), dynamic_shapes=free)
    program.example_inputs = None  # a batch of zeros that every file would carry
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            node.meta.pop("stack_trace", None)  # names the source files of this machine
    return program


PRECISIONS = {"float32": (Setting("", _convert),)}


def save(program: ExportedProgram, path: Path, contract: Contract) -> None:
    """Write the archive with its contract as an extra file."""
    content = io.BytesIO()  # torch makes a RuntimeError of what the disk says
    torch.export.save(program, content, extra_files={KEY: contract.to_json()})
    path.write_bytes(content.getvalue())
    sign(content.getvalue())


def check(path: Path) -> None:
    """Load the archive."""
    load(path, "cpu")
