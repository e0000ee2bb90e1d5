"""Whatever runs a trained classifier, behind one signature: images in, logits out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.preprocess import Preprocess

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


def open_classifier(path: Path, device: str = "cpu") -> Classifier:
    """Open a checkpoint file or a run directory for use on `device`.

    Raises:
        WeightsError: There is no usable checkpoint at `path`.
        UsageError: The device is not to be had.
    """
    from mnet_cli.checkpoint import build_from, load_checkpoint

    checkpoint = load_checkpoint(path)
    return Classifier(
        classify=torch_classify(build_from(checkpoint), device),
        class_names=checkpoint.class_names,
        preprocess=checkpoint.preprocess,
        recipe=dict(checkpoint.recipe),
        source=path / "best.pt" if path.is_dir() else path,
    )


def torch_classify(model: Any, device: Any) -> Classify:
    """Run a PyTorch model on `device`, in evaluation mode, channels last."""
    import torch

    model = model.to(device, memory_format=torch.channels_last)

    def classify(images: NDArray[np.float32]) -> NDArray[np.float32]:
        model.eval()
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(device, memory_format=torch.channels_last)
            logits: NDArray[np.float32] = model(batch).float().cpu().numpy()
        return logits

    return classify
