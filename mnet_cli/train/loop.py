"""The training loop and nothing else; it calls back and never prints."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from mnet_cli.checkpoint import Checkpoint, save_checkpoint
from mnet_cli.data.loaders import EpochBatches, seed_of, seed_torch
from mnet_cli.errors import RefusedError
from mnet_cli.evaluate import Evaluation
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
from mnet_cli.train.supply import Batches, CacheUse, Supply, build_supply

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
        caches: What each phase that used the cache took from it.
        frozen: Number of frozen tensors that were watched.
        moved: Names of frozen tensors that changed; always empty unless mnet is broken.
        seconds: From the start to the end, features that had to be computed included.
    """

    rows: list[Row] = field(default_factory=list)
    best_epoch: int = 0
    best: Evaluation | None = None
    caches: list[CacheUse] = field(default_factory=list)
    frozen: int = 0
    moved: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Learner:
    """What changes the weights of `module` in one phase."""

    module: nn.Module
    criterion: nn.CrossEntropyLoss
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    mix: Mix | None
    ema: AveragedModel | None


def fit(
    job: Job,
    *,
    on_features: Callable[[int, int], None] = lambda done, total: None,
    on_phase: Callable[[Supply], None] = lambda supply: None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    on_epoch: Callable[[Row], None] = lambda row: None,
) -> Fit:
    """Train as the recipe says; keep `best.pt`, `last.pt` and `metrics.csv` in the run directory.

    Args:
        job: Recipe, model, data, device and run directory.
        on_features: Called with (done, total) while the frozen part's features are computed.
        on_phase: Called when a phase is ready to start, with what it learns from.
        on_batch: Called with (batches done, batches of the epoch).
        on_epoch: Called with the epoch's row.

    Raises:
        DataError: An image has become unreadable.
        RefusedError: The loss is not a number any more; the last good checkpoint is kept.
        MachineError: A file cannot be written.
    """
    recipe, model = job.recipe, job.model.to(job.device)
    model.to(memory_format=torch.channels_last)
    batches = EpochBatches(
        job.data.splits["train"].labels,
        recipe.data.batch_size,
        recipe.train.seed,
        balanced=recipe.data.balance == "sampler",
    )
    result, started = Fit(), time.monotonic()
    for phase in recipe.phases:
        freeze(model, phase.freeze)
        before = frozen_fingerprint(model)
        epochs = range(len(result.rows) + 1, len(result.rows) + phase.epochs + 1)
        supply = build_supply(job, batches, epochs, on_features)
        on_phase(supply)
        if supply.cache:
            result.caches.append(supply.cache)
        learner = build_learner(job, phase, supply.module, supply.steps)
        for epoch in epochs:
            row = run_epoch(job, learner, supply, epoch, result, on_batch)
            on_epoch(row)
            waited = epoch - max(result.best_epoch, epochs.start - 1)
            if recipe.train.early_stop and waited >= recipe.train.early_stop:
                break
        result.frozen = max(result.frozen, len(before))
        result.moved += moved(before, model)
    result.seconds = time.monotonic() - started
    return result


def run_epoch(
    job: Job,
    learner: Learner,
    supply: Supply,
    epoch: int,
    result: Fit,
    on_batch: Callable[[int, int], None],
) -> Row:
    """Train for an epoch, score it, add its row to `result` and keep its checkpoints."""
    clock, steps = time.monotonic(), supply.steps
    loss, lr = train_epoch(
        job,
        learner,
        supply.batches(epoch),
        (epoch - 1) * steps,
        lambda done: on_batch(done, steps),
    )
    trained = time.monotonic() - clock
    shown = learner.ema.module if learner.ema else learner.module
    evaluation = supply.evaluate(shown)
    row = {
        "epoch": epoch,
        "train_loss": loss,
        "val_loss": evaluation.loss,
        "top1": evaluation.top1,
        "macro_f1": evaluation.macro_f1,
        "images_per_second": len(job.data.splits["train"]) / trained,
        "lr": lr,
        "seconds": time.monotonic() - clock,
    }
    result.rows.append(row)
    if result.best is None or BETTER[job.recipe.train.monitor](evaluation, result.best):
        result.best, result.best_epoch = evaluation, epoch
        save_checkpoint(job.run / "best.pt", as_checkpoint(job, shown, evaluation, epoch))
    save_last(job, learner, evaluation, epoch, epoch * steps)
    write_csv(job.run / "metrics.csv", COLUMNS, result.rows)
    return row


def train_epoch(
    job: Job,
    learner: Learner,
    batches: Batches,
    step: int,
    on_batch: Callable[[int], None],
) -> tuple[float, float]:
    """Take one optimizer step a batch.

    Args:
        job: Recipe, model and device.
        learner: What is trained, and how.
        batches: The epoch's inputs of what is trained, and their labels.
        step: Steps taken before.
        on_batch: Called with the number of batches done.

    Returns:
        The mean loss of the epoch's images, and the learning rate of the last step.
    """
    train, device = job.recipe.train, job.device
    set_train_mode(job.model)
    losses: list[Tensor] = []
    lrs: list[float] = []
    counts: list[int] = []
    for inputs, labels in batches:  # inputs (N, …), labels (N,)
        step += 1
        seed_torch(seed_of(train.seed, step), device)  # dropout and mixing, for any supply
        inputs = inputs.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        if learner.mix:
            inputs, labels = learner.mix(inputs, labels)
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, enabled=train.amp):
            loss = learner.criterion(learner.module(inputs), labels)
        learner.scaler.scale(loss).backward()
        if train.clip_grad_norm:
            learner.scaler.unscale_(learner.optimizer)
            nn.utils.clip_grad_norm_(learner.module.parameters(), train.clip_grad_norm)
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        learner.optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        lrs.append(float(learner.scheduler.get_last_lr()[0]))
        counts.append(len(inputs))
        learner.scheduler.step()
        if learner.ema:
            learner.ema.update_parameters(learner.module)
        on_batch(len(losses))
    # One look at the losses an epoch: a look at each step would wait for the GPU each time.
    values = torch.stack(losses).cpu().double()
    if not values.isfinite().all():
        first = int((~values.isfinite()).nonzero()[0])
        raise RefusedError(
            f"step {step - len(losses) + first + 1}",
            f"the loss is {values[first]:g} at lr {lrs[first]:.2g}",
            "a finite loss was expected",
            "Lower train.lr; the last good checkpoint was kept",
        )
    return float((values * torch.tensor(counts)).sum() / sum(counts)), lrs[-1]


def build_learner(job: Job, phase: Phase, module: nn.Module, steps_per_epoch: int) -> Learner:
    """Build what a phase trains `module` with."""
    recipe, train = job.recipe, job.recipe.train
    optimizer = build_optimizer(module, train, phase.lr)
    criterion = build_criterion(
        train,
        job.data.splits["train"].labels,
        class_weights=recipe.data.balance == "class_weights",
    )
    return Learner(
        module=module,
        criterion=criterion.to(job.device),
        optimizer=optimizer,
        scheduler=build_scheduler(optimizer, train, phase.lr, phase.epochs, steps_per_epoch),
        scaler=torch.amp.GradScaler(
            job.device.type, enabled=train.amp and job.device.type == "cuda"
        ),
        mix=build_mix(train, len(job.data.class_names)),
        ema=build_ema(module, train.ema),
    )


def state_of_part(model: nn.Module, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of `module`, the last part of `model` or a copy of it, by the model's names.

    The part has names of its own, but its tensors come in the same order.
    """
    names, part = list(model.state_dict()), module.state_dict()
    tensors = [tensor.contiguous() for tensor in part.values()]
    return dict(zip(names[len(names) - len(part) :], tensors, strict=True))


def as_checkpoint(
    job: Job,
    module: nn.Module,
    evaluation: Evaluation,
    epoch: int,
    training: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Put the model, with `module` as its learning part, and its scores into a checkpoint."""
    state = job.model.state_dict() | state_of_part(job.model, module)
    return Checkpoint(
        arch=job.recipe.model.arch,
        model_args=job.model_args,
        state_dict={name: tensor.contiguous() for name, tensor in state.items()},
        class_names=job.data.class_names,
        preprocess=job.preprocess,
        recipe=plain_values(job.recipe),
        metrics={"epoch": epoch, **evaluation.figures()},
        training=training or {},
    )


def save_last(job: Job, learner: Learner, evaluation: Evaluation, epoch: int, step: int) -> None:
    """Write `last.pt`, the state of training after `epoch`."""
    ema = learner.ema
    training = {
        "optimizer": learner.optimizer.state_dict(),
        "scheduler": learner.scheduler.state_dict(),
        "ema": ema
        and {
            "updates": int(ema.n_averaged),
            "state_dict": state_of_part(job.model, ema.module),
        },
        "epoch": epoch,
        "step": step,
        "seed": job.recipe.train.seed,
    }
    last = as_checkpoint(job, learner.module, evaluation, epoch, training)
    save_checkpoint(job.run / "last.pt", last)
