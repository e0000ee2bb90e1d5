"""Conversion to LiteRT; imported only where litert-torch and ai-edge-quantizer are installed."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mnet_cli.formats.contract import KEY, Contract
from mnet_cli.formats.network import SQUEEZE_EXCITATION, Network
from mnet_cli.formats.quantization import SAMPLED, TAIL
from mnet_cli.system.quiet import quiet

with quiet():
    import litert_torch
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_litert.tools import flatbuffer_utils
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.quantizer import Quantizer

LARGEST_BIAS = 2**30  # half of what 32 bits hold
LEAST_STEP = 1e-4  # where calibration saw nothing but zeros
CHANNEL_AXES = {  # of the weights of each kind of layer
    schema.BuiltinOperator.CONV_2D: 0,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D: 3,
    schema.BuiltinOperator.FULLY_CONNECTED: 0,
}
EVERYTHING = ".*"  # as a pattern of the names of layers

Ranges = dict[str, dict[str, Any]]  # of tensors by name: `min` and `max`


def convert(network: Network) -> bytes:
    """Convert for the batch of the contract."""
    litert_torch.config.show_progress = False
    with quiet():
        return bytes(litert_torch.convert(network.module, (network.example(),)).model_content())


@lru_cache(maxsize=1)
def _calibrated(network: Network) -> tuple[bytes, Ranges]:
    """The model, its channels wide enough for 8 bits, and the range of each of its tensors."""
    content = convert(network)
    with quiet():
        ranges = _ranges(content, network.batches())
        return _widened(content, ranges), ranges


def convert_int8(network: Network, *, sensitive_in_float: bool = False) -> bytes:
    """Quantize weights by channel and activations.

    Args:
        network: Calibrates its own ranges.
        sensitive_in_float: Leave squeeze-excitation and the last layer in floating point.
    """
    content, ranges = _calibrated(network)
    with quiet():
        quantizer = _quantizer(content, _sensitive(network) if sensitive_in_float else None)
        return bytes(quantizer.quantize(ranges, enable_progress_report=False).quantized_model)


def _sensitive(network: Network) -> str:
    """Squeeze-excitation and the last layer, as a pattern: their errors change the logits most.

    A layer has the name of what it gives, and the network's last that of the output.
    """
    linear = [name for name, one in network.module.named_modules() if isinstance(one, nn.Linear)]
    return f"{SQUEEZE_EXCITATION}|serving_default_output|Linear_{linear[-1].rpartition('.')[2]};"


def _ranges(content: bytes, parts: Sequence[NDArray[Any]]) -> Ranges:
    """The ranges of a model's tensors, without extremes, as the quantizer takes them.

    Its own follow the mean of each input's extremes, from the first input on: that cuts off
    what few photographs show, and depends on their order.
    """
    interpreter = Interpreter(
        model_content=content, experimental_preserve_all_tensors=True, num_threads=1
    )
    [(signature, names)] = interpreter.get_signature_list().items()
    [name] = names["inputs"]
    ranges: Ranges = _quantizer(content).calibrate({signature: [{name: parts[0]}]}, num_threads=1)
    interpreter.allocate_tensors()
    [taken] = interpreter.get_input_details()
    places = {one["name"]: one["index"] for one in interpreter.get_tensor_details()}
    values: dict[str, list[NDArray[Any]]] = {key: [] for key in ranges if ranges[key]}
    random = np.random.default_rng(0)
    for part in parts:
        interpreter.set_tensor(taken["index"], part)
        interpreter.invoke()
        for key, seen in values.items():
            every = interpreter.get_tensor(places[key]).reshape(-1)
            few = every.size <= SAMPLED
            seen.append(every if few else every[random.integers(every.size, size=SAMPLED)])
    for key, seen in values.items():
        low, high = np.percentile(np.concatenate(seen), (TAIL, 100 - TAIL))
        shape = np.shape(ranges[key]["min"])
        ranges[key]["min"] = np.full(shape, min(low, 0), np.float32)
        ranges[key]["max"] = np.full(shape, max(high, 0), np.float32)
    return ranges


def _quantizer(content: bytes, spared: str | None = None) -> Any:
    """8 bits for all but the input, the output, and layers whose names match `spared`."""
    quantizer = Quantizer(content)
    quantizer.add_static_config(EVERYTHING, TFLOperationName.ALL_SUPPORTED, 8, 8)
    in_float = [(EVERYTHING, TFLOperationName.INPUT), (EVERYTHING, TFLOperationName.OUTPUT)]
    if spared:
        in_float.append((spared, TFLOperationName.ALL_SUPPORTED))
    for layers, operation in in_float:
        quantizer.update_quantization_recipe(layers, operation, None, AlgorithmName.NO_QUANTIZE)
    return quantizer


def _widened(content: bytes, ranges: Ranges) -> bytes:
    """Give the channels that training has emptied a weight that their bias can be counted in.

    A bias is a whole number, of 32 bits, of the input's step times the channel's; where all of
    a channel's weights are next to nothing, so is its step, and the bias overflows. The gates
    of MobileNetV3 are then anything but what they were (top-1 of 86% fell to 51%). A weight of
    some 1e-5 changes nothing else.
    """
    model: Any = flatbuffer_utils.read_model_from_bytearray(content)
    [graph] = model.subgraphs
    for operator in graph.operators:
        code = flatbuffer_utils.get_builtin_code_from_operator_code(
            model.operatorCodes[operator.opcodeIndex]
        )
        if code not in CHANNEL_AXES:
            continue
        taken, weight, bias = (graph.tensors[index] for index in operator.inputs)
        seen = ranges[taken.name.decode()]
        step = max((seen["max"].max() - seen["min"].min()) / 255, LEAST_STEP)
        weights = np.array(_floats(model, weight)).reshape(weight.shape)
        channels = np.moveaxis(weights, CHANNEL_AXES[code], 0)  # (C, …), the same memory
        least = 127 * np.abs(_floats(model, bias)) / (step * LARGEST_BIAS)
        low = np.abs(channels).max(axis=(*range(1, channels.ndim),)) < least
        channels[(low, *[0] * (channels.ndim - 1))] = least[low]
        model.buffers[weight.buffer].data = weights.reshape(-1).view(np.uint8)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _floats(model: Any, tensor: Any) -> NDArray[np.float32]:
    return np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.float32)


def write_model(program: bytes, path: Path, contract: Contract) -> None:
    """Write the model with its contract in a buffer that its metadata names."""
    model: Any = flatbuffer_utils.read_model_from_bytearray(program)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(contract.to_json().encode(), np.uint8)
    entry.name, entry.buffer = KEY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))
