"""ONNX files (https://onnx.ai), run by ONNX Runtime; 8-bit ones by its quantizer."""

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from mnet_cli.errors import WeightsError
from mnet_cli.formats.base import Format, Run, Setting, not_loadable, require_cpu
from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.models.onnx_forward import OnnxForward

if TYPE_CHECKING:
    from onnx import ModelProto

    from mnet_cli.formats.network import Network
    from mnet_cli.formats.quantization import Observed, QuantizationSetting


class OnnxFormat(Format):
    """Written directly where that is possible, and run without torch."""

    suffix = ".onnx"

    @property
    def precisions(self) -> "Mapping[str, tuple[Setting, ...]]":
        """Floating point, half precision and integers."""
        from mnet_cli.formats.quantization import SETTINGS

        return {
            "float32": (Setting("", convert),),
            "float16": (Setting("", _convert_half),),
            "int8": tuple(
                Setting(setting.title, partial(_convert_int8, setting)) for setting in SETTINGS
            ),
        }

    def save(self, program: "ModelProto", path: Path, contract: Contract) -> None:
        """Write the model with its contract among the metadata properties."""
        import onnx

        del program.metadata_props[:]
        onnx.helper.set_model_props(program, {KEY: contract.to_json()})
        path.write_bytes(program.SerializeToString())

    def check(self, path: Path) -> None:
        """Check types and shapes of the whole graph."""
        import onnx

        onnx.checker.check_model(onnx.load_from_string(path.read_bytes()), full_check=True)

    def load(self, path: Path, device: str) -> tuple[Run, Contract]:
        """Open a file; a call runs on the calling thread."""
        require_cpu(path, device)
        try:
            forward = OnnxForward(path.read_bytes())
        except OSError as error:
            found = f"cannot be read ({error.strerror or error})"
            raise WeightsError(
                str(path), found, next_step="Name a file that mnet export wrote"
            ) from error
        except Exception as error:  # ONNX Runtime's errors have no common base class but this
            raise not_loadable(path, "an ONNX model") from error
        return forward, read_contract(forward.metadata.get(KEY), str(path))


def convert(network: "Network") -> "ModelProto":
    """Convert a network to a graph in float32."""
    import onnx

    from mnet_cli.models.onnx_export import onnx_bytes

    free_batch = not network.contract.batch
    content = onnx_bytes(network.module, network.example(), free_batch=free_batch)
    model: ModelProto = onnx.load_from_string(content)
    return model


def _convert_half(network: "Network") -> "ModelProto":
    """Weights and sums in half precision; inputs and outputs stay as they are."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = ONNXModel(convert_float_to_float16(convert(network), keep_io_types=True))
    half.topological_sort()  # the casts of inputs were put at the end
    model: ModelProto = half.model
    return model


@lru_cache(maxsize=1)
def _observed(network: "Network") -> "tuple[ModelProto, dict[str, Observed]]":
    from mnet_cli.formats.quantization import observe

    model = convert(network.with_batch(0))
    return model, observe(model, network.calibration())


@lru_cache(maxsize=1)
def _costs(network: "Network") -> dict[str, float]:
    from mnet_cli.formats.quantization import PROBES, layer_costs

    model, observed = _observed(network)
    return layer_costs(model, network.calibration()[:PROBES], observed)


def _convert_int8(setting: "QuantizationSetting", network: "Network") -> "ModelProto":
    from mnet_cli.formats.quantization import quantize

    model = quantize(*_observed(network), setting, partial(_costs, network))
    if network.contract.batch:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = network.contract.batch
    return model
