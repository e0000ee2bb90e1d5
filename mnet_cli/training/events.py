"""What a `Trainer` tells its subscribers while it runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnet_cli.training.batches import BatchSource
    from mnet_cli.training.exact import Choice
    from mnet_cli.training.state import EpochProgress, TrainState


@dataclass(frozen=True)
class Column:
    """One thing that is measured of an epoch.

    Attributes:
        name: In `metrics.csv`, the trackers and `EpochEnded.row`.
        title: For people.
        form: Format of its value.
    """

    name: str
    title: str
    form: str


COLUMNS = (
    Column("epoch", "epoch", "{:.0f}"),
    Column("train_loss", "train loss", "{:.4f}"),
    Column("val_loss", "val loss", "{:.4f}"),
    Column("top1", "top-1", "{:.1%}"),
    Column("macro_f1", "macro-F1", "{:.1%}"),
    Column("images_per_second", "images/s", "{:.0f}"),
    Column("lr", "lr", "{:.2g}"),
    Column("seconds", "seconds", "{:.1f}"),
)

Row = Mapping[str, float]


@dataclass(frozen=True)
class RunStarted:
    """Training starts, or a run that was stopped goes on from `state`."""

    state: "TrainState"


@dataclass(frozen=True)
class FeaturesComputed:
    """Views whose frozen activations have been computed and cached, so far and in all."""

    done: int
    total: int


@dataclass(frozen=True)
class PhaseStarted:
    """A phase is ready to train, from these batches."""

    source: "BatchSource"


@dataclass(frozen=True)
class BatchTrained:
    """An optimizer step was taken, number `done` of the epoch's `total`."""

    epoch: int
    done: int
    total: int
    progress: "EpochProgress"


@dataclass(frozen=True)
class FitsSolved:
    """Logistic regressions that were solved to choose the penalty of `train.solver: exact`."""

    done: int
    total: int


@dataclass(frozen=True)
class HeadSolved:
    """The last linear layer is solved."""

    choice: "Choice"


@dataclass(frozen=True)
class ImagesScored:
    """Validation images whose outputs are known, so far and in all."""

    done: int
    total: int


@dataclass(frozen=True)
class EpochEnded:
    """An epoch was trained and scored, and its checkpoints are saved.

    Attributes:
        row: A value for each of `COLUMNS`.
        state: All of training so far.
    """

    row: Row
    state: "TrainState"


@dataclass(frozen=True)
class RunEnded:
    """All phases are done."""

    state: "TrainState"


Event = (
    RunStarted
    | FeaturesComputed
    | PhaseStarted
    | BatchTrained
    | FitsSolved
    | HeadSolved
    | ImagesScored
    | EpochEnded
    | RunEnded
)
Subscriber = Callable[[Event], None]
