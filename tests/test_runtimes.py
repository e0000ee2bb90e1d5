import numpy as np
import pytest
import torch

from mnet_cli.errors import UsageError, WeightsError
from mnet_cli.models.registry import build_model
from mnet_cli.runtimes import choose_device, open_classifier, torch_classify


def test_classify_gives_the_models_logits_in_evaluation_mode():
    torch.manual_seed(0)
    model = build_model("mobilenet_v2", 3, width_mult=0.35)
    images = np.random.default_rng(0).random((4, 3, 32, 32), np.float32)
    logits = torch_classify(model.train(), torch.device("cpu"))(images)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(images))
    assert logits.dtype == np.float32
    assert np.allclose(logits, expected, atol=1e-5)


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
