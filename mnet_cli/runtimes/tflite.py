"""LiteRT (TensorFlow Lite) files, by LiteRT's interpreter on the CPU, without torch."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.runtimes import Run, missing_extra, not_loadable, require_cpu
from mnet_cli.system.quiet import quiet


def load(path: Path, device: str) -> tuple[Run, Contract]:
    """Open a model; a call runs on the calling thread.

    Raises:
        WeightsError: It is missing, damaged, or not from mnet export.
        MachineError: LiteRT is not installed.
        UsageError: Another device than the CPU was named.
    """
    require_cpu(path, device)
    try:
        with quiet():
            from ai_edge_litert import schema_py_generated as schema
            from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise missing_extra(path, "ai-edge-litert", "tflite") from error

    def start() -> Any:
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        return interpreter

    own = threading.local()  # an interpreter serves one call at a time
    try:
        content = path.read_bytes()
        with quiet():
            own.interpreter = start()  # verifies the flatbuffer before it is read
        text = _metadata(schema.Model.GetRootAs(content))
    except (OSError, ValueError, RuntimeError) as error:
        raise not_loadable(path, "LiteRT model") from error

    def run(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        if not hasattr(own, "interpreter"):
            own.interpreter = start()
        interpreter = own.interpreter
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], inputs)
        interpreter.invoke()
        outputs: NDArray[np.float32] = interpreter.get_tensor(
            interpreter.get_output_details()[0]["index"]
        )
        return outputs

    return run, read_contract(text, str(path))


def _metadata(model: Any) -> bytes:
    """The contract's buffer of a model; empty if it has none."""
    entries = (model.Metadata(index) for index in range(model.MetadataLength()))
    found = next((entry for entry in entries if entry.Name() == KEY.encode()), None)
    return model.Buffers(found.Buffer()).DataAsNumpy().tobytes() if found else b""
