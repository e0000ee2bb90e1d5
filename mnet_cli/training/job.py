"""A training run that is ready to start: recipe, data, model and run directory."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from mnet_cli.data.augment import Augmentation
from mnet_cli.data.dataset import DataSet
from mnet_cli.data.loader import ViewDataset
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.formats.checkpoint import Checkpoint
from mnet_cli.models.forward import Forward, TorchForward, compile_forward, is_own
from mnet_cli.models.onnx_forward import OnnxForward
from mnet_cli.models.weights import LoadReport
from mnet_cli.recipe import Recipe
from mnet_cli.system.machine import cores
from mnet_cli.system.process_group import ProcessGroup


@dataclass(frozen=True)
class Job:
    """A training run that is ready to start.

    Attributes:
        recipe: The resolved recipe.
        data: Images with the splits `train` and `val`.
        model: The network, pretrained where the weights fit.
        model_args: What `build_model` got besides the number of classes.
        preprocess: The preprocessing of evaluation, which follows that of the weights.
        weights: What became of the weights; None for random initialization.
        device: Where to train.
        run: The run directory.
        lock: Locks the run directory for process 0 of the group.
        resume_state: The `last.pt` of an earlier process; None for a new run.
        note: What is unusual about the run directory; empty if nothing is.
        group: The processes that train.
    """

    recipe: Recipe
    data: DataSet
    model: nn.Module
    model_args: dict[str, Any]
    preprocess: Preprocess
    weights: LoadReport | None
    device: torch.device
    run: Path
    lock: FileLock | None
    resume_state: Checkpoint | None = None
    note: str = ""
    group: ProcessGroup = field(default_factory=ProcessGroup)

    @property
    def workers(self) -> int:
        """Processes that decode and augment."""
        workers = self.recipe.data.workers
        return min(8, cores()) if workers == "auto" else workers

    def compile(self, module: nn.Module) -> OnnxForward | TorchForward:
        """The fast forward pass of the model, or of a part of it that takes images."""
        return compile_forward(
            module,
            self.device,
            image_size=self.preprocess.image_size,
            is_known=is_own(self.model),
        )

    def compile_above(self, module: nn.Module) -> Forward:
        """The fast forward pass of what lies above the frozen boundary, or of a copy of it."""
        if is_own(self.model):
            return compile_forward(module, self.device, None, is_known=True)
        return TorchForward(module, self.device)

    @property
    def augmentation(self) -> Augmentation:
        """How the recipe changes training images."""
        data = self.recipe.data
        if data.augment in ("none", "flip"):
            return Augmentation(data.augment)
        return Augmentation(data.augment, data.crop_scale_min, data.random_erasing)

    def train_views(self) -> ViewDataset:
        """The training images as the recipe augments them."""
        is_random = self.augmentation.most_views is None
        return self._views("train", self.augmentation, self.recipe.train.seed if is_random else 0)

    def val_views(self) -> ViewDataset:
        """The validation images as evaluation sees them."""
        return self._views("val", Augmentation(), seed=0)

    def _views(self, split: str, augmentation: Augmentation, seed: int) -> ViewDataset:
        samples, files = self.data.splits[split], self.data.files(split)
        return ViewDataset(
            files, samples.labels, samples.sha256, self.preprocess, augmentation, seed
        )
