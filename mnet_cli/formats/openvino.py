"""OpenVINO's intermediate representation: an .xml of the graph and a .bin of the weights."""

import errno
import io
import logging
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import openvino

from mnet_cli.formats.contract import KEY, Contract
from mnet_cli.formats.network import Network
from mnet_cli.formats.onnx import convert as convert_to_onnx
from mnet_cli.formats.registry import Setting


def _convert(network: Network) -> Any:
    content = convert_to_onnx(network).SerializeToString()
    return openvino.Core().read_model(io.BytesIO(content))


def _convert_int8(network: Network, **options: Any) -> Any:
    """Calibrate by NNCF; the overflow fix keeps weights to 7 bits for processors without VNNI."""
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    free = network.with_batch(0)
    batches = free.batches()
    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # where its progress bars go
        model = nncf.quantize(
            _convert(free),
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
            **options,
        )
    if network.contract.batch:
        model.reshape([*network.example().shape])
    return model


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
    try:
        openvino.save_model(program, path, compress_to_fp16=contract.precision == "float16")
    except RuntimeError as error:  # all that it makes of what the disk says
        raise OSError(errno.EIO, str(error).splitlines()[-1], str(path)) from error


def check(path: Path) -> None:
    """Read the graph."""
    openvino.Core().read_model(path)
