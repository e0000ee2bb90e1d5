"""MobileNetV1 against timm's network, the paper's table and its own promises."""

import pytest
import torch

from mnet_cli.models.mobilenet_v1 import mobilenet_v1


def test_outputs_agree_with_timms_network():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("mobilenetv1_100", num_classes=10)
    for name, buffer in theirs.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    ours = mobilenet_v1(10)
    # Both list stem, blocks and classifier in the order of computation.
    pairs = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict(dict(pairs))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=0, atol=1e-5)


def test_the_state_dict_has_the_promised_names():
    names = mobilenet_v1(10).state_dict()
    convolutions = {n for n in names if n.endswith(".0.weight")}
    blocks = {f"features.{i}.{j}.0.weight" for i in range(1, 14) for j in (0, 1)}
    assert convolutions == {"features.0.0.weight"} | blocks
    assert {"features.0.1.running_mean", "features.13.1.1.bias", "classifier.1.bias"} <= set(names)


@pytest.mark.parametrize("width_mult", [0.1, 0.25, 0.5, 0.75, 1.0])
def test_every_layer_is_thinned_to_at_least_eight_channels(width_mult):
    with torch.device("meta"):
        state = mobilenet_v1(width_mult=width_mult).state_dict()
    paper = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    names = ["features.0.0.weight"] + [f"features.{i}.1.0.weight" for i in range(1, 14)]
    assert [state[n].shape[0] for n in names] == [max(8, int(c * width_mult)) for c in paper]


def test_the_last_feature_map_is_a_32nd_of_the_image():
    with torch.device("meta"):
        features = mobilenet_v1(width_mult=0.25).features(torch.empty(1, 3, 224, 224))
    assert features.shape == (1, 256, 7, 7)


def test_an_unknown_argument_is_an_error():
    with pytest.raises(TypeError, match="widht_mult"):
        mobilenet_v1(10, widht_mult=0.5)


@pytest.mark.parametrize("bad", [{"num_classes": 0}, {"width_mult": -1.0}, {"dropout": 1.0}])
def test_a_value_out_of_range_is_an_error(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        mobilenet_v1(**bad)
