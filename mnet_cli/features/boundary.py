"""The frozen boundary: what runs below it, and what its activations depend on."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import PIL.features
import torch
from torch import nn

from mnet_cli.models.forward import Forward, compile_forward

# Other versions, other last bits; simplejpeg brings the libjpeg that decodes most JPEGs.
LIBRARIES = ("onnxruntime", "pillow", "simplejpeg", "torch", "torchvision")


@dataclass(frozen=True)
class Boundary:
    """The frozen part of a network, up to where something learns.

    Attributes:
        forward: Images (N, 3, S, S) to activations (N, …), float32.
        shape: Of one image's activations.
        dtype: What they are kept as: half precision for feature maps, where it halves much.
        network: What the activations depend on besides the view, as plain values.
        note: Why the forward pass is not the usual one; empty where it is.
    """

    forward: Forward
    shape: tuple[int, ...]
    dtype: str
    network: Mapping[str, Any]
    note: str = ""

    @property
    def is_map(self) -> bool:
        """Whether the activations are feature maps, so that convolutions lie above them."""
        return len(self.shape) > 1

    @property
    def row_bytes(self) -> int:
        """Bytes that the activations of one view take."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def exact(self) -> "Boundary":
        """The same boundary, its activations kept as they are computed."""
        return replace(self, dtype="float32")


def find_boundary(
    front: nn.Module,
    title: str,
    image_size: int,
    device: torch.device,
    *,
    is_known: bool | None = None,
) -> Boundary:
    """Compile the frozen part of a network.

    Args:
        front: The part, as `split_frozen` gave it.
        title: What people call it.
        image_size: Side S of the images that it will get, in pixels.
        device: Where it runs.
        is_known: As in `compile_forward`.
    """
    forward = compile_forward(front, device, image_size=image_size, is_known=is_known)
    shape = forward(np.zeros((1, 3, image_size, image_size), np.float32)).shape[1:]
    return Boundary(
        forward,
        shape,
        dtype="float32" if len(shape) == 1 else "float16",
        network={
            "title": title,
            "sha256": forward.fingerprint,
            **facts_of_machine(device),
        },
        note=forward.note,
    )


def facts_of_machine(device: torch.device) -> dict[str, Any]:
    """What the last bits of activations on `device` depend on: processors and libraries."""
    processor = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    if device.type == "cuda":
        processor.append(torch.cuda.get_device_name(device))
    libjpeg = PIL.features.version("libjpeg_turbo") or PIL.features.version("jpg")
    return {
        "device": device.type,
        "processor": processor,
        "libraries": {name: version(name) for name in LIBRARIES} | {"libjpeg": libjpeg},
    }
