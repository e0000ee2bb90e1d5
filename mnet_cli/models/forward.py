"""The fast forward pass of a network that does not learn."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnet_cli.models.onnx_graph import INPUT, fold_batch_norms, to_onnx

Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images (N, 3, S, S), normalised, to whatever the network puts out; both float32."""

BATCH = 8  # images that ONNX Runtime takes at a time: more no longer fit a CPU's cache


def compile_forward(module: nn.Module, device: torch.device) -> Forward:
    """Make the fastest forward pass of a module in evaluation mode on `device`.

    On a CPU that is ONNX Runtime, 2 to 3 times as fast as PyTorch with folded batch norms and
    channels last on MobileNets; elsewhere it is the latter. The weights are taken as they are
    now. Outputs agree with the module's to 1e-4 of their range.

    Args:
        module: A network, or a part of one that begins at the image.
        device: Where to run.
    """
    if device.type == "cpu":
        return _onnx_forward(module)
    folded = fold_batch_norms(module).to(device).to(memory_format=torch.channels_last)

    def forward(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(device, memory_format=torch.channels_last)
            output: NDArray[np.float32] = folded(batch).float().cpu().numpy()
        return output

    return forward


def _onnx_forward(module: nn.Module) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin while they wait would take the cores from those that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(to_onnx(module), options, ["CPUExecutionProvider"])

    def forward(images: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = [images[at : at + BATCH] for at in range(0, len(images), BATCH)]
        return np.concatenate([session.run(None, {INPUT: part})[0] for part in parts])

    return forward
