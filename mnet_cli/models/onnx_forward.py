"""A network's forward pass by ONNX Runtime; nothing here imports torch."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from mnet_cli.system.machine import BATCH


class OnnxForward:
    """A forward pass of ONNX Runtime on the calling thread; it can be sent to other processes.

    Args:
        model: The serialised ONNX model, of one input and one output.

    Attributes:
        metadata: What stands in the file's own metadata.
        batch: Images that the graph takes at a time; 0 for any number.
        fingerprint: Of what is computed: SHA-256 of the model, unless it is set otherwise.
        note: Why the graph is not as usual; empty where it is.
    """

    def __init__(self, model: bytes) -> None:
        import onnxruntime

        onnxruntime.disable_telemetry_events()  # it would write to the user's cache and to stderr
        self.model = model
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self.note = ""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        [taken] = self.session.get_inputs()
        self.input = taken.name
        self.batch = taken.shape[0] if taken.shape and isinstance(taken.shape[0], int) else 0
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map

    def __call__(self, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        """Run the network, `BATCH` inputs at a time, or as many as the graph takes."""
        step = self.batch or BATCH
        parts = [inputs[at : at + step] for at in range(0, len(inputs), step)]
        return np.concatenate([self.session.run(None, {self.input: part})[0] for part in parts])

    def __reduce__(self) -> tuple[type["OnnxForward"], tuple[bytes]]:
        return type(self), (self.model,)
