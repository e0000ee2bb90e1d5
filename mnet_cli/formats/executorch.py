"""ExecuTorch programs (.pte), lowered to XNNPACK and run by its runtime on the CPU.

A program is what is saved: the file holds the contract as a constant method beside `forward`.
"""

import copy
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli.formats.base import Format, Run, Setting, not_loadable, require_cpu
from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.system.quiet import quiet

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from mnet_cli.formats.network import Network


class ExecuTorchFormat(Format):
    """For PyTorch's runtime on phones and small devices."""

    suffix = ".pte"
    extra = "mnet-cli[executorch]"
    packages = ("executorch",)
    static = True

    @property
    def precisions(self) -> Mapping[str, tuple[Setting, ...]]:
        """Floating point and integers."""
        in_float = partial(self._convert_int8, sensitive_in_float=True)
        return {
            "float32": (Setting("", self._convert),),
            "int8": (
                Setting("8 bits", self._convert_int8),
                Setting("8 bits, squeeze-excitation and head in float", in_float),
            ),
        }

    def _convert(self, network: "Network") -> "ExportedProgram":
        import torch

        return _lower(torch.export.export(network.module, (network.example(),)))

    def _convert_int8(
        self, network: "Network", *, sensitive_in_float: bool = False
    ) -> "ExportedProgram":
        """Calibrate with ranges from histograms; weights by channel."""
        import torch

        with quiet():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

            from mnet_cli.formats.executorch_quantization import build_quantizer

            example = network.example()
            prepared = prepare_pt2e(
                torch.export.export(network.module, (example,)).module(),
                build_quantizer(sensitive_in_float=sensitive_in_float),
            )
            with torch.inference_mode():
                for inputs in network.batches():
                    prepared(torch.from_numpy(inputs))
            return _lower(torch.export.export(convert_pt2e(prepared), (example,)))

    def save(self, program: "ExportedProgram", path: Path, contract: Contract) -> None:
        """Write the program; lowering took the time, so the contract is added only here."""
        with quiet():
            from executorch.exir import EdgeProgramManager

            forward = copy.deepcopy(program)  # what follows changes it
            edge = EdgeProgramManager({"forward": forward}, {KEY: contract.to_json()})
            path.write_bytes(edge.to_executorch().buffer)

    def check(self, path: Path) -> None:
        """Load the program as it will be, its structure verified."""
        self.load(path, "cpu")

    def load(self, path: Path, device: str) -> tuple[Run, Contract]:
        """Open a program; a call runs on one thread."""
        require_cpu(path, device)
        runtime = self._runtime(path)
        import torch

        try:
            content = path.read_bytes()
            with quiet():
                program = runtime.load_program(content)
                has_contract = KEY in program.method_names
                [text] = program.load_method(KEY).execute([]) if has_contract else [""]
                program.load_method("forward")
        except (OSError, RuntimeError, KeyError) as error:
            raise not_loadable(path, "an ExecuTorch program") from error
        own = threading.local()  # a program's methods have one memory, so each thread has its own

        def run(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
            if not hasattr(own, "program"):
                own.program = runtime.load_program(content)
            [outputs] = own.program.load_method("forward").execute([torch.from_numpy(inputs)])
            logits: NDArray[np.float32] = outputs.numpy()
            return logits

        return run, read_contract(text, str(path))

    def _runtime(self, path: Path) -> Any:
        """The runtime, its pool of threads set to one before anything uses it."""
        try:
            with quiet():
                from executorch.extension.pybindings import portable_lib
                from executorch.runtime import Runtime

                if portable_lib._threadpool_get_thread_count() != 1:
                    portable_lib._unsafe_reset_threadpool(1)
                return Runtime.get()
        except ImportError as error:
            raise self.missing_extra(str(path)) from error


def _lower(program: "ExportedProgram") -> "ExportedProgram":
    """Give XNNPACK all that it can run."""
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        edge: ExportedProgram = lowered.exported_program()
        return edge
