import pytest
import torch

from mnet_cli.errors import UsageError, WeightsError
from mnet_cli.runtimes import choose_device, open_classifier


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(WeightsError):
        open_classifier(tmp_path, "cpu")


def test_missing_device_is_refused_not_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda"):
        choose_device("cuda")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="--device gpu"):
        choose_device("gpu")
