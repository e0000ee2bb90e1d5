"""ONNX files (https://onnx.ai), written directly; 8-bit ones by ONNX Runtime's quantizer."""

from functools import lru_cache, partial
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto

from mnet_cli.formats.contract import KEY, Contract
from mnet_cli.formats.network import Network
from mnet_cli.formats.quantization import (
    LADDER,
    PROBES,
    Observed,
    Rung,
    layer_costs,
    observe,
    quantize,
)
from mnet_cli.formats.registry import Setting
from mnet_cli.models.onnx_graph import to_onnx


def convert(network: Network) -> ModelProto:
    """Write the network as a graph in float32."""
    contract, example = network.contract, network.example()
    batch: int | str = contract.batch or "batch"
    kind = TensorProto.UINT8 if contract.baked else TensorProto.FLOAT
    content = to_onnx(network.module, [batch, *example.shape[1:]], input_type=kind)
    model: ModelProto = onnx.load_from_string(content)
    return model


def _convert_half(network: Network) -> ModelProto:
    """Weights and sums in half precision; inputs and outputs stay as they are."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = ONNXModel(convert_float_to_float16(convert(network), keep_io_types=True))
    half.topological_sort()  # the casts of inputs were put at the end
    model: ModelProto = half.model
    return model


@lru_cache(maxsize=1)
def _observed(network: Network) -> tuple[ModelProto, dict[str, Observed]]:
    model = convert(network.with_batch(0))
    return model, observe(model, network.calibration())


@lru_cache(maxsize=1)
def _costs(network: Network) -> dict[str, float]:
    model, observed = _observed(network)
    return layer_costs(model, network.calibration()[:PROBES], observed)


def _convert_int8(rung: Rung, network: Network) -> ModelProto:
    model = quantize(*_observed(network), rung, partial(_costs, network))
    if network.contract.batch:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = network.contract.batch
    return model


PRECISIONS = {
    "float32": (Setting("", convert),),
    "float16": (Setting("", _convert_half),),
    "int8": tuple(Setting(rung.title, partial(_convert_int8, rung)) for rung in LADDER),
}


def save(program: ModelProto, path: Path, contract: Contract) -> None:
    """Write the model with its contract among the metadata properties."""
    del program.metadata_props[:]
    onnx.helper.set_model_props(program, {KEY: contract.to_json()})
    path.write_bytes(program.SerializeToString())


def check(path: Path) -> None:
    """Check types and shapes of the whole graph."""
    onnx.checker.check_model(onnx.load_from_string(path.read_bytes()), full_check=True)
