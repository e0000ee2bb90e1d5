"""The training loop: phases, epochs, steps. It emits events and never prints."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnet_cli.data.loader import EpochBatches, seed_of, seed_torch, worker_death
from mnet_cli.errors import MachineError, MnetError, RefusedError
from mnet_cli.formats.checkpoint import save_checkpoint
from mnet_cli.inference.evaluate import Evaluation
from mnet_cli.models.device import image_format, to_device
from mnet_cli.models.freeze import freeze, frozen_fingerprint, moved, set_train_mode
from mnet_cli.recipe import Phase
from mnet_cli.system.atomic import write_csv
from mnet_cli.system.signals import DeferredSignals, StopSignal
from mnet_cli.training.batches import BatchSource, CachedBatches, TrainBatch, choose_source
from mnet_cli.training.distributed import Share, share_of, sum_gradients, synchronized_batches
from mnet_cli.training.events import (
    COLUMNS,
    BatchTrained,
    EpochEnded,
    Event,
    FeaturesComputed,
    FitsSolved,
    HeadSolved,
    ImagesScored,
    PhaseStarted,
    Row,
    RunEnded,
    RunStarted,
    Subscriber,
)
from mnet_cli.training.exact import TrainingRows, last_linear, solve
from mnet_cli.training.job import Job
from mnet_cli.training.optimization import Optimization, build_optimization
from mnet_cli.training.state import (
    EpochProgress,
    TrainState,
    as_checkpoint,
    as_last,
    named_tensors,
    part_names,
    restore_optimization,
    restore_state,
)

OUT_OF_MEMORY = ("not enough memory", "out of memory", "cannot allocate memory")  # torch's words
IS_BETTER: Mapping[str, Callable[[Evaluation, Evaluation], bool]] = {  # at a tie the earlier wins
    "top1": lambda new, best: new.top1 > best.top1,
    "macro_f1": lambda new, best: new.macro_f1 > best.macro_f1,
    "loss": lambda new, best: new.loss < best.loss,
}


class Trainer:
    """Trains the model of a job, and keeps `best.pt`, `last.pt` and `metrics.csv` of it.

    A run that was stopped is resumed from `job.resume_state`, and ends as it would have ended.

    Args:
        job: Recipe, model, data, device and run directory.
        subscribers: Called with each event, in the order given.

    Attributes:
        job: The run.
        state: How far training is; all that is saved and restored.
        epochs: The epochs of the phase, counted from 1.
        source: Where the phase gets its batches.
        optimization: What changes the weights in the phase.
        names: The model's names of the tensors of `optimization.module`.
    """

    epochs: range
    source: BatchSource
    optimization: Optimization
    names: list[str]

    def __init__(self, job: Job, subscribers: Sequence[Subscriber] = ()) -> None:
        self.job, self.group = job, job.group
        self.subscribers: tuple[Subscriber, ...] = (MetricsFile(job.run), *subscribers)
        if not self.group.is_main:
            self.subscribers = ()  # one process tells and writes
        self.state = restore_state(job)
        self.signals = DeferredSignals()
        self.order = EpochBatches(
            job.data.splits["train"].labels,
            job.recipe.data.batch_size,
            job.recipe.train.seed,
            balanced=job.recipe.data.balance == "sampler",
        )
        self._started = time.monotonic() - self.state.seconds
        self._is_consistent = True  # neither in the middle of a step nor of an epoch's files

    def fit(self) -> TrainState:
        """Train to the end of the last phase.

        Raises:
            DataError: An image has become unreadable; the state of training is saved.
            RefusedError: The loss is not finite; the last good checkpoint stays.
            MachineError: A file cannot be written, a process that loads images died, or there
                is too little memory.
            WeightsError: `job.resume_state` is no state to resume from.
        """
        self.job.model.to(self.job.device).to(memory_format=image_format(self.job.device))
        self.emit(RunStarted(self.state))
        with self.signals:
            phases = list(enumerate(self.job.recipe.phases))
            for number, phase in phases[self.state.phase :]:
                self.run_phase(number, phase)
        self.state.seconds = time.monotonic() - self._started
        self.emit(RunEnded(self.state))
        return self.state

    def run_phase(self, number: int, phase: Phase) -> None:
        """Train to the end of phase `number`; whatever stops it, a checkpoint is saved first."""
        state, model = self.state, self.job.model
        resumed = self.job.resume_state if number == state.phase else None
        if number > state.phase:
            state.phase, state.phase_start, state.cached = number, state.epoch, None
        self.epochs = range(state.phase_start, state.phase_start + phase.epochs)
        if self.is_over():
            return
        freeze(model, phase.freeze)
        before = frozen_fingerprint(model)
        state.frozen = max(state.frozen, len(before))
        self.source = choose_source(
            self.job,
            self.order,
            self.epochs,
            (state.epoch, len(state.progress)),
            state.cached_views,
            lambda done, total: self.emit(FeaturesComputed(done, total)),
        )
        state.cached = self.source.cache is not None
        self.emit(PhaseStarted(self.source))
        if self.source.cache and not resumed:
            state.caches.append(self.source.cache)
        self.optimization = build_optimization(
            self.job.recipe,
            phase,
            self.source.module,
            self.source.steps,
            self.job.data.splits["train"].labels,
            len(self.job.data.class_names),
            self.job.device,
        )
        self.names = part_names(model, self.source.module)
        if resumed:
            restore_optimization(self.job, self.optimization, self.names, resumed.training)
        if self.source.is_shared or self.group.is_main:
            self._run_epochs()
        if not self.source.is_shared:
            self._follow_main()
        self.state.moved += moved(before, model)

    def _follow_main(self) -> None:
        """Take over what process 0 has trained alone."""
        if self.group.size == 1:
            return
        model, state = self.job.model, self.state

        def result() -> tuple[TrainState, dict[str, Tensor]]:
            assert state.best is not None, "a phase has at least one epoch"
            return replace(state, best=replace(state.best, images=())), model.state_dict()

        found, tensors = self.group.from_main(result)
        if not self.group.is_main:
            self.state = found
            model.load_state_dict(tensors)

    def _run_epochs(self) -> None:
        try:
            while not self.is_over():
                self.run_epoch()
        except (
            KeyboardInterrupt, StopSignal, MnetError, OSError, RuntimeError, MemoryError,
        ) as error:  # fmt: skip
            fault = worker_death(error) or self._memory_fault(error)
            if fault is None and isinstance(error, RuntimeError):
                raise
            if self._is_consistent:
                # The error is to be reported; where a worker has died, others may follow it.
                deferred = self.signals.defer() if fault else nullcontext()
                with suppress(MachineError, RuntimeError), deferred:
                    self.save_checkpoint()
            if fault:
                raise fault from error
            raise

    def is_over(self) -> bool:
        """Whether the phase has had all its epochs, or no better one for too long."""
        state, patience = self.state, self.job.recipe.train.early_stop
        waited = len(state.rows) - max(state.best_epoch, self.epochs.start - 1)
        return state.epoch >= self.epochs.stop or bool(patience and waited >= patience)

    def run_epoch(self) -> None:
        """Train to the end of an epoch, score it, and save its checkpoints."""
        state, epoch = self.state, self.state.epoch
        is_exact = self.job.recipe.train.solver == "exact"
        loss, lr = self._solve() if is_exact else self._train_epoch()
        trained, clock = state.progress.seconds, time.monotonic()
        evaluation = self.source.evaluate(
            self.optimization.averaged, lambda done, total: self.emit(ImagesScored(done, total))
        )
        row: Row = {
            "epoch": epoch,
            "train_loss": loss,
            "val_loss": evaluation.loss,
            "top1": evaluation.top1,
            "macro_f1": evaluation.macro_f1,
            "images_per_second": self.order.count / max(trained, 1e-3),
            "lr": lr,
            "seconds": trained + time.monotonic() - clock,
        }
        with self.signals.defer():  # the files of an epoch belong together
            self._is_consistent = False
            state.rows.append(row)
            state.progress = EpochProgress()
            is_better = IS_BETTER[self.job.recipe.train.monitor]
            if state.best is None or is_better(evaluation, state.best):
                state.best, state.best_epoch = evaluation, epoch
                self._save_best()
            self._is_consistent = True
            self.save_checkpoint()
            self.emit(EpochEnded(row, state))

    def _train_epoch(self) -> tuple[float, float]:
        """Take the epoch's remaining steps.

        Returns:
            The mean loss of the epoch's images, and the learning rate of the last step.
        """
        progress, epoch, steps = self.state.progress, self.state.epoch, self.source.steps
        period = 60 * self.job.recipe.train.save_minutes
        started = time.monotonic() - progress.seconds
        due = time.monotonic() + period
        set_train_mode(self.job.model)
        together = self.group.size > 1 and self.source.is_shared
        # Processes that take steps together look for signals together, between two of them.
        with self.signals.defer() if together else nullcontext():
            batches: Iterable[TrainBatch] = self.source.batches(epoch, len(progress))
            if together:
                batches = synchronized_batches(batches, self.group, self.signals)
            for batch in batches:
                with self.signals.defer():  # a step is taken whole or not at all
                    self._is_consistent = False
                    self.step(batch)
                    progress.seconds = time.monotonic() - started
                    self._is_consistent = True
                self.emit(BatchTrained(epoch, len(progress), steps, progress))
                if time.monotonic() >= due:
                    self.save_checkpoint()
                    due = time.monotonic() + period
        # One look at the losses an epoch: a look at each step would wait for the GPU each time.
        values = torch.stack(progress.losses).cpu().double()
        progress.seconds = time.monotonic() - started  # now that the device has done all its steps
        self._refuse_infinite(values)
        counts = torch.tensor(progress.counts)
        return float((values * counts).sum() / counts.sum()), progress.lrs[-1]

    def _solve(self) -> tuple[float, float]:
        """Solve the last linear layer.

        Returns:
            The mean loss of the training images, and 0 for the learning rate, which there is none.
        """
        job, started = self.job, time.monotonic()
        layer = last_linear(self.source.module)
        assert layer is not None and isinstance(self.source, CachedBatches), "it was checked"
        samples = job.data.splits["train"]
        weights = self.optimization.criterion.weight  # None where all classes count the same
        solution = solve(
            TrainingRows(
                self.source.train_rows(),
                samples.labels,
                layer.out_features,
                np.ones(layer.out_features) if weights is None else weights.cpu().double().numpy(),
                samples.sha256,
            ),
            job.recipe.train.seed,
            lambda done, total: self.emit(FitsSolved(done, total)),
        )
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(solution.weight))
            layer.bias.copy_(torch.from_numpy(solution.bias))
        self.state.choice = solution.choice
        self.state.progress.seconds = time.monotonic() - started
        self.emit(HeadSolved(solution.choice))
        return solution.loss, 0.0

    def step(self, batch: TrainBatch) -> None:
        """Learn from one batch."""
        train, device, state, learning = (
            self.job.recipe.train,
            self.job.device,
            self.state,
            self.optimization,
        )
        number = len(state.rows) * self.source.steps + len(state.progress) + 1  # of the run
        seed_torch(seed_of(train.seed, number), device)  # dropout and mixing, for any source
        inputs, labels = to_device(batch.inputs, device), to_device(batch.labels, device)
        together = self.group.size > 1 and self.source.is_shared
        share = Share(nullcontext(), 1.0)
        if together:
            is_mixed = learning.mix is not None
            share = share_of(batch.part, self.group, learning.criterion, labels, mixed=is_mixed)
            labels = labels[batch.part.indices(batch.part.extra if is_mixed else 0)]
        if learning.mix:
            inputs, labels = learning.mix(inputs, labels)
            inputs, labels = inputs[batch.part.extra :], labels[batch.part.extra :]
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=image_format(device))
        with torch.autocast(device.type, enabled=train.amp), share.forward:
            loss = learning.criterion(learning.module(inputs), labels)
        if together:
            loss = loss * share.weight
        learning.scaler.scale(loss).backward()
        if together:
            loss = sum_gradients(learning.module, loss, self.group)
        if train.clip_grad_norm:
            learning.scaler.unscale_(learning.optimizer)
            nn.utils.clip_grad_norm_(learning.module.parameters(), train.clip_grad_norm)
        learning.scaler.step(learning.optimizer)
        learning.scaler.update()
        learning.optimizer.zero_grad(set_to_none=True)
        state.progress.losses.append(loss.detach())
        state.progress.lrs.append(float(learning.scheduler.get_last_lr()[0]))
        state.progress.counts.append(batch.part.total)
        learning.scheduler.step()
        if learning.ema:
            learning.ema.update(learning.module)

    def save_checkpoint(self) -> None:
        """Write `last.pt`, unless the weights are not finite: then the good one stays."""
        if not self.group.is_main:
            return
        losses, weights = self.state.progress.losses, self.optimization.module.parameters()
        if losses and not torch.stack(losses).isfinite().all():
            return
        # The last step may have made the weights NaN: its own loss was computed before.
        if not all(weight.isfinite().all() for weight in weights):
            return
        self.state.seconds = time.monotonic() - self._started
        last = as_last(self.job, self.state, self.optimization, self.names, self.source.steps)
        save_checkpoint(self.job.run / "last.pt", last)

    def emit(self, event: Event) -> None:
        """Tell every subscriber, unless another process has failed: then raise its error."""
        self.group.check()
        for subscriber in self.subscribers:
            subscriber(event)

    def _save_best(self) -> None:
        if not self.group.is_main:
            return
        assert self.state.best is not None, "it was scored"
        metrics: dict[str, Any] = {"epoch": self.state.best_epoch, **self.state.best.figures()}
        learned = named_tensors(self.names, self.optimization.averaged)
        save_checkpoint(self.job.run / "best.pt", as_checkpoint(self.job, learned, metrics))

    def _refuse_infinite(self, losses: Tensor) -> None:
        """Refuse losses (N,) of the epoch's steps that are not finite."""
        if losses.isfinite().all():
            return
        first = int((~losses.isfinite()).nonzero()[0])
        left = (
            "the last good checkpoint was kept"
            if self.state.best
            else "no epoch was finished, so there is no best.pt"
        )
        raise RefusedError(
            f"step {len(self.state.rows) * self.source.steps + first + 1}",
            f"the loss is {losses[first]:g} at lr {self.state.progress.lrs[first]:.2g}",
            next_step=f"Lower train.lr; {left}",
        )

    def _memory_fault(self, error: BaseException) -> MachineError | None:
        """The error for too little memory behind what torch raises; None for another one."""
        said = str(error).casefold() if isinstance(error, RuntimeError) else ""
        if not isinstance(error, MemoryError) and not any(word in said for word in OUT_OF_MEMORY):
            return None
        if self.job.recipe.train.solver == "exact":
            return MachineError(
                "train.solver",
                "too little memory for the features of all images",
                next_step="Set data.augment: none, or train.solver: sgd",
            )
        size = self.job.recipe.data.batch_size
        return MachineError(
            "data.batch_size",
            f"too little memory for batches of {size} images",
            next_step=f"Try --set data.batch_size={max(2, size // 2)}",
        )


class MetricsFile:
    """Writes `metrics.csv`, a row an epoch.

    Args:
        run: The run directory.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "metrics.csv"

    def __call__(self, event: Event) -> None:
        """Write all rows again at the end of an epoch, and of the run."""
        if isinstance(event, EpochEnded | RunEnded):
            write_csv(self.path, [column.name for column in COLUMNS], event.state.rows)
