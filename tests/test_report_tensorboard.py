"""Event files, written and read back with TensorBoard's own reader."""

import math
import sys

import pytest

from mnet_cli.errors import MachineError
from mnet_cli.report.tensorboard import EpochWriter
from mnet_cli.training.events import EpochEnded
from mnet_cli.training.state import TrainState


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
