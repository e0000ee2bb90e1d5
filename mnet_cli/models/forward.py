"""The fast forward pass of a network that does not learn."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mnet_cli.models.device import DEVICE_LOCK, image_format, one_thread
from mnet_cli.models.onnx_export import export_by_torch
from mnet_cli.models.onnx_forward import OnnxForward
from mnet_cli.models.onnx_graph import IMAGES, UnsupportedOperatorError, fold_batch_norms, to_onnx

Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Inputs (N, …) to the network's output for each; both float32."""

TOLERANCE = 1e-4  # of the range of outputs, between a graph and the network


class TorchForward:
    """A forward pass of PyTorch; on a CPU it can be sent to other processes.

    Args:
        module: In evaluation mode; a copy with batch norms folded is made.
        device: Where to run.

    Attributes:
        fingerprint: Of what is computed: the layers and the weights.
        note: Why it is not a faster one; empty where it is as usual.
    """

    def __init__(self, module: nn.Module, device: torch.device, note: str = "") -> None:
        self.fingerprint = fingerprint(module)
        self.note = note
        self.device = device
        folded = fold_batch_norms(module).to(device)
        self.module = folded.to(memory_format=image_format(device))

    def __call__(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network on inputs (N, …)."""
        on_cpu = self.device.type == "cpu"
        turn: AbstractContextManager[object] = one_thread() if on_cpu else DEVICE_LOCK
        with turn, torch.inference_mode():
            outputs = self.module(torch.from_numpy(inputs).to(self.device))
            found: NDArray[np.float32] = outputs.cpu().numpy()
        return found


def compile_forward(
    module: nn.Module,
    device: torch.device,
    input_shape: Sequence[int | str] | None = IMAGES,
    *,
    image_size: int = 224,
) -> OnnxForward | TorchForward:
    """Make the fastest forward pass of a module in evaluation mode on `device`.

    On a CPU that is ONNX Runtime, 2 to 3 times as fast as PyTorch with folded batch norms and
    channels last on MobileNets; elsewhere, and for a network that no ONNX graph can be made of,
    it is PyTorch. The weights are taken as they are now. Outputs agree with the module's to
    1e-4 of their range.

    A network of mnet's own modules is known to become a correct graph; the graph of another one
    is compared with PyTorch first. Parts of those that take no images need `TorchForward`.

    On a CPU a call uses one core: call it from as many threads or processes as there are
    cores, each with inputs of its own, which is faster than many cores on one batch.

    Args:
        module: A network, or a part of one.
        device: Where to run.
        input_shape: As in `to_onnx`.
        image_size: Side of the images, in pixels, where `input_shape` is `IMAGES`.
    """
    if device.type != "cpu":
        return TorchForward(module, device)
    takes_images = input_shape is IMAGES
    if is_own(module) or not takes_images:
        try:
            return OnnxForward(to_onnx(module, input_shape))
        except UnsupportedOperatorError:
            pass
    elif takes_images and (forward := _checked(module, image_size, by_torch=False)):
        return forward
    if takes_images and (forward := _checked(module, image_size, by_torch=True)):
        forward.fingerprint = fingerprint(module)
        forward.note = "the ONNX graph is made by torch.onnx"
        return forward
    return TorchForward(module, device, "ONNX Runtime cannot run this network: PyTorch does")


def is_own(module: nn.Module) -> bool:
    """Whether a network is made of mnet's modules, and else of PyTorch's alone."""
    packages = {type(m).__module__.partition(".")[0] for m in module.modules()}
    return "mnet_cli" in packages and packages <= {"mnet_cli", "torch"}


def _checked(module: nn.Module, image_size: int, *, by_torch: bool) -> OnnxForward | None:
    """A forward pass by ONNX Runtime that agrees with PyTorch on images of noise, if there is."""
    noise = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, image_size, image_size, generator=noise)
    try:
        graph = export_by_torch(module, images, free_batch=True) if by_torch else to_onnx(module)
        forward = OnnxForward(graph)
        found = forward(images[:1].numpy())  # another batch than the example's
    except Exception:  # errors of the exporter and of ONNX Runtime have no common base class
        return None
    expected = TorchForward(module, torch.device("cpu"))(images[:1].numpy())
    scale = max(float(np.ptp(expected)), 1e-6)
    agrees = found.shape == expected.shape and np.abs(found - expected).max() <= TOLERANCE * scale
    return forward if agrees else None


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a network's layers, as PyTorch prints them, and of its state dict."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in module.state_dict().items():
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
        digest.update(content.numpy().data)
    return digest.hexdigest()
