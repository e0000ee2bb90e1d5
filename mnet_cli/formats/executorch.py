"""ExecuTorch programs, lowered to XNNPACK; 8-bit ones by its own quantizer.

A program is what is saved: the file holds the contract as a constant method beside `forward`.
"""

import copy
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from mnet_cli.formats.contract import KEY, Contract
from mnet_cli.formats.network import Network
from mnet_cli.formats.registry import Setting
from mnet_cli.runtimes.executorch import load
from mnet_cli.system.quiet import quiet

with quiet():
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

RELU6 = (torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default)
# The small layers whose errors reach far: squeeze-excitation, and what makes the logits.
SENSITIVE = re.compile(r"SqueezeExcitation|\bclassifier\b")


def _convert(network: Network) -> ExportedProgram:
    return _lower(torch.export.export(network.module, (network.example(),)))


def _convert_int8(network: Network, *, spare: bool = False) -> ExportedProgram:
    """Calibrate with ranges from histograms, weights by channel; `spare` leaves some in float."""
    with quiet():
        quantizer = _Quantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        if spare:
            quantizer.set_filter_function(_is_robust)
        example = network.example()
        prepared = prepare_pt2e(torch.export.export(network.module, (example,)).module(), quantizer)
        with torch.inference_mode():
            for inputs in network.batches():
                prepared(torch.from_numpy(inputs))
        return _lower(torch.export.export(convert_pt2e(prepared), (example,)))


class _Quantizer(XNNPACKQuantizer):  # type: ignore[misc]  # untyped
    """XNNPACK's, which joins a ReLU to its convolution, and here a ReLU6 too.

    Alone it rounds before a ReLU6 to steps of a range that reaches far beyond 6.
    """

    def annotate(self, model: GraphModule) -> GraphModule:
        """Give each ReLU6 the range of what leaves it, and its convolution none."""
        found: GraphModule = super().annotate(model)
        for node in found.graph.nodes:
            if node.target in RELU6 and Q_ANNOTATION_KEY in node.meta:
                before, after = node.args[0].meta[Q_ANNOTATION_KEY], node.meta[Q_ANNOTATION_KEY]
                after.input_qspec_map, after.output_qspec = {}, before.output_qspec
                before.output_qspec = None
        return found


def _is_robust(node: Any) -> bool:
    """Whether a node of the graph may be quantized, by the modules that it lies in."""
    stack = node.meta.get("nn_module_stack", {}).values()
    return not any(SENSITIVE.search(f"{path} {kind}") for path, kind in stack)


def _lower(program: ExportedProgram) -> ExportedProgram:
    """Give XNNPACK all that it can run."""
    with quiet():
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        edge: ExportedProgram = lowered.exported_program()
        return edge


PRECISIONS: dict[str, tuple[Setting, ...]] = {
    "float32": (Setting("", _convert),),
    "int8": (
        Setting("8 bits", _convert_int8),
        Setting("8 bits, squeeze-excitation and head in float", partial(_convert_int8, spare=True)),
    ),
}


def save(program: ExportedProgram, path: Path, contract: Contract) -> None:
    """Write the program; lowering took the time, so the contract is added only here."""
    with quiet():
        forward = copy.deepcopy(program)  # what follows changes it
        edge = EdgeProgramManager({"forward": forward}, {KEY: contract.to_json()})
        path.write_bytes(edge.to_executorch().buffer)


def check(path: Path) -> None:
    """Load the program as it will be, its structure verified."""
    load(path, "cpu")
