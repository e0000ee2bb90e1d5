"""Optimizer, learning-rate schedule, loss, mixing and averaging, as a recipe names them."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from mnet_cli.recipe import Phase, Recipe, Train

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

FEW_STEPS = 7  # in fewer, OneCycleLR's defaults put the peak before the second step


@dataclass
class Optimization:
    """What changes the weights of `module` in one phase."""

    module: nn.Module
    criterion: nn.CrossEntropyLoss
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    mix: "Mix | None"
    ema: "MovingAverage | None"

    @property
    def averaged(self) -> nn.Module:
        """The module with averaged weights where training keeps an average, else itself."""
        return self.ema.module if self.ema else self.module


def build_optimizer(model: nn.Module, train: Train, lr: float) -> torch.optim.Optimizer:
    """Build the optimizer of everything in `model` that is not frozen.

    Biases and batch norms get no weight decay: it has nothing to regularise there.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # The fused kernels of MPS leave gradients as the scaler of float16 has made them.
    fused = all(parameter.device.type != "mps" for parameter in learning)
    match train.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, fused=fused)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, fused=fused)
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=train.momentum, fused=fused)


def build_scheduler(
    optimizer: torch.optim.Optimizer, train: Train, lr: float, epochs: int, steps_per_epoch: int
) -> LRScheduler:
    """Build the schedule, which advances once a step, over `epochs` of training.

    One-cycle (arXiv 1708.07120) moves the momentum, or Adam's first beta, against the rate:
    from 0.95 down to 0.85 while the rate rises, and back. In fewer than `FEW_STEPS` steps it
    rises from lr / steps to lr in one step, and ends before the rate is next to zero.
    """
    steps = epochs * steps_per_epoch
    if train.schedule == "onecycle":
        if steps >= FEW_STEPS:
            return OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
        course = steps + 1  # its last point, next to zero, comes after the last step
        return OneCycleLR(
            optimizer, max_lr=lr, total_steps=course, pct_start=2 / course, div_factor=steps
        )
    warmup = min(round(train.warmup_epochs * steps_per_epoch), steps - 1)
    after: LRScheduler = (
        CosineAnnealingLR(optimizer, T_max=steps - warmup)
        if train.schedule == "cosine"
        else ConstantLR(optimizer, factor=1.0)
    )
    if not warmup:
        return after
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rise, after], milestones=[warmup])


def build_criterion(
    train: Train, labels: NDArray[np.int64], *, class_weights: bool
) -> nn.CrossEntropyLoss:
    """Build the loss, its classes weighted by inverse frequency if asked to."""
    weight = None
    if class_weights:
        counts = torch.bincount(torch.as_tensor(labels))
        weight = len(labels) / (len(counts) * counts)
    return nn.CrossEntropyLoss(weight, label_smoothing=train.label_smoothing)


def build_mix(train: Train, num_classes: int) -> Mix | None:
    """Build mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899), or one of both a batch."""
    if not train.mixup and not train.cutmix:
        return None
    from torchvision.transforms import v2  # slow to import, and few runs need it

    mixes: list[v2.Transform] = []
    if train.mixup:
        mixes.append(v2.MixUp(alpha=train.mixup, num_classes=num_classes))
    if train.cutmix:
        mixes.append(v2.CutMix(alpha=train.cutmix, num_classes=num_classes))
    mix: Mix = v2.RandomChoice(mixes)
    return mix


class MovingAverage:
    """An exponential moving average of a module's parameters and buffers.

    The decay starts low and approaches `decay`, or a short run would average its beginning.
    torch's `AveragedModel` keeps the number of updates in a tensor and reads it at each of them,
    so that every step would wait for the GPU.

    Args:
        module: What is averaged.
        decay: In (0, 1).

    Attributes:
        module: A copy that holds the averages; integers are those of the last update.
        updates: How many there were.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = copy.deepcopy(module), decay, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the present state of the module, all its tensors at once."""
        pairs = list(zip(_tensors(self.module), _tensors(module), strict=True))
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        copied = [pair for pair in pairs if not decay or not pair[0].is_floating_point()]
        mixed = [pair for pair in pairs if decay and pair[0].is_floating_point()]
        for averaged, current in copied:
            averaged.copy_(current)
        if mixed:
            averages, currents = map(list, zip(*mixed, strict=True))
            change = torch._foreach_sub(currents, averages)
            torch._foreach_mul_(change, 1 - decay)
            torch._foreach_add_(averages, change)
        self.updates += 1


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def build_ema(module: nn.Module, decay: float) -> MovingAverage | None:
    """Build the moving average of what is trained; None if `decay` is 0."""
    return MovingAverage(module, decay) if decay else None


def build_scaler(device: torch.device, *, amp: bool) -> torch.amp.GradScaler:
    """Build the scaler of the loss, without which gradients in float16 vanish.

    It is idle without `amp`, and where autocast computes in bfloat16, as on CPUs.
    """
    float16 = torch.get_autocast_dtype(device.type) == torch.float16
    return torch.amp.GradScaler(device.type, enabled=amp and float16)


def build_optimization(
    recipe: Recipe,
    phase: Phase,
    module: nn.Module,
    steps: int,
    labels: NDArray[np.int64],
    num_classes: int,
    device: torch.device,
) -> Optimization:
    """Build what a phase trains `module` with.

    Args:
        recipe: The resolved recipe.
        phase: Its epochs and learning rate.
        module: What is trained.
        steps: Of an epoch.
        labels: Of the training images (N,).
        num_classes: Of the data set.
        device: Where to train.
    """
    train = recipe.train
    optimizer = build_optimizer(module, train, phase.lr)
    by_class = recipe.data.balance == "class_weights"
    return Optimization(
        module=module,
        criterion=build_criterion(train, labels, class_weights=by_class).to(device),
        optimizer=optimizer,
        scheduler=build_scheduler(optimizer, train, phase.lr, phase.epochs, steps),
        scaler=build_scaler(device, amp=train.amp),
        mix=build_mix(train, num_classes),
        ema=build_ema(module, train.ema),
    )
