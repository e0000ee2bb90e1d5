"""The fast forward pass of a network that does not learn."""

import copy
import hashlib
import inspect
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

PLAIN = (bool, int, float, str, tuple)  # attributes that may change what a module computes
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
    is_known: bool | None = None,
) -> OnnxForward | TorchForward:
    """Make the fastest forward pass of a module in evaluation mode on `device`.

    On a CPU that is ONNX Runtime, 2 to 3 times as fast as PyTorch with folded batch norms and
    channels last on MobileNets; elsewhere, and for a network that no ONNX graph can be made of,
    it is PyTorch. The weights are taken as they are now. Outputs agree with the module's to
    1e-4 of their range.

    mnet's own networks are known to become correct graphs. The graph of another one is compared
    with PyTorch first, on images of noise; parts of one that take no images run by PyTorch.

    On a CPU a call uses one core: call it from as many threads or processes as there are
    cores, each with inputs of its own, which is faster than many cores on one batch.

    Args:
        module: A network, or a part of one.
        device: Where to run.
        input_shape: As in `to_onnx`.
        image_size: Side of the images, in pixels, where `input_shape` is `IMAGES`.
        is_known: Whether the module is of one of mnet's own networks; None to look at it.
    """
    if device.type != "cpu":
        return TorchForward(module, device)
    if is_own(module) if is_known is None else is_known:
        try:
            return OnnxForward(to_onnx(module, input_shape))
        except UnsupportedOperatorError:
            pass
    if input_shape is IMAGES:
        for by_torch in (False, True):
            if forward := _checked(module, image_size, by_torch=by_torch):
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
    plain = copy.deepcopy(module).cpu().eval()
    try:
        graph = export_by_torch(module, images, free_batch=True) if by_torch else to_onnx(module)
        forward = OnnxForward(graph)
        with one_thread(), torch.inference_mode():
            for batch in (images[:1], images * 3 + 2):  # other batches than the example's
                expected, found = plain(batch).numpy(), forward(batch.numpy())
                scale = max(float(np.ptp(expected)), 1e-6)
                if (
                    found.shape != expected.shape
                    or not np.abs(found - expected).max() <= TOLERANCE * scale
                ):
                    return None
    except Exception:  # errors of the exporter and of ONNX Runtime have no common base class
        return None
    if by_torch:
        forward.fingerprint = fingerprint(module)
        forward.note = "the ONNX graph is made by torch.onnx"
    return forward


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of what a network computes: its layers, their code and values, and its tensors."""
    digest = hashlib.sha256(repr(module).encode())
    for kind in sorted({type(m) for m in module.modules()}, key=lambda kind: kind.__qualname__):
        digest.update(_code(kind).encode())
    for name, part in module.named_modules():
        plain = {k: v for k, v in vars(part).items() if isinstance(v, PLAIN) and k != "training"}
        digest.update(f"{name} {sorted(plain.items())}".encode())
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, tensor in tensors.items():
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
        digest.update(content.numpy().data)
    return digest.hexdigest()


def _code(kind: type[nn.Module]) -> str:
    """The source of a class, or its name where there is none; of PyTorch's the name."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__.startswith("torch."):
        return name  # its version is among the facts of the machine
    try:
        return name + inspect.getsource(kind)
    except (OSError, TypeError):
        return name
