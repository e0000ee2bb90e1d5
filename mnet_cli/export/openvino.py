"""OpenVINO's intermediate representation: an .xml of the graph and a .bin of the weights."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import openvino

from mnet_cli.contract import KEY, Contract
from mnet_cli.export.formats import Setting
from mnet_cli.export.network import Network
from mnet_cli.export.onnx import convert as convert_to_onnx


def _convert(network: Network) -> Any:
    content = convert_to_onnx(network).SerializeToString()
    return openvino.Core().read_model(io.BytesIO(content))


def _convert_int8(network: Network, **options: Any) -> Any:
    """Calibrate by NNCF; the overflow fix keeps weights to 7 bits for processors without VNNI."""
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    inputs = network.calibration()
    size = network.contract.batch or 1
    parts = [inputs[at : at + size] for at in range(0, len(inputs) - size + 1, size)]
    return nncf.quantize(
        _convert(network),
        nncf.Dataset(parts),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(parts),
        advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
        **options,
    )


PRECISIONS = {
    "float32": (Setting("", _convert),),
    "float16": (Setting("half-precision weights", _convert),),
    "int8": (
        Setting("8 bits", _convert_int8),
        Setting(
            "8 bits, exact bias correction", partial(_convert_int8, fast_bias_correction=False)
        ),
    ),
}


def save(program: Any, path: Path, contract: Contract) -> None:
    """Write both files, the contract among the model's runtime information."""
    program.set_rt_info(contract.to_json(), KEY)
    openvino.save_model(program, path, compress_to_fp16=contract.precision == "float16")


def check(path: Path) -> None:
    """Read the graph."""
    openvino.Core().read_model(path)
