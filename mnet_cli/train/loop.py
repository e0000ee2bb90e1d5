"""The training loop and nothing else; it calls back and never prints."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from mnet_cli.checkpoint import Checkpoint, save_checkpoint
from mnet_cli.data.loaders import (
    Batch,
    EpochBatches,
    loaded,
    seed_of,
    seed_torch,
    train_loader,
)
from mnet_cli.errors import RefusedError
from mnet_cli.evaluate import Evaluation, evaluate
from mnet_cli.models.forward import compile_forward
from mnet_cli.models.freeze import freeze, frozen_fingerprint, moved, set_train_mode
from mnet_cli.recipe import Phase, plain_values
from mnet_cli.run_directory import write_csv
from mnet_cli.train.optimization import (
    Mix,
    build_criterion,
    build_ema,
    build_mix,
    build_optimizer,
    build_scheduler,
)
from mnet_cli.train.setup import Job

COLUMNS = (
    "epoch", "train_loss", "val_loss", "top1", "macro_f1", "images_per_second", "lr", "seconds",
)  # fmt: skip
BETTER = {  # monitor: is the new value better than the best so far? At a tie the earlier wins.
    "top1": lambda new, best: new.top1 > best.top1,
    "macro_f1": lambda new, best: new.macro_f1 > best.macro_f1,
    "loss": lambda new, best: new.loss < best.loss,
}

Row = Mapping[str, float]


@dataclass
class Fit:
    """What training did.

    Attributes:
        rows: One row of `COLUMNS` an epoch.
        best_epoch: The epoch of `best.pt`, counted from 1.
        best: The evaluation of `best.pt` on the validation images.
        frozen: Number of frozen tensors that were watched.
        moved: Names of frozen tensors that changed; always empty unless mnet is broken.
        seconds: From the first step to the end.
    """

    rows: list[Row] = field(default_factory=list)
    best_epoch: int = 0
    best: Evaluation | None = None
    frozen: int = 0
    moved: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Learner:
    """What changes the weights in one phase."""

    criterion: nn.CrossEntropyLoss
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    mix: Mix | None
    ema: AveragedModel | None


def fit(
    job: Job,
    *,
    on_phase: Callable[[], None] = lambda: None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    on_epoch: Callable[[Row], None] = lambda row: None,
) -> Fit:
    """Train as the recipe says; keep `best.pt`, `last.pt` and `metrics.csv` in the run directory.

    Args:
        job: Recipe, model, data, device and run directory.
        on_phase: Called when a phase has frozen its part of the model.
        on_batch: Called with (batches done, batches of the epoch).
        on_epoch: Called with the epoch's row.

    Raises:
        RefusedError: The loss is not a number any more; the last good checkpoint is kept.
        MachineError: A file cannot be written.
    """
    recipe, model = job.recipe, job.model.to(job.device)
    model.to(memory_format=torch.channels_last)
    train = job.data.splits["train"]
    batches = EpochBatches(
        train.labels,
        recipe.data.batch_size,
        recipe.train.seed,
        balanced=recipe.data.balance == "sampler",
    )
    loader = train_loader(job.train_images(), batches, job.workers, job.device)
    result, started = Fit(), time.monotonic()
    for phase in recipe.phases:
        freeze(model, phase.freeze)
        before = frozen_fingerprint(model)
        on_phase()
        learner = build_learner(job, phase, len(batches))
        since_best = 0
        for _ in range(phase.epochs):
            epoch = batches.epoch = len(result.rows) + 1
            clock = time.monotonic()
            loss, lr = train_epoch(job, learner, loader, (epoch - 1) * len(batches), on_batch)
            trained = time.monotonic() - clock
            shown = learner.ema.module if learner.ema else model
            evaluation = evaluate_val(job, shown)
            row = {
                "epoch": epoch,
                "train_loss": loss,
                "val_loss": evaluation.loss,
                "top1": evaluation.top1,
                "macro_f1": evaluation.macro_f1,
                "images_per_second": len(train.labels) / trained,
                "lr": lr,
                "seconds": time.monotonic() - clock,
            }
            result.rows.append(row)
            since_best += 1
            if result.best is None or BETTER[recipe.train.monitor](evaluation, result.best):
                result.best, result.best_epoch, since_best = evaluation, epoch, 0
                save_checkpoint(job.run / "best.pt", as_checkpoint(job, shown, evaluation, epoch))
            save_last(job, learner, evaluation, epoch, epoch * len(batches))
            write_csv(job.run / "metrics.csv", COLUMNS, result.rows)
            on_epoch(row)
            if recipe.train.early_stop and since_best >= recipe.train.early_stop:
                break
        result.frozen = max(result.frozen, len(before))
        result.moved += moved(before, model)
    result.seconds = time.monotonic() - started
    return result


def train_epoch(
    job: Job,
    learner: Learner,
    loader: DataLoader[Batch],
    step: int,
    on_batch: Callable[[int, int], None],
) -> tuple[float, float]:
    """Take one optimizer step a batch.

    Returns:
        The mean loss of the epoch's images, and the learning rate of the last step.
    """
    train, device = job.recipe.train, job.device
    set_train_mode(job.model)
    losses: list[Tensor] = []
    lrs: list[float] = []
    counts: list[int] = []
    for images, labels in loaded(loader):  # images (N, 3, S, S), labels (N,)
        step += 1
        seed_torch(seed_of(train.seed, step), device)  # dropout and mixing, for any loader
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        if learner.mix:
            images, labels = learner.mix(images, labels)
        with torch.autocast(device.type, enabled=train.amp):
            loss = learner.criterion(job.model(images), labels)
        learner.scaler.scale(loss).backward()
        if train.clip_grad_norm:
            learner.scaler.unscale_(learner.optimizer)
            nn.utils.clip_grad_norm_(job.model.parameters(), train.clip_grad_norm)
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        learner.optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        lrs.append(float(learner.scheduler.get_last_lr()[0]))
        counts.append(len(images))
        learner.scheduler.step()
        if learner.ema:
            learner.ema.update_parameters(job.model)
        on_batch(len(losses), len(loader))
    # One look at the losses an epoch: a look at each step would wait for the GPU each time.
    values = torch.stack(losses).double().cpu()
    if not values.isfinite().all():
        first = int((~values.isfinite()).nonzero()[0])
        raise RefusedError(
            f"step {step - len(losses) + first + 1}",
            f"the loss is {values[first]:g} at lr {lrs[first]:.2g}",
            "a finite loss was expected",
            "Lower train.lr; the last good checkpoint was kept",
        )
    return float((values * torch.tensor(counts)).sum() / sum(counts)), lrs[-1]


def build_learner(job: Job, phase: Phase, steps_per_epoch: int) -> Learner:
    """Build what a phase trains with."""
    recipe, train = job.recipe, job.recipe.train
    optimizer = build_optimizer(job.model, train, phase.lr)
    criterion = build_criterion(
        train,
        job.data.splits["train"].labels,
        class_weights=recipe.data.balance == "class_weights",
    )
    return Learner(
        criterion=criterion.to(job.device),
        optimizer=optimizer,
        scheduler=build_scheduler(optimizer, train, phase.lr, phase.epochs, steps_per_epoch),
        scaler=torch.amp.GradScaler(
            job.device.type, enabled=train.amp and job.device.type == "cuda"
        ),
        mix=build_mix(train, len(job.data.class_names)),
        ema=build_ema(job.model, train.ema),
    )


def evaluate_val(job: Job, model: nn.Module) -> Evaluation:
    """Evaluate `model` on the validation images."""
    val = job.data.splits["val"]
    return evaluate(
        compile_forward(model, job.device),
        job.preprocess,
        job.data.files("val"),
        val.labels,
        job.data.class_names,
        batch_size=job.recipe.data.batch_size,
    )


def as_checkpoint(
    job: Job,
    model: nn.Module,
    evaluation: Evaluation,
    epoch: int,
    training: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Put a model and its scores into a checkpoint."""
    return Checkpoint(
        arch=job.recipe.model.arch,
        model_args=job.model_args,
        state_dict={name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        class_names=job.data.class_names,
        preprocess=job.preprocess,
        recipe=plain_values(job.recipe),
        metrics={"epoch": epoch, **evaluation.figures()},
        training=training or {},
    )


def save_last(job: Job, learner: Learner, evaluation: Evaluation, epoch: int, step: int) -> None:
    """Write `last.pt`, the state of training after `epoch`."""
    training = {
        "optimizer": learner.optimizer.state_dict(),
        "scheduler": learner.scheduler.state_dict(),
        "ema": learner.ema.state_dict() if learner.ema else None,
        "epoch": epoch,
        "step": step,
        "seed": job.recipe.train.seed,
    }
    save_checkpoint(job.run / "last.pt", as_checkpoint(job, job.model, evaluation, epoch, training))
