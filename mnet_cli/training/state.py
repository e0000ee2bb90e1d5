"""How far a run is, and how that is kept in `last.pt` and taken from it again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from mnet_cli.errors import WeightsError
from mnet_cli.formats.checkpoint import Checkpoint, save_checkpoint
from mnet_cli.inference.evaluate import Evaluation, score
from mnet_cli.inference.metrics import Predictions, predictions_of
from mnet_cli.models.freeze import split_frozen
from mnet_cli.recipe import plain_values
from mnet_cli.training.batches import CacheUse
from mnet_cli.training.optimization import Mix, MovingAverage
from mnet_cli.training.setup import Job

Row = Mapping[str, float]


@dataclass
class Running:
    """The epoch that is under way: a loss, a rate and a number of images a batch.

    `seconds` is how long its batches took, in all processes that trained it.
    """

    losses: list[Tensor] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.losses)


@dataclass
class Fit:
    """What training did so far.

    Attributes:
        rows: One row of `COLUMNS` an epoch.
        running: The epoch that is under way.
        phase: The place of the phase in the recipe, from 0.
        phase_start: The phase's first epoch, counted from 1.
        best_epoch: The epoch of `best.pt`, counted from 1.
        best: The evaluation of `best.pt` on the validation images.
        caches: What each phase that used the cache took from it.
        frozen: Number of frozen tensors that were watched.
        moved: Names of frozen tensors that changed; always empty unless mnet is broken.
        seconds: From the start to the end, features that had to be computed included.
        cached: Whether the phase learns from the cache; None before it has begun.
        whole: Not in the middle of a step, nor of an epoch's files.
    """

    rows: list[Row] = field(default_factory=list)
    running: Running = field(default_factory=Running)
    phase: int = 0
    phase_start: int = 1
    best_epoch: int = 0
    best: Evaluation | None = None
    caches: list[CacheUse] = field(default_factory=list)
    frozen: int = 0
    moved: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cached: bool | None = None
    whole: bool = True

    @property
    def position(self) -> tuple[int, int]:
        """The epoch that is under way or next, from 1, and its batches that are done."""
        return len(self.rows) + 1, len(self.running)


@dataclass
class Learner:
    """What changes the weights of `module` in one phase."""

    module: nn.Module
    criterion: nn.CrossEntropyLoss
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    mix: Mix | None
    ema: MovingAverage | None


def state_of_part(model: nn.Module, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of `module`, the last part of `model` or a copy of it, by the model's names.

    The part has names of its own, but its tensors come in the same order.
    """
    names, part = list(model.state_dict()), module.state_dict()
    tensors = [tensor.contiguous() for tensor in part.values()]
    return dict(zip(names[len(names) - len(part) :], tensors, strict=True))


def load_part(model: nn.Module, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors, by the model's names, into `module`, the last part of `model` or a copy of it.

    A run may go on where the part is another than where it was saved: above the frozen boundary
    on a CPU, the whole network elsewhere. Frozen tensors that were not saved stay as they are.

    Raises:
        KeyError: One that is not frozen was not saved.
    """
    names, part = list(model.state_dict()), list(module.state_dict())
    frozen = set(names[: len(split_frozen(model)[0].state_dict())])
    state = {
        own: tensors[name]
        for name, own in zip(names[len(names) - len(part) :], part, strict=True)
        if name in tensors or name not in frozen
    }
    module.load_state_dict(state, strict=False)


def as_checkpoint(
    job: Job,
    module: nn.Module,
    metrics: Mapping[str, float],
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
        metrics=metrics,
        training=training or {},
    )


def save_last(job: Job, learner: Learner, result: Fit, steps: int) -> None:
    """Write `last.pt`: all that a run needs to go on as if it had not been stopped.

    Random numbers are drawn from seeds of the epoch and the step, so no generator's state is
    among it.

    Args:
        job: The run.
        learner: What is trained, between two steps.
        result: How far it is.
        steps: Of an epoch.
    """
    ema, running, best = learner.ema, result.running, result.best
    training = {
        "optimizer": learner.optimizer.state_dict(),
        "scheduler": learner.scheduler.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "ema": ema
        and {
            "updates": ema.updates,
            "state_dict": state_of_part(job.model, ema.module),
        },
        "epoch": len(result.rows),
        "step": len(result.rows) * steps + len(running),
        "seed": job.recipe.train.seed,
        "account": job.account and asdict(job.account),
        "running": {
            "losses": torch.stack(running.losses).cpu() if len(running) else torch.zeros(0),
            "lrs": running.lrs,
            "counts": running.counts,
            "seconds": running.seconds,
        },
        "history": {
            "rows": [dict(row) for row in result.rows],
            "phase": result.phase,
            "phase_start": result.phase_start,
            "best_epoch": result.best_epoch,
            "best": best
            and {name: torch.from_numpy(array) for name, array in vars(best.predictions).items()},
            "caches": [asdict(use) for use in result.caches],
            "cached": result.cached,
            "frozen": result.frozen,
            "moved": result.moved,
            "seconds": result.seconds,
        },
    }
    metrics = {"epoch": result.best_epoch, **best.figures()} if best else {}
    save_checkpoint(job.run / "last.pt", as_checkpoint(job, learner.module, metrics, training))


def restore_fit(job: Job, kept: Checkpoint) -> Fit:
    """Take how far a run is from its `last.pt`.

    Raises:
        WeightsError: The file is from a version that kept less.
    """
    try:
        history, running = kept.training["history"], kept.training["running"]
        return Fit(
            rows=history["rows"],
            running=Running(
                list(running["losses"].to(job.device)),
                running["lrs"],
                running["counts"],
                float(running.get("seconds", 0)),  # files of earlier versions lack it
            ),
            phase=history["phase"],
            phase_start=history["phase_start"],
            best_epoch=history["best_epoch"],
            best=_restore_best(job, history),
            caches=[CacheUse(**use) for use in history["caches"]],
            cached=history["cached"],
            frozen=history["frozen"],
            moved=history["moved"],
            seconds=history["seconds"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_resumable(job, error) from error


def _restore_best(job: Job, history: Mapping[str, Any]) -> Evaluation | None:
    """Take the evaluation of `best.pt` from `last.pt`; None before there is one."""
    labels = job.data.splits["val"].labels
    if "best_logits" in history:  # an earlier version kept the logits (N, C)
        logits = history["best_logits"]
        predictions = None if logits is None else predictions_of(logits.numpy(), labels)
    else:
        kept = history["best"]
        predictions = kept and Predictions(**{name: row.numpy() for name, row in kept.items()})
    if predictions is None:
        return None
    return score([predictions], labels, job.data.class_names, job.data.files("val"))


def restore_learner(job: Job, learner: Learner, kept: Checkpoint) -> None:
    """Put the state of optimizer, schedule, scaler and average back.

    Raises:
        WeightsError: It does not fit.
    """
    training = kept.training
    try:
        learner.optimizer.load_state_dict(training["optimizer"])
        learner.scheduler.load_state_dict(training["scheduler"])
        if training["scaler"]:  # empty where autocast needed none, such as on a CPU
            learner.scaler.load_state_dict(training["scaler"])
        if learner.ema:
            load_part(job.model, learner.ema.module, training["ema"]["state_dict"])
            learner.ema.updates = int(training["ema"]["updates"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _not_resumable(job, error) from error


def _not_resumable(job: Job, error: Exception) -> WeightsError:
    return WeightsError(
        str(job.run / "last.pt"),
        f"no state that training can go on from ({type(error).__name__}: {error})",
        "what this version of mnet train keeps was expected",
        "Train again; best.pt is as it was",
    )
