"""Whatever runs a trained classifier, behind one signature: images in, logits out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

Classify = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images (N, 3, S, S), float32, normalised, to logits (N, C), float32."""


@dataclass(frozen=True)
class Classifier:
    """A trained classifier that is ready to run.

    Attributes:
        classify: Images to logits.
        class_names: In the order of the logits.
        preprocess: How an image becomes the input of `classify`.
        recipe: The resolved recipe it was trained with, as plain values.
        source: The file it was read from.
    """

    classify: Classify
    class_names: tuple[str, ...]
    preprocess: Preprocess
    recipe: dict[str, Any]
    source: Path


def open_classifier(path: Path, device: str) -> Classifier:
    """Open a checkpoint file or a run directory for use on the device that `device` names.

    Raises:
        WeightsError: There is no usable checkpoint at `path`.
        UsageError: The device is not to be had.
    """
    from mnet_cli.checkpoint import build_from, load_checkpoint
    from mnet_cli.models.forward import compile_forward

    checkpoint = load_checkpoint(path)
    return Classifier(
        classify=compile_forward(build_from(checkpoint), choose_device(device)),
        class_names=checkpoint.class_names,
        preprocess=checkpoint.preprocess,
        recipe=dict(checkpoint.recipe),
        source=path / "best.pt" if path.is_dir() else path,
    )


def choose_device(name: str) -> "torch.device":
    """Turn `auto`, `cpu`, `cuda` or `mps` into a device; `auto` takes the fastest there is.

    Raises:
        UsageError: The device was named and is not to be had.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, usable in available.items() if usable)
    if not available.get(name, False):
        usable = ", ".join(["auto", *(kind for kind, there in available.items() if there)])
        raise UsageError(f"--device {name}", "not available here", f"{usable} was expected")
    return torch.device(name)
