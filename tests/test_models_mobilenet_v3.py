"""MobileNetV3 against torchvision's networks, in weights, outputs and gradients."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy

from mnet_cli.models.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small

OURS = {"large": mobilenet_v3_large, "small": mobilenet_v3_small}
THEIRS = {
    "large": torchvision.models.mobilenet_v3_large,
    "small": torchvision.models.mobilenet_v3_small,
}
sizes = pytest.mark.parametrize("size", OURS)


def randomise(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and affine weights of their own."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            for tensor in (module.running_var, module.weight.detach()):
                tensor.uniform_(0.5, 1.5)
    return model


@sizes
@pytest.mark.parametrize("reduced_tail", [False, True])
def test_torchvisions_weights_give_torchvisions_outputs(size, reduced_tail):
    theirs = randomise(THEIRS[size](num_classes=10, reduced_tail=reduced_tail)).eval()
    ours = OURS[size](10, reduced_tail=reduced_tail).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


@sizes
def test_our_weights_load_strictly_into_torchvision(size):
    ours = randomise(OURS[size](10)).eval()
    theirs = THEIRS[size](num_classes=10).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


@sizes
def test_a_training_step_has_torchvisions_gradients_and_statistics(size):
    theirs = randomise(THEIRS[size](num_classes=10, dropout=0.0))
    ours = OURS[size](10, dropout=0.0)
    ours.load_state_dict(theirs.state_dict())
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 3, 3, 9])
    for model in (ours, theirs):
        cross_entropy(model.train()(images), labels).backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)
    for (name, mine), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)


@sizes
@pytest.mark.parametrize("reduced_tail", [False, True])
@pytest.mark.parametrize("width_mult", [0.35, 0.5, 0.75, 1.0, 1.4])
def test_every_width_and_tail_has_torchvisions_shapes(size, reduced_tail, width_mult):
    arguments = {"width_mult": width_mult, "reduced_tail": reduced_tail}
    with torch.device("meta"):
        ours = OURS[size](**arguments).state_dict()
        theirs = THEIRS[size](**arguments).state_dict()
    assert [(n, t.shape) for n, t in ours.items()] == [(n, t.shape) for n, t in theirs.items()]


@sizes
def test_batch_norms_have_the_papers_decay(size):
    norms = [m for m in OURS[size](2).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


@sizes
def test_an_unknown_argument_is_an_error(size):
    with pytest.raises(TypeError, match="dilated"):
        OURS[size](10, dilated=True)


@sizes
@pytest.mark.parametrize("bad", [{"num_classes": 0}, {"width_mult": 0}, {"dropout": -0.5}])
def test_a_value_out_of_range_is_an_error(size, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        OURS[size](**bad)
