"""Event files, written and read back with TensorBoard's own reader."""

import math
import sys

import pytest
import torch

from mnet_cli.cli import run
from mnet_cli.errors import MachineError
from mnet_cli.recipe import load_recipe
from mnet_cli.report.tensorboard import EpochWriter
from mnet_cli.report.trackers import open_trackers
from mnet_cli.training.events import EpochEnded
from mnet_cli.training.prepare import prepare_data, prepare_job
from mnet_cli.training.state import TrainState
from mnet_cli.training.trainer import Trainer


def scalars(folder):
    """{name: [(step, value), …]} of the event files in `folder`."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}


def test_two_epochs_read_back_while_the_writer_is_open(tmp_path):
    write_epoch = EpochWriter(tmp_path / "events")
    write_epoch(EpochEnded({"epoch": 1, "train_loss": 1.5, "top1": 0.25}, TrainState()))
    write_epoch(EpochEnded({"epoch": 2, "train_loss": math.nan, "top1": 0.5}, TrainState()))
    found = scalars(tmp_path / "events")
    assert found["top1"] == [(1, 0.25), (2, 0.5)]
    assert found["train_loss"][0] == (1, 1.5)
    assert math.isnan(found["train_loss"][1][1])
    assert found.keys() == {"train_loss", "top1"}


def raw_steps(folder):
    """The steps of every record of every event file, nothing purged."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    files = sorted(folder.glob("events.out.tfevents.*"))
    events = (event for file in files for event in loader.EventFileLoader(str(file)).Load())
    return [(value.tag, event.step) for event in events for value in event.summary.value]


def test_a_resumed_run_has_each_epoch_once(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(tiny_recipe, ["train.epochs=3", "output.trackers=[tensorboard]"])
    job = prepare_job(recipe, prepare_data(recipe), torch.device("cpu"), tmp_path / "run")

    def stop(event):  # as if killed when last.pt has the epoch and the event file has not
        if isinstance(event, EpochEnded) and event.row["epoch"] == 2:
            raise KeyboardInterrupt

    trackers = open_trackers(recipe, job.run, print)
    with pytest.raises(KeyboardInterrupt):
        Trainer(job, [stop, *trackers]).fit()
    job.lock.release()
    events = job.run / "tensorboard"
    assert [step for step, _ in scalars(events)["top1"]] == [1]

    assert run(["train", "--resume", str(job.run)]) == 0
    rows = (job.run / "metrics.csv").read_text().splitlines()[1:]
    assert [step for step, _ in scalars(events)["top1"]] == [1, 2, 3]
    assert [value for _, value in scalars(events)["train_loss"]] == pytest.approx(
        [float(row.split(",")[1]) for row in rows]
    )
    steps = raw_steps(events)  # also for readers that purge nothing
    assert len(steps) == len(set(steps)) == 3 * 7


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MachineError, match=r'pip install "mnet-cli\[tensorboard\]"') as caught:
        EpochWriter(tmp_path)
    assert caught.value.exit_code == 5
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_machine_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="cannot be written"):
        EpochWriter(tmp_path / "file" / "events")
