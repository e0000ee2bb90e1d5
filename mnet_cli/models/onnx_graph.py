"""A network as an ONNX graph, written directly in a tenth of a second.

The general exporter of torch takes 2 to 15 s for these networks, more than the faster runtime
saves on a small data set. Here are just the operators that MobileNets are made of, in
operator set 18 (https://onnx.ai/onnx/operators), with batch norms folded into the
convolutions before them. `models/onnx_export` has the way for all other networks.
"""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

OPSET, IR_VERSION = 18, 10
INPUT, OUTPUT = "mnet.images", "mnet.logits"  # with dots, which traced names never have
IMAGES = ("batch", 3, "size", "size")  # the input's shape; a name stands for any length

Attributes = dict[str, Any]
Emit = Callable[[Any], tuple[str, list[Any], Attributes]]  # takes a module


class UnsupportedOperatorError(Exception):
    """A network has an operator that this module cannot write."""


def _conv(m: nn.Conv2d) -> tuple[str, list[Any], Attributes]:
    _require(m, m.padding_mode == "zeros" and not isinstance(m.padding, str))
    attributes = {
        "group": m.groups,
        "kernel_shape": [*m.kernel_size],
        "strides": [*m.stride],
        "pads": [*m.padding, *m.padding],
    }
    if any(step != 1 for step in m.dilation):
        attributes["dilations"] = [*m.dilation]
    return "Conv", [m.weight, *([] if m.bias is None else [m.bias])], attributes


def _linear(m: nn.Linear) -> tuple[str, list[Any], Attributes]:
    _require(m, m.bias is not None)
    return "Gemm", [m.weight, m.bias], {"transB": 1}


def _pool(m: nn.AdaptiveAvgPool2d) -> tuple[str, list[Any], Attributes]:
    _require(m, m.output_size in (1, (1, 1)))
    return "GlobalAveragePool", [], {}


def _flatten(m: nn.Flatten) -> tuple[str, list[Any], Attributes]:
    _require(m, (m.start_dim, m.end_dim) == (1, -1))
    return "Flatten", [], {}


def _flatten_from(axis: int) -> tuple[str, Attributes]:
    if axis != 1:  # the operator of ONNX always gives a matrix
        raise UnsupportedOperatorError(f"flatten({axis})")
    return "Flatten", {"axis": 1}


def _require(module: nn.Module, supported: bool) -> None:
    if not supported:
        raise UnsupportedOperatorError(repr(module))


MODULES: dict[type[nn.Module], Emit] = {  # module to operator, further inputs, attributes
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.ReLU: lambda m: ("Relu", [], {}),
    nn.ReLU6: lambda m: ("Clip", [np.float32(0), np.float32(6)], {}),
    nn.Hardswish: lambda m: ("HardSwish", [], {}),
    nn.Hardsigmoid: lambda m: ("HardSigmoid", [], {"alpha": 1 / 6, "beta": 0.5}),
    nn.AdaptiveAvgPool2d: _pool,
    nn.Flatten: _flatten,
    nn.Softmax: lambda m: ("Softmax", [], {"axis": m.dim}),
}
NOTHING = (nn.Identity, nn.Dropout)  # modules that do nothing in evaluation
METHODS: dict[str, Callable[..., tuple[str, Attributes]]] = {
    "flatten": _flatten_from,
    "float": lambda: ("Cast", {"to": TensorProto.FLOAT}),
    "permute": lambda *axes: ("Transpose", {"perm": [*axes]}),
}
FUNCTIONS = {  # of two tensors
    operator.add: "Add",
    operator.iadd: "Add",
    operator.sub: "Sub",
    operator.mul: "Mul",
}


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, each batch norm folded into the convolution before it.

    Only neighbours in a plain `nn.Sequential` are folded, that are used nowhere else.
    """
    folded = copy.deepcopy(module).cpu().eval()
    children = [child for m in folded.modules() for child in m._modules.values()]
    uses = Counter(map(id, children))
    for sequence in [m for m in folded.modules() if isinstance(m, nn.Sequential)]:
        if type(sequence).forward is not nn.Sequential.forward:
            continue
        for (name, layer), (next_name, following) in pairwise(list(sequence._modules.items())):
            if (
                isinstance(layer, nn.Conv2d)
                and isinstance(following, nn.BatchNorm2d)
                and uses[id(layer)] == uses[id(following)] == 1
                and following.track_running_stats
            ):
                setattr(sequence, name, fuse_conv_bn_eval(layer, following))
                setattr(sequence, next_name, nn.Identity())
    return folded


def to_onnx(
    module: nn.Module,
    input_shape: Sequence[int | str] | None = IMAGES,
    *,
    input_type: int = TensorProto.FLOAT,
) -> bytes:
    """Write `module`, with batch norms folded, as a serialised ONNX model.

    Args:
        module: Made of the modules, functions and methods above; from one input to one output.
        input_shape: Lengths of the input's axes, or names for those that are free; None for
            any shape, as the inner parts of a network take it.
        input_type: The input's element type, of `onnx.TensorProto`.

    Raises:
        UnsupportedOperatorError: The module holds something else.
    """
    try:
        return _write(module, input_shape, input_type)
    except UnsupportedOperatorError:
        raise
    except Exception as error:  # tracing runs the module's own code, which can raise anything
        raise UnsupportedOperatorError(f"cannot be traced ({error})") from error


def _write(module: nn.Module, input_shape: Sequence[int | str] | None, input_type: int) -> bytes:
    traced = fx.symbolic_trace(fold_batch_norms(module))
    modules, buffers = dict(traced.named_modules()), dict(traced.named_buffers())
    graph_nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    names: dict[fx.Node, str] = {}  # of the values that nodes give

    def constant(name: str, value: Tensor | np.float32) -> str:
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        weights.append(numpy_helper.from_array(array, name))
        return name

    def known(table: Mapping[Any, Any], key: Any) -> Any:
        if key not in table:
            raise UnsupportedOperatorError(str(getattr(key, "__name__", key)))
        return table[key]

    for node in traced.graph.nodes:
        inputs = [names[argument] for argument in node.all_input_nodes]
        attributes: Attributes = {}
        names[node] = node.name
        if node.op == "placeholder":
            names[node] = INPUT
            continue
        if node.op == "get_attr":
            constant(node.name, known(buffers, node.target))
            continue
        if node.op == "output":
            graph_nodes.append(helper.make_node("Identity", inputs, [OUTPUT], OUTPUT))
            continue
        if node.op == "call_module":
            layer = modules[node.target]
            if isinstance(layer, NOTHING):
                [names[node]] = inputs
                continue
            kind, further, attributes = known(MODULES, type(layer))(layer)
            inputs += [constant(f"{node.name}.{i}", value) for i, value in enumerate(further)]
        elif node.op == "call_function" and node.target is torch.cat:
            inputs = [names[part] for part in node.args[0]]  # a part may be there twice
            kind, attributes = "Concat", {"axis": node.args[1]}
        elif node.op == "call_function":
            kind = known(FUNCTIONS, node.target)
            if node.kwargs or len(inputs) != len(node.args):
                raise UnsupportedOperatorError(f"{kind} with a number")
        else:
            kind, attributes = known(METHODS, node.target)(*node.args[1:])
        graph_nodes.append(helper.make_node(kind, inputs, [node.name], node.name, **attributes))
    graph = helper.make_graph(
        graph_nodes,
        "mnet",
        [helper.make_tensor_value_info(INPUT, input_type, input_shape)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None)],
        weights,
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    content: bytes = onnx.shape_inference.infer_shapes(model).SerializeToString()
    return content
