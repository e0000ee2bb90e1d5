"""What is exported: a trained network, in the form in which it will be used."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnet_cli.data.preprocess import Preprocess
from mnet_cli.formats.base import filled
from mnet_cli.formats.contract import Contract
from mnet_cli.models.layers import SqueezeExcitation

SQUEEZE_EXCITATION = SqueezeExcitation.__name__  # in the names of a graph's nodes


def is_sensitive(path: str, kind: str) -> bool:
    """Whether a module's rounding errors reach far: squeeze-excitation, and the head.

    Args:
        path: The module's name in the network.
        kind: The name of its class.
    """
    return SQUEEZE_EXCITATION in kind or bool(re.search(r"\bclassifier\b", path))


@dataclass(frozen=True, eq=False)
class Network:
    """A network that is ready to be converted.

    Attributes:
        module: In evaluation mode, on the CPU; takes and gives what the contract says.
        contract: What will travel with it.
        calibration: Gives the inputs to calibrate integers with (N, …), as the contract says.
    """

    module: nn.Module
    contract: Contract
    calibration: Callable[[], NDArray[Any]]

    def with_batch(self, batch: int) -> "Network":
        """The same network with that batch; 0 leaves it free."""
        return replace(self, contract=replace(self.contract, batch=batch))

    def batches(self) -> list[NDArray[Any]]:
        """The inputs to calibrate with in batches as the file takes them, the last filled up."""
        inputs, size = self.calibration(), self.contract.batch or 1
        return [filled(inputs[at : at + size], size) for at in range(0, len(inputs), size)]

    def example(self) -> Tensor:
        """Inputs of the right shape: as many as the batch that is fixed, or two."""
        side, number = self.contract.preprocess.image_size, self.contract.batch or 2
        if self.contract.baked:
            return torch.zeros(number, side, side, 3, dtype=torch.uint8)
        return torch.zeros(number, 3, side, side)


class Baked(nn.Module):
    """A network that normalises for itself and ends with the softmax.

    From pixels (N, S, S, 3), uint8, R, G, B, to probabilities (N, C).

    Args:
        model: From normalised images (N, 3, S, S) to logits (N, C).
        preprocess: Says the mean and the deviation.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        mean, std = np.asarray(preprocess.mean), np.asarray(preprocess.std)
        self.register_buffer("scale", torch.tensor(1 / (255 * std), dtype=torch.float32))
        self.register_buffer("shift", torch.tensor(mean / std, dtype=torch.float32))
        self.model = model
        self.softmax = nn.Softmax(1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels to probabilities."""
        images = (pixels.float() * self.scale - self.shift).permute(0, 3, 1, 2)
        probabilities: Tensor = self.softmax(self.model(images))
        return probabilities
