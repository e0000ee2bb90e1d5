"""OpenVINO's intermediate representation: an .xml of the graph and a .bin of the weights."""

import errno
import io
import logging
import threading
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli.formats.base import Format, Run, Setting, not_loadable, require_cpu
from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.formats.onnx import convert as convert_to_onnx
from mnet_cli.system.machine import cores

if TYPE_CHECKING:
    from mnet_cli.formats.network import Network


class OpenVinoFormat(Format):
    """Run by OpenVINO on the CPU, without torch."""

    suffix = ".xml"
    companion = ".bin"
    extra = "mnet-cli[openvino]"
    packages = ("openvino", "nncf")

    @property
    def precisions(self) -> Mapping[str, tuple[Setting, ...]]:
        """Floating point, half-precision weights and integers."""
        exact = partial(self._convert_int8, fast_bias_correction=False)
        return {
            "float32": (Setting("", self._convert),),
            "float16": (Setting("half-precision weights", self._convert),),
            "int8": (
                Setting("8 bits", self._convert_int8),
                Setting("8 bits, exact bias correction", exact),
            ),
        }

    def _convert(self, network: "Network") -> Any:
        import openvino

        content = convert_to_onnx(network).SerializeToString()
        return openvino.Core().read_model(io.BytesIO(content))

    def _convert_int8(self, network: "Network", **options: Any) -> Any:
        """Calibrate with NNCF; 7-bit weights avoid overflows on processors without VNNI."""
        import nncf
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            OverflowFix,
        )

        free = network.with_batch(0)
        batches = free.batches()
        nncf.set_log_level(logging.ERROR)
        with redirect_stdout(io.StringIO()):  # where its progress bars go
            model = nncf.quantize(
                self._convert(free),
                nncf.Dataset(batches),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(batches),
                advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
                **options,
            )
        if network.contract.batch:
            model.reshape([*network.example().shape])
        return model

    def save(self, program: Any, path: Path, contract: Contract) -> None:
        """Write both files, the contract among the model's runtime information."""
        import openvino

        program.set_rt_info(contract.to_json(), KEY)
        try:
            openvino.save_model(program, path, compress_to_fp16=contract.precision == "float16")
        except RuntimeError as error:  # OpenVINO turns errors of the disk into these
            raise OSError(errno.EIO, str(error).splitlines()[-1], str(path)) from error

    def check(self, path: Path) -> None:
        """Read the graph."""
        import openvino

        openvino.Core().read_model(path)

    def load(self, path: Path, device: str) -> tuple[Run, Contract]:
        """Open a model; its .bin must be beside it. A call runs on one thread."""
        require_cpu(path, device)
        try:
            import openvino
        except ImportError as error:
            raise self.missing_extra(str(path)) from error
        settings = {  # a stream of one thread for each core; no bfloat16 where there is some
            "INFERENCE_NUM_THREADS": cores(),
            "NUM_STREAMS": cores(),
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            core = openvino.Core()
            model = core.read_model(path)
            text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else ""
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise not_loadable(path, "an OpenVINO model") from error
        own = threading.local()  # a request serves one call at a time

        def run(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
            if not hasattr(own, "request"):
                own.request = compiled.create_infer_request()
            [outputs] = own.request.infer([inputs]).values()
            return np.array(outputs)  # the request will use its own memory again

        return run, read_contract(text, str(path))
