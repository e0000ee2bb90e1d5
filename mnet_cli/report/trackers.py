"""The experiment trackers that `output.trackers` names, as subscribers of the trainer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from mnet_cli.recipe import Recipe
from mnet_cli.training.events import Event


class Tracker(Protocol):
    """A subscriber of the trainer that is also told when all files of the run are written."""

    def __call__(self, event: Event) -> None:
        """Take an event of the trainer."""

    def finish(self) -> None:
        """Take what remains, now that the run directory is complete."""


def check_trackers(recipe: Recipe) -> None:
    """Check before anything is made that the recipe's trackers can be used.

    Raises:
        MachineError: A package is missing, or a server does not answer.
    """
    if "tensorboard" in recipe.output.trackers:
        from mnet_cli.report.tensorboard import require_tensorboard

        require_tensorboard()
    if "mlflow" in recipe.output.trackers:
        from mnet_cli.report.mlflow import check_server

        check_server()


def open_trackers(recipe: Recipe, run: Path, warn: Callable[[str], None]) -> list[Tracker]:
    """Make the trackers of a run.

    Args:
        recipe: The run's own.
        run: The run directory.
        warn: Told once by each tracker that loses its server while training goes on.

    Raises:
        MachineError: The run directory cannot be written.
    """
    trackers: list[Tracker] = []
    if "tensorboard" in recipe.output.trackers:
        from mnet_cli.report.tensorboard import EpochWriter

        trackers.append(EpochWriter(run / "tensorboard"))
    if "mlflow" in recipe.output.trackers:
        from mnet_cli.report.mlflow import MlflowTracker

        trackers.append(MlflowTracker(recipe, run, warn))
    return trackers


def finish_trackers(trackers: Sequence[Tracker]) -> None:
    """Tell all trackers that the run directory is complete."""
    for tracker in trackers:
        tracker.finish()


def log_complete(recipe: Recipe, run: Path, warn: Callable[[str], None]) -> None:
    """Log what the trackers of a run that has ended could not log in time.

    Args:
        recipe: The run's own.
        run: Its directory, complete.
        warn: Told if that fails again.
    """
    if "mlflow" in recipe.output.trackers:
        from mnet_cli.report.mlflow import MlflowTracker

        MlflowTracker(recipe, run, warn).finish()
