"""MobileNetV2 against torchvision's network, in weights, outputs and gradients."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy

from mnet_cli.models.mobilenet_v2 import mobilenet_v2


def randomise(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and affine weights of their own."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            for tensor in (module.running_var, module.weight.detach()):
                tensor.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    return randomise(torchvision.models.mobilenet_v2(num_classes=10, dropout=0.0))


def test_torchvisions_weights_give_torchvisions_outputs(theirs):
    ours = mobilenet_v2(10).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.eval()(images), rtol=0, atol=1e-5)


def test_our_weights_load_strictly_into_torchvision():
    ours = randomise(mobilenet_v2(10)).eval()
    theirs = torchvision.models.mobilenet_v2(num_classes=10).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


def test_a_training_step_has_torchvisions_gradients_and_statistics(theirs):
    ours = mobilenet_v2(10, dropout=0.0)
    ours.load_state_dict(theirs.state_dict())
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 3, 3, 9])
    for model in (ours, theirs):
        cross_entropy(model.train()(images), labels).backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)
    for (name, mine), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)


@pytest.mark.parametrize("width_mult", [0.35, 0.5, 0.75, 1.0, 1.4])
def test_every_width_has_torchvisions_shapes(width_mult):
    with torch.device("meta"):
        ours = mobilenet_v2(width_mult=width_mult).state_dict()
        theirs = torchvision.models.mobilenet_v2(width_mult=width_mult).state_dict()
    assert [(n, t.shape) for n, t in ours.items()] == [(n, t.shape) for n, t in theirs.items()]


def test_only_a_wider_network_has_a_wider_last_convolution():
    with torch.device("meta"):
        last = [mobilenet_v2(width_mult=w).classifier[-1].in_features for w in (0.5, 1.0, 1.4)]
    assert last == [1280, 1280, 1792]


def test_the_batch_norm_epsilon_is_an_argument():
    norms = [m for m in mobilenet_v2(2, norm_eps=1e-3).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 52
    assert {norm.eps for norm in norms} == {1e-3}


def test_an_unknown_argument_is_an_error():
    with pytest.raises(TypeError, match="rounding"):
        mobilenet_v2(10, rounding=4)


@pytest.mark.parametrize("bad", [{"num_classes": 0}, {"width_mult": 0}, {"dropout": 1.5}])
def test_a_value_out_of_range_is_an_error(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        mobilenet_v2(**bad)
