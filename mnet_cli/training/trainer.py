"""The training loop and nothing else; it calls back and never prints."""

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress

import torch
from torch import Tensor, nn

from mnet_cli.data.loader import EpochBatches, seed_of, seed_torch, worker_death
from mnet_cli.errors import MachineError, MnetError, RefusedError
from mnet_cli.formats.checkpoint import save_checkpoint
from mnet_cli.models.device import image_format, to_device
from mnet_cli.models.freeze import freeze, frozen_fingerprint, moved, set_train_mode
from mnet_cli.recipe import Phase
from mnet_cli.system.atomic import write_csv
from mnet_cli.system.signals import StopSignal, held
from mnet_cli.training.batches import Supply, build_supply
from mnet_cli.training.optimization import (
    build_criterion,
    build_ema,
    build_mix,
    build_optimizer,
    build_scaler,
    build_scheduler,
)
from mnet_cli.training.setup import Job
from mnet_cli.training.state import (
    Fit,
    Learner,
    Row,
    Running,
    as_checkpoint,
    restore_fit,
    restore_learner,
    save_last,
)

COLUMNS = (
    "epoch", "train_loss", "val_loss", "top1", "macro_f1", "images_per_second", "lr", "seconds",
)  # fmt: skip
USED_UP = ("not enough memory", "out of memory", "cannot allocate memory")  # in torch's words
BETTER = {  # monitor: is the new value better than the best so far? At a tie the earlier wins.
    "top1": lambda new, best: new.top1 > best.top1,
    "macro_f1": lambda new, best: new.macro_f1 > best.macro_f1,
    "loss": lambda new, best: new.loss < best.loss,
}


def fit(
    job: Job,
    *,
    on_features: Callable[[int, int], None] = lambda done, total: None,
    on_phase: Callable[[Supply], None] = lambda supply: None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    on_epoch: Callable[[Row], None] = lambda row: None,
) -> Fit:
    """Train as the recipe says; keep `best.pt`, `last.pt` and `metrics.csv` in the run directory.

    A run that was stopped goes on from `job.kept`, and ends as it would have ended.

    Args:
        job: Recipe, model, data, device and run directory.
        on_features: Called with (done, total) while the frozen part's features are computed.
        on_phase: Called when a phase is ready to start, with what it learns from.
        on_batch: Called with (batches done, batches of the epoch).
        on_epoch: Called with the epoch's row.

    Raises:
        DataError: An image has become unreadable; the state of training is kept.
        RefusedError: The loss is not a number any more; the last good checkpoint, if there is
            one, is kept.
        MachineError: A file cannot be written.
        WeightsError: `job.kept` is no state to go on from.
    """
    recipe, model, kept = job.recipe, job.model.to(job.device), job.kept
    model.to(memory_format=image_format(job.device))
    batches = EpochBatches(
        job.data.splits["train"].labels,
        recipe.data.batch_size,
        recipe.train.seed,
        balanced=recipe.data.balance == "sampler",
    )
    result = restore_fit(job, kept) if kept else Fit()
    started = time.monotonic() - result.seconds
    for number, phase in list(enumerate(recipe.phases))[result.phase :]:
        if number > result.phase:
            result.phase, result.phase_start = number, len(result.rows) + 1
            kept = result.cached = None  # belonged to the phase before
        epochs = range(result.phase_start, result.phase_start + phase.epochs)
        if is_over(job, result, epochs):
            continue
        freeze(model, phase.freeze)
        before = frozen_fingerprint(model)
        result.frozen = max(result.frozen, len(before))
        cached = None
        if result.cached is not None:
            cached = result.caches[-1].views if result.cached else 0
        supply = build_supply(job, batches, epochs, result.position, cached, on_features)
        result.cached = supply.cache is not None
        on_phase(supply)
        if supply.cache and not kept:
            result.caches.append(supply.cache)
        learner = build_learner(job, phase, supply.module, supply.steps)
        if kept:
            restore_learner(job, learner, kept)

        def keep(learner: Learner = learner, steps: int = supply.steps) -> None:
            losses, weights = result.running.losses, learner.module.parameters()
            if losses and not torch.stack(losses).isfinite().all():
                return  # the good checkpoint stays
            # The last step may have made the weights NaN: its own loss was computed before.
            if not all(weight.isfinite().all() for weight in weights):
                return
            result.seconds = time.monotonic() - started
            save_last(job, learner, result, steps)

        train_phase(job, learner, supply, result, epochs, keep, on_batch, on_epoch)
        result.moved += moved(before, model)
    result.seconds = time.monotonic() - started
    return result


def train_phase(
    job: Job,
    learner: Learner,
    supply: Supply,
    result: Fit,
    epochs: range,
    keep: Callable[[], None],
    on_batch: Callable[[int, int], None],
    on_epoch: Callable[[Row], None],
) -> None:
    """Train to the end of a phase; what stops it leaves a checkpoint first, by `keep`.

    Raises:
        MachineError: A process that loads images died, there is too little memory, or a file
            cannot be written.
    """
    try:
        while not is_over(job, result, epochs):
            on_epoch(run_epoch(job, learner, supply, result, keep, on_batch))
    except (
        KeyboardInterrupt, StopSignal, MnetError, OSError, RuntimeError, MemoryError,
    ) as error:  # fmt: skip
        fault = worker_death(error) or too_little_memory(error, job.recipe.data.batch_size)
        if fault is None and isinstance(error, RuntimeError):
            raise
        if result.whole:
            # What stopped it is to be said; where a worker has died, others may follow it.
            with suppress(MachineError, RuntimeError), held() if fault else nullcontext():
                keep()
        if fault:
            raise fault from error
        raise


def too_little_memory(error: BaseException, batch_size: int) -> MachineError | None:
    """The machine's fault behind the errors by which torch says that memory is used up."""
    said = str(error).casefold() if isinstance(error, RuntimeError) else ""
    if not isinstance(error, MemoryError) and not any(words in said for words in USED_UP):
        return None
    return MachineError(
        "data.batch_size",
        f"too little memory for batches of {batch_size} images",
        "a batch that fits was expected",
        f"Try --set data.batch_size={max(2, batch_size // 2)}",
    )


def is_over(job: Job, result: Fit, epochs: range) -> bool:
    """Whether the phase of `epochs` has had them all, or no better one for too long."""
    done, patience = len(result.rows), job.recipe.train.early_stop
    waited = done - max(result.best_epoch, epochs.start - 1)
    return done + 1 >= epochs.stop or bool(patience and waited >= patience)


def run_epoch(
    job: Job,
    learner: Learner,
    supply: Supply,
    result: Fit,
    keep: Callable[[], None],
    on_batch: Callable[[int, int], None],
) -> Row:
    """Train to the end of an epoch, score it, add its row to `result` and keep its checkpoints."""
    epoch = len(result.rows) + 1
    loss, lr = train_epoch(job, learner, supply, result, keep, on_batch)
    trained, clock = result.running.seconds, time.monotonic()
    shown = learner.ema.module if learner.ema else learner.module
    evaluation = supply.evaluate(shown)
    row = {
        "epoch": epoch,
        "train_loss": loss,
        "val_loss": evaluation.loss,
        "top1": evaluation.top1,
        "macro_f1": evaluation.macro_f1,
        "images_per_second": len(job.data.splits["train"]) / max(trained, 1e-3),
        "lr": lr,
        "seconds": trained + time.monotonic() - clock,
    }
    with held():  # the files of an epoch belong together
        result.whole = False
        result.rows.append(row)
        result.running = Running()
        if result.best is None or BETTER[job.recipe.train.monitor](evaluation, result.best):
            result.best, result.best_epoch = evaluation, epoch
            metrics = {"epoch": epoch, **evaluation.figures()}
            save_checkpoint(job.run / "best.pt", as_checkpoint(job, shown, metrics))
        write_csv(job.run / "metrics.csv", COLUMNS, result.rows)
        result.whole = True
        keep()
    return row


def train_epoch(
    job: Job,
    learner: Learner,
    supply: Supply,
    result: Fit,
    keep: Callable[[], None],
    on_batch: Callable[[int, int], None],
) -> tuple[float, float]:
    """Take one optimizer step a batch, from where `result.running` is.

    Args:
        job: Recipe, model and device.
        learner: What is trained, and how.
        supply: Gives the inputs of what is trained.
        result: Its `running` grows with each batch.
        keep: Called every `train.save_minutes`.
        on_batch: Called with (batches done, batches of the epoch).

    Returns:
        The mean loss of the epoch's images, and the learning rate of the last step.
    """
    running, epoch = result.running, len(result.rows) + 1
    before = (epoch - 1) * supply.steps
    period = 60 * job.recipe.train.save_minutes
    started = time.monotonic() - running.seconds
    due = time.monotonic() + period
    set_train_mode(job.model)
    for inputs, labels in supply.batches(epoch, len(running)):  # inputs (N, …), labels (N,)
        with held():  # a step is taken whole or not at all
            result.whole = False
            take_step(job, learner, inputs, labels, running, before + len(running) + 1)
            running.seconds = time.monotonic() - started
            result.whole = True
        on_batch(len(running), supply.steps)
        if time.monotonic() >= due:
            keep()
            due = time.monotonic() + period
    # One look at the losses an epoch: a look at each step would wait for the GPU each time.
    values = torch.stack(running.losses).cpu().double()
    running.seconds = time.monotonic() - started  # now that the device has done all its steps
    if not values.isfinite().all():
        first = int((~values.isfinite()).nonzero()[0])
        left = (
            "the last good checkpoint was kept"
            if result.best
            else "no epoch was finished, so there is no best.pt"
        )
        raise RefusedError(
            f"step {before + first + 1}",
            f"the loss is {values[first]:g} at lr {running.lrs[first]:.2g}",
            "a finite loss was expected",
            f"Lower train.lr; {left}",
        )
    counts = torch.tensor(running.counts)
    return float((values * counts).sum() / counts.sum()), running.lrs[-1]


def take_step(
    job: Job, learner: Learner, inputs: Tensor, labels: Tensor, running: Running, step: int
) -> None:
    """Learn from one batch (N, …) with labels (N,), as step number `step` of the run."""
    train, device = job.recipe.train, job.device
    seed_torch(seed_of(train.seed, step), device)  # dropout and mixing, for any supply
    inputs, labels = to_device(inputs, device), to_device(labels, device)
    if learner.mix:
        inputs, labels = learner.mix(inputs, labels)
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=image_format(device))
    with torch.autocast(device.type, enabled=train.amp):
        loss = learner.criterion(learner.module(inputs), labels)
    learner.scaler.scale(loss).backward()
    if train.clip_grad_norm:
        learner.scaler.unscale_(learner.optimizer)
        nn.utils.clip_grad_norm_(learner.module.parameters(), train.clip_grad_norm)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    running.losses.append(loss.detach())
    running.lrs.append(float(learner.scheduler.get_last_lr()[0]))
    running.counts.append(len(inputs))
    learner.scheduler.step()
    if learner.ema:
        learner.ema.update(learner.module)


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
        scaler=build_scaler(job.device, amp=train.amp),
        mix=build_mix(train, len(job.data.class_names)),
        ema=build_ema(module, train.ema),
    )
