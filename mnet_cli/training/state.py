"""How far training is, and how `last.pt` keeps it."""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mnet_cli.errors import WeightsError
from mnet_cli.formats.checkpoint import Checkpoint
from mnet_cli.inference.evaluate import Evaluation, score
from mnet_cli.inference.metrics import Predictions, predictions_of
from mnet_cli.models.freeze import split_frozen
from mnet_cli.recipe import plain_values
from mnet_cli.training.batches import CacheUse
from mnet_cli.training.events import Row
from mnet_cli.training.exact import Choice
from mnet_cli.training.job import Job
from mnet_cli.training.optimization import Optimization

SHOWN_LOSSES = 100  # steps that the running loss is a mean of


@dataclass
class EpochProgress:
    """The epoch under way: a loss, a learning rate and a number of images for each step.

    `seconds` is how long its steps took, in all processes that trained it.
    """

    losses: list[Tensor] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.losses)

    def running_loss(self) -> float:
        """The mean loss of the last `SHOWN_LOSSES` steps; it waits for the device."""
        return float(torch.stack(self.losses[-SHOWN_LOSSES:]).mean())


@dataclass
class TrainState:
    """All of training that is saved and restored.

    Attributes:
        rows: One row of `COLUMNS` an epoch.
        progress: The epoch under way.
        phase: The phase's place in the recipe, from 0.
        phase_start: The phase's first epoch, counted from 1.
        best_epoch: The epoch of `best.pt`, counted from 1.
        best: The evaluation of `best.pt` on the validation images.
        caches: What each phase that used the cache took from it.
        frozen: Number of frozen tensors that were watched.
        moved: Names of frozen tensors that changed; always empty unless mnet is broken.
        seconds: From the start to the end, features that had to be computed included.
        cached: Whether the phase learns from the cache; None before it has begun.
        choice: How the penalty of an exact solution was chosen; None where there is none.
    """

    rows: list[Row] = field(default_factory=list)
    progress: EpochProgress = field(default_factory=EpochProgress)
    phase: int = 0
    phase_start: int = 1
    best_epoch: int = 0
    best: Evaluation | None = None
    caches: list[CacheUse] = field(default_factory=list)
    frozen: int = 0
    moved: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cached: bool | None = None
    choice: Choice | None = None

    @property
    def epoch(self) -> int:
        """The epoch under way or next, counted from 1."""
        return len(self.rows) + 1

    @property
    def cached_views(self) -> int | None:
        """Views of each image that the phase takes from the cache; None before it has begun."""
        if self.cached is None:
            return None
        return self.caches[-1].views if self.cached else 0


def part_names(model: nn.Module, part: nn.Module) -> list[str]:
    """The model's names of the tensors of a part that shares them, in the part's order."""
    names = defaultdict[int, deque[str]](deque)  # a tensor that is used twice has several
    for name, tensor in model.state_dict(keep_vars=True).items():
        names[id(tensor)].append(name)
    return [names[id(tensor)].popleft() for tensor in part.state_dict(keep_vars=True).values()]


def named_tensors(names: Sequence[str], module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a part, or of a copy of it, by the model's names."""
    tensors = [tensor.contiguous() for tensor in module.state_dict().values()]
    return dict(zip(names, tensors, strict=True))


def load_part(
    model: nn.Module, names: Sequence[str], module: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put tensors, by the model's names, into a part of the model or a copy of it.

    A run may be resumed where the part is another than where it was saved: above the frozen
    boundary on a CPU, the whole network elsewhere. Frozen tensors that were not saved stay as
    they are.

    Raises:
        KeyError: A tensor that is not frozen was not saved.
    """
    frozen = set(part_names(model, split_frozen(model)[0]))
    state = {
        own: tensors[name]
        for name, own in zip(names, module.state_dict(), strict=True)
        if name in tensors or name not in frozen
    }
    module.load_state_dict(state, strict=False)


def as_checkpoint(
    job: Job,
    learned: Mapping[str, Tensor],
    metrics: Mapping[str, float],
    training: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Put the model, with these tensors in place of its own, and its scores into a checkpoint."""
    state = job.model.state_dict() | dict(learned)
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


def as_last(
    job: Job, state: TrainState, optimization: Optimization, names: Sequence[str], steps: int
) -> Checkpoint:
    """The content of `last.pt`: all that a run needs to end as if it had not been stopped.

    Random numbers are drawn from seeds of the epoch and the step, so no generator's state is
    among it.

    Args:
        job: The run.
        state: Between two steps.
        optimization: Of the phase.
        names: The model's names of the tensors of `optimization.module`.
        steps: Of an epoch.
    """
    ema, progress, best = optimization.ema, state.progress, state.best
    training = {
        "optimizer": optimization.optimizer.state_dict(),
        "scheduler": optimization.scheduler.state_dict(),
        "scaler": optimization.scaler.state_dict(),
        "ema": ema
        and {
            "updates": ema.updates,
            "state_dict": named_tensors(names, ema.module),
        },
        "epoch": len(state.rows),
        "step": len(state.rows) * steps + len(progress),
        "seed": job.recipe.train.seed,
        "account": job.weights and asdict(job.weights),
        "running": {
            "losses": torch.stack(progress.losses).cpu() if len(progress) else torch.zeros(0),
            "lrs": progress.lrs,
            "counts": progress.counts,
            "seconds": progress.seconds,
        },
        "history": {
            "processes": job.group.size,
            "rows": [dict(row) for row in state.rows],
            "phase": state.phase,
            "phase_start": state.phase_start,
            "best_epoch": state.best_epoch,
            "best": best
            and {name: torch.from_numpy(array) for name, array in vars(best.predictions).items()},
            "caches": [asdict(use) for use in state.caches],
            "cached": state.cached,
            "frozen": state.frozen,
            "moved": state.moved,
            "seconds": state.seconds,
            "choice": state.choice and asdict(state.choice),
        },
    }
    metrics = {"epoch": state.best_epoch, **best.figures()} if best else {}
    return as_checkpoint(job, named_tensors(names, optimization.module), metrics, training)


def restore_state(job: Job) -> TrainState:
    """Take how far training is from the job's `last.pt`; a new state where there is none.

    Raises:
        WeightsError: The file is of a version that saved less.
    """
    if job.resume_state is None:
        return TrainState()
    training = job.resume_state.training
    try:
        history, progress = training["history"], training["running"]
        return TrainState(
            rows=history["rows"],
            progress=EpochProgress(
                list(progress["losses"].to(job.device)),
                progress["lrs"],
                progress["counts"],
                float(progress.get("seconds", 0)),  # files of earlier versions lack it
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
            choice=Choice(**saved) if (saved := history.get("choice")) else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_resumable(job, error) from error


def _restore_best(job: Job, history: Mapping[str, Any]) -> Evaluation | None:
    """Take the evaluation of `best.pt` from `last.pt`; None before there is one."""
    labels = job.data.splits["val"].labels
    if "best_logits" in history:  # an earlier version saved the logits (N, C)
        logits = history["best_logits"]
        predictions = None if logits is None else predictions_of(logits.numpy(), labels)
    else:
        saved = history["best"]
        predictions = saved and Predictions(**{name: row.numpy() for name, row in saved.items()})
    if predictions is None:
        return None
    return score([predictions], labels, job.data.class_names, job.data.files("val"))


def restore_optimization(
    job: Job, optimization: Optimization, names: Sequence[str], training: Mapping[str, Any]
) -> None:
    """Put the state of optimizer, schedule, scaler and average back.

    Args:
        job: The run.
        optimization: Of the phase, as it was built.
        names: The model's names of the tensors of `optimization.module`.
        training: Of `last.pt`.

    Raises:
        WeightsError: It does not fit.
    """
    try:
        optimization.optimizer.load_state_dict(training["optimizer"])
        optimization.scheduler.load_state_dict(training["scheduler"])
        if training["scaler"]:  # empty where autocast needed none, such as on a CPU
            optimization.scaler.load_state_dict(training["scaler"])
        if ema := optimization.ema:
            load_part(job.model, names, ema.module, training["ema"]["state_dict"])
            ema.updates = int(training["ema"]["updates"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _not_resumable(job, error) from error


def _not_resumable(job: Job, error: Exception) -> WeightsError:
    return WeightsError(
        str(job.run / "last.pt"),
        f"holds no state that training can resume from ({type(error).__name__}: {error})",
        next_step="Train again; best.pt is unchanged",
    )
