"""OpenVINO's .xml and .bin, by OpenVINO on the CPU, without torch."""

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.runtimes import Run, missing_extra, not_loadable, require_cpu
from mnet_cli.system.machine import cores

SETTINGS = {  # a stream of one thread for each core, and no bfloat16 where a processor has it
    "INFERENCE_NUM_THREADS": cores(),
    "NUM_STREAMS": cores(),
    "INFERENCE_PRECISION_HINT": "f32",
}


def load(path: Path, device: str) -> tuple[Run, Contract]:
    """Open a model; its .bin must lie beside it.

    Raises:
        WeightsError: It is missing, damaged, or not from mnet export.
        MachineError: OpenVINO is not installed.
        UsageError: Another device than the CPU was named.
    """
    require_cpu(path, device)
    try:
        import openvino
    except ImportError as error:
        raise missing_extra(path, "openvino", "openvino") from error
    try:
        core = openvino.Core()
        model = core.read_model(path)
        text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else ""
        compiled = core.compile_model(model, "CPU", SETTINGS)
    except RuntimeError as error:
        raise not_loadable(path, "OpenVINO model") from error
    own = threading.local()  # a request serves one call at a time

    def run(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        [outputs] = own.request.infer([inputs]).values()
        return np.array(outputs)  # the request's own memory is used again

    return run, read_contract(text, str(path))
