"""LiteRT (TensorFlow Lite) flatbuffers, run by LiteRT's interpreter on the CPU."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli.formats.base import Format, Run, Setting, not_loadable, require_cpu
from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.system.quiet import quiet

if TYPE_CHECKING:
    from mnet_cli.formats.network import Network


class TfliteFormat(Format):
    """Written by litert-torch, 8-bit files by ai-edge-quantizer; run without torch."""

    suffix = ".tflite"
    extra = "mnet-cli[tflite]"
    packages = ("litert_torch", "ai_edge_litert", "ai_edge_quantizer")
    static = True

    @property
    def precisions(self) -> Mapping[str, tuple[Setting, ...]]:
        """Floating point and integers."""
        return {
            "float32": (Setting("", self._convert),),
            "int8": (
                Setting("8 bits", self._convert_int8),
                Setting(
                    "8 bits, squeeze-excitation and last layer in float",
                    self._convert_int8_sensitive_in_float,
                ),
            ),
        }

    def _convert(self, network: "Network") -> bytes:
        from mnet_cli.formats.tflite_conversion import convert

        return convert(network)

    def _convert_int8(self, network: "Network") -> bytes:
        from mnet_cli.formats.tflite_conversion import convert_int8

        return convert_int8(network)

    def _convert_int8_sensitive_in_float(self, network: "Network") -> bytes:
        from mnet_cli.formats.tflite_conversion import convert_int8

        return convert_int8(network, sensitive_in_float=True)

    def save(self, program: bytes, path: Path, contract: Contract) -> None:
        """Write the model with its contract in a buffer that its metadata names."""
        from mnet_cli.formats.tflite_conversion import write_model

        write_model(program, path, contract)

    def check(self, path: Path) -> None:
        """Have the interpreter verify the flatbuffer and plan its tensors."""
        self.load(path, "cpu")

    def load(self, path: Path, device: str) -> tuple[Run, Contract]:
        """Open a model; a call runs on the calling thread."""
        require_cpu(path, device)
        try:
            with quiet():
                from ai_edge_litert import schema_py_generated as schema
                from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise self.missing_extra(str(path)) from error

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
            raise not_loadable(path, "a LiteRT model") from error

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
