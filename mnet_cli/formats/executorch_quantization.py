"""8-bit ExecuTorch programs for XNNPACK; imported only where executorch is installed."""

from typing import Any

import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from mnet_cli.formats.network import is_sensitive
from mnet_cli.system.quiet import quiet

with quiet():
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

RELU6 = (torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default)


class Relu6Quantizer(XNNPACKQuantizer):  # type: ignore[misc]  # untyped
    """XNNPACK's, which joins a ReLU to its convolution, and here a ReLU6 too.

    Alone it rounds before a ReLU6 to steps of a range that reaches far beyond 6.
    """

    def annotate(self, model: GraphModule) -> GraphModule:
        """Give each ReLU6 the range of its output, and its convolution none."""
        found: GraphModule = super().annotate(model)
        for node in found.graph.nodes:
            if node.target in RELU6 and Q_ANNOTATION_KEY in node.meta:
                before, after = node.args[0].meta[Q_ANNOTATION_KEY], node.meta[Q_ANNOTATION_KEY]
                after.input_qspec_map, after.output_qspec = {}, before.output_qspec
                before.output_qspec = None
        return found


def build_quantizer(*, sensitive_in_float: bool) -> Relu6Quantizer:
    """Build the quantizer: weights by channel, activations by tensor.

    Args:
        sensitive_in_float: Leave squeeze-excitation and the head in floating point.
    """
    quantizer = Relu6Quantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    if sensitive_in_float:
        quantizer.set_filter_function(_is_robust)
    return quantizer


def _is_robust(node: Any) -> bool:
    """Whether a node of the graph may be quantized, by the modules that it lies in."""
    stack = node.meta.get("nn_module_stack", {}).values()
    return not any(is_sensitive(path, str(kind)) for path, kind in stack)
