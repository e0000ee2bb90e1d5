"""The shared pieces: channel rounding, the convolution blocks, squeeze-excitation."""

import pytest
import torch
from torch import nn
from torchvision.models._utils import _make_divisible
from torchvision.ops import Conv2dNormActivation
from torchvision.ops import SqueezeExcitation as TorchvisionSqueezeExcitation

from mnet_cli.models.layers import (
    ConvNormActivation,
    DepthwiseSeparable,
    MobileNet,
    SqueezeExcitation,
    check_arguments,
    make_divisible,
)


@pytest.mark.parametrize(
    ("value", "channels"),
    [(32 * 0.35, 16), (16 * 0.5, 8), (3, 8), (12, 16), (11.9, 16), (24 * 1.4, 32), (44, 48)],
)
def test_channels_round_to_the_nearest_multiple_of_eight(value, channels):
    assert make_divisible(value) == channels


def test_rounding_agrees_with_torchvision_and_never_loses_a_tenth():
    for tenths in range(1, 20_000):
        value = tenths / 10
        rounded = make_divisible(value)
        assert rounded == _make_divisible(value, 8)
        assert rounded % 8 == 0
        assert rounded >= 0.9 * value


def test_a_minimum_and_a_divisor_can_be_given():
    assert make_divisible(5, divisor=4) == 8
    assert make_divisible(5, divisor=4, min_value=16) == 16


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 1.0, 0.2), "num_classes"),
        ((10, 0.0, 0.2), "width_mult"),
        ((10, float("nan"), 0.2), "width_mult"),
        ((10, 1.0, 1.0), "dropout"),
        ((10, 1.0, -0.1), "dropout"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        check_arguments(*arguments)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardswish, None])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 2, 1), (5, 2, 8)])
def test_a_convolution_block_is_torchvisions(activation, kernel, stride, groups):
    ours = ConvNormActivation(8, 16, kernel, stride=stride, groups=groups, activation=activation)
    theirs = Conv2dNormActivation(8, 16, kernel, stride, groups=groups, activation_layer=activation)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 8, 9, 9) * 4
    torch.testing.assert_close(ours(images), theirs(images))


def test_a_separable_block_filters_each_channel_then_mixes_them():
    depthwise, pointwise = DepthwiseSeparable(8, 24, 3, stride=2)
    assert depthwise[0].weight.shape == (8, 1, 3, 3)
    assert pointwise[0].weight.shape == (24, 8, 1, 1)
    assert DepthwiseSeparable(8, 24, 3, stride=2)(torch.randn(2, 8, 7, 7)).shape == (2, 24, 4, 4)


def test_squeeze_excitation_is_torchvisions_with_a_hard_gate():
    ours = SqueezeExcitation(16, 8)
    theirs = TorchvisionSqueezeExcitation(16, 8, scale_activation=nn.Hardsigmoid)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 16, 5, 5) * 4
    torch.testing.assert_close(ours(images), theirs(images))


def test_weights_start_as_the_docstring_says():
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(64, 128, 3), nn.Linear(128, 500)
    MobileNet([conv], [linear])
    assert conv.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not conv.bias.any()
    assert not linear.bias.any()
