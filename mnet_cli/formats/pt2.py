"""Archives of torch.export (.pt2): the network as a graph of ATen operators."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mnet_cli.formats.base import Format, Run, Setting, not_loadable, require_cpu
from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.system.trusted_files import read_trusted, trust

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from mnet_cli.formats.network import Network


class Pt2Format(Format):
    """Written and run by torch."""

    suffix = ".pt2"

    @property
    def precisions(self) -> Mapping[str, tuple[Setting, ...]]:
        """Floating point only."""
        return {"float32": (Setting("", self._convert),)}

    def _convert(self, network: "Network") -> "ExportedProgram":
        import torch
        from torch.export import Dim

        free = None if network.contract.batch else ({0: Dim("batch")},)
        program = torch.export.export(network.module, (network.example(),), dynamic_shapes=free)
        program.example_inputs = None  # a batch of zeros that every file would carry
        for module in program.graph_module.modules():
            for node in getattr(module, "graph", torch.fx.Graph()).nodes:
                node.meta.pop("stack_trace", None)  # names the source files of this machine
        return program

    def save(self, program: "ExportedProgram", path: Path, contract: Contract) -> None:
        """Write the archive with its contract as an extra file."""
        import torch

        content = io.BytesIO()  # given a path, torch turns errors of the disk into RuntimeError
        torch.export.save(program, content, extra_files={KEY: contract.to_json()})
        path.write_bytes(content.getvalue())
        trust(content.getvalue())

    def check(self, path: Path) -> None:
        """Load the archive."""
        self.load(path, "cpu")

    def load(self, path: Path, device: str) -> tuple[Run, Contract]:
        """Open an archive that this user's mnet wrote; a call runs on the calling thread."""
        import torch

        from mnet_cli.models.device import one_thread

        require_cpu(path, device)
        extra = {KEY: ""}
        content = read_trusted(path)
        try:
            module = torch.export.load(io.BytesIO(content), extra_files=extra).module()
        except Exception as error:  # the loader raises nearly every built-in type
            raise not_loadable(path, "an archive of torch.export") from error

        def run(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
            with one_thread(), torch.inference_mode():
                outputs: NDArray[np.float32] = module(torch.from_numpy(inputs)).numpy()
            return outputs

        return run, read_contract(extra[KEY], str(path))
