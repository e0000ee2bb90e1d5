"""An ONNX graph in 8-bit integers, by ONNX Runtime's QDQ quantizer with ranges of our own.

What is done besides, and why (a trained MobileNet loses several points of top-1 without):

- Ranges are 99.99% percentiles of what 2,048 values a tensor and photograph show: extremes make
  steps too coarse for the rest, which MobileNetV3 does not survive.
- Weights use 7 bits, as sums of 8 by 8 bits overflow in kernels for processors without VNNI
  (`reduce_range` in ONNX Runtime's quantization guide). Depthwise layers have kernels of their
  own there, which sum in 32 bits, so they keep 8.
- What rounding the weights does to the mean of a channel is taken out of its bias
  (Nagel et al., arXiv 1906.04721, section 4.2).
- The last layer stays in floating point: it is small, and its errors reach the logits whole.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from mnet_cli.models.onnx_forward import OnnxForward
from mnet_cli.system.machine import BATCH, cores
from mnet_cli.system.quiet import quiet

SAMPLED = 2048  # values of a tensor and photograph that its range is found from
TAIL = 0.01  # per cent of the values beyond each end of a range
PROBES = 32  # inputs that the cost of a layer is measured on
WEIGHTED = ("Conv", "Gemm")
KINDS = (*WEIGHTED, "Add", "Mul", "GlobalAveragePool", "Clip", "Relu", "HardSwish")


@dataclass(frozen=True)
class QuantizationSetting:
    """A trade between size and accuracy; an export tries them in order.

    Attributes:
        title: For people.
        bits: Of activations.
        cost: Layers that alone change the logits by more than this share of their standard
            deviation stay in floating point, with what lies beside them.
        gates: Squeeze-excitation and the whole head stay in floating point too.
    """

    title: str
    bits: int = 8
    cost: float = np.inf
    gates: bool = False


SETTINGS = (
    QuantizationSetting("8 bits"),
    QuantizationSetting("8 bits, the most sensitive layers in float", cost=0.1),
    QuantizationSetting("8 bits, all sensitive layers in float", cost=0.03),
    QuantizationSetting("16-bit activations", bits=16),
    QuantizationSetting(
        "16-bit activations, squeeze-excitation and head in float", bits=16, gates=True
    ),
)


@dataclass(frozen=True)
class Observed:
    """What calibration saw of a tensor.

    Attributes:
        low, high: Its range.
        mean: Of each channel (C,); empty where a tensor has none.
    """

    low: float
    high: float
    mean: NDArray[np.float32]


def quantize(
    model: ModelProto,
    observed: Mapping[str, Observed],
    setting: QuantizationSetting,
    costs: Callable[[], Mapping[str, float]],
) -> ModelProto:
    """Quantize a graph that `to_onnx` wrote.

    Args:
        model: In float32; left as it is.
        observed: What `observe` saw of it.
        setting: The setting to use.
        costs: Gives what `layer_costs` found; called only where the setting asks for it.
    """
    head = [node.name for node in model.graph.node if node.op_type == "Gemm"]
    kept = set(head if setting.gates else head[-1:])
    if setting.gates:
        kept |= set(_squeeze_excitation(model))
    if np.isfinite(setting.cost):
        kept |= _beside(model, {name for name, cost in costs().items() if cost > setting.cost})
    return _corrected(model, observed, setting.bits, kept)


def observe(model: ModelProto, inputs: NDArray[Any]) -> dict[str, Observed]:
    """Run the graph, of any batch, on each input and find the range of every tensor of floats."""
    widened = ModelProto()
    widened.CopyFrom(model)
    known = {value.name for value in model.graph.output}
    tensors = [
        value
        for value in model.graph.value_info
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in known
    ]
    widened.graph.output.extend(tensors)
    session = OnnxForward(widened.SerializeToString()).session
    [taken] = session.get_inputs()
    names = [value.name for value in session.get_outputs()]
    if taken.type == "tensor(float)":
        names.append(taken.name)

    def look(fed: NDArray[Any]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """A sample of each tensor, and its mean by channel, for one input."""
        seen = []
        for array in [*session.run(None, {taken.name: fed}), fed][: len(names)]:
            flat = array.ravel()
            sample = flat[:: max(1, len(flat) // SAMPLED)].copy()  # a view would keep all of it
            seen.append((sample, array.mean(axis=(0, *range(2, array.ndim)))))
        return seen

    with ThreadPoolExecutor(cores()) as pool:
        inputs_seen = list(pool.map(look, np.split(inputs, len(inputs))))
    observed = {}
    for name, seen in zip(names, zip(*inputs_seen, strict=True), strict=True):
        samples, means = zip(*seen, strict=True)
        low, high = np.percentile(np.concatenate(samples), (TAIL, 100 - TAIL))
        observed[name] = Observed(float(low), float(high), np.mean(means, axis=0))
    return observed


def layer_costs(
    model: ModelProto, inputs: NDArray[Any], observed: Mapping[str, Observed]
) -> dict[str, float]:
    """Quantize each convolution and linear layer alone, and see what it does to the logits.

    Returns:
        By layer the root mean square of the change, as a share of the logits' deviation.
    """
    expected = _run(model, inputs)
    layers = [node.name for node in model.graph.node if node.op_type in KINDS]
    costs = {}
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            others = [name for name in layers if name != node.name]
            change = _run(_quantized(model, observed, 8, others), inputs) - expected
            costs[node.name] = float(np.sqrt(np.mean(change**2)) / expected.std())
    return costs


def _beside(model: ModelProto, names: set[str]) -> set[str]:
    """These layers and all that share a tensor with one, or the tensor would be rounded yet."""
    weights = {weight.name for weight in model.graph.initializer}
    inside = [node for node in model.graph.node if node.name in names]
    shared = {tensor for node in inside for tensor in (*node.input, *node.output)} - weights
    return {node.name for node in model.graph.node if shared & {*node.input, *node.output}}


def _corrected(
    model: ModelProto, observed: Mapping[str, Observed], bits: int, kept: Collection[str]
) -> ModelProto:
    """Quantize, with biases that make up for what rounding the weights does to the mean."""
    rounded = _quantized(model, observed, bits, kept)
    arrays = {w.name: numpy_helper.to_array(w) for w in rounded.graph.initializer}
    shifted = ModelProto()
    shifted.CopyFrom(model)
    weights = {w.name: w for w in shifted.graph.initializer}
    for node in shifted.graph.node:
        if node.op_type not in WEIGHTED or f"{node.input[1]}_quantized" not in arrays:
            continue
        taken, weight, bias = node.input
        exact = numpy_helper.to_array(weights[weight])
        scale = arrays[f"{weight}_scale"].reshape(-1, *[1] * (exact.ndim - 1))
        error = arrays[f"{weight}_quantized"].astype(np.float32) * scale - exact
        per_input = error.sum(axis=tuple(range(2, error.ndim)))  # (out, in of its group)
        mean = observed[taken].mean
        drift = per_input @ mean if per_input.shape[1] > 1 else per_input[:, 0] * mean
        moved = numpy_helper.to_array(weights[bias]) - drift.astype(np.float32)
        weights[bias].CopyFrom(numpy_helper.from_array(moved, bias))
    return _quantized(shifted, observed, bits, kept)


def _quantized(
    model: ModelProto, observed: Mapping[str, Observed], bits: int, kept: Collection[str]
) -> ModelProto:
    """Insert quantization around all layers but those `kept` in floating point."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    ranges = {
        name: TensorData(lowest=np.float32(seen.low), highest=np.float32(seen.high))
        for name, seen in observed.items()
    }
    eight_bits = [
        {"quant_type": QuantType.QInt8, "axis": 0, "reduce_range": False, "symmetric": True}
    ]
    depthwise = [node.input[1] for node in model.graph.node if _is_depthwise(node)]
    with quiet():
        quantizer = QDQQuantizer(
            copy.deepcopy(model),
            per_channel=True,
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt16 if bits == 16 else QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
            nodes_to_quantize=[],
            nodes_to_exclude=list(kept),
            op_types_to_quantize=list(KINDS),
            extra_options={
                "WeightSymmetric": True,
                "TensorQuantOverrides": dict.fromkeys(depthwise, eight_bits),
            },
        )
        quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized: ModelProto = quantizer.model.model
    return quantized


def _squeeze_excitation(model: ModelProto) -> list[str]:
    """The layers between a global pool inside the features and the gate that it scales with."""
    producers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for gate in model.graph.node:
        if gate.op_type != "Mul":
            continue
        waiting = [producers[name] for name in gate.input if name in producers]
        branch = next((node for node in waiting if node.op_type == "HardSigmoid"), None)
        found += [gate.name] if branch else []
        while branch is not None and branch.op_type != "GlobalAveragePool":
            found.append(branch.name)
            branch = producers.get(branch.input[0])
        found += [branch.name] if branch is not None else []
    return found


def _is_depthwise(node: NodeProto) -> bool:
    return node.op_type == "Conv" and any(
        attribute.name == "group" and attribute.i > 1 for attribute in node.attribute
    )


def _run(model: ModelProto, inputs: NDArray[Any]) -> NDArray[np.float32]:
    """The outputs of a graph, of any batch, which each core computes for some of the inputs."""
    forward = OnnxForward(model.SerializeToString())
    parts = [inputs[at : at + BATCH] for at in range(0, len(inputs), BATCH)]
    with ThreadPoolExecutor(cores()) as pool:
        return np.concatenate([*pool.map(forward, parts)])
