"""A head on several stages: names, pieces, features, and what cannot have one."""

import pytest
import torch
from torch import nn

from mnet_cli.errors import RecipeError
from mnet_cli.models.freeze import freeze, split_frozen
from mnet_cli.models.multi_stage import MultiStage
from mnet_cli.models.onnx_graph import fold_batch_norms
from mnet_cli.models.registry import build_model
from mnet_cli.system.plugins import ARCHITECTURES

every_arch = pytest.mark.parametrize("arch", ARCHITECTURES.names())


@every_arch
def test_all_tensors_but_the_last_layer_are_those_of_the_plain_network(arch):
    plain, model = build_model(arch, 3), build_model(arch, 3, head="multi_stage")
    names = list(plain.state_dict())
    assert list(model.state_dict()) == names
    shapes = [[tensor.shape for tensor in one.state_dict().values()] for one in (plain, model)]
    different = [name for name, a, b in zip(names, *shapes, strict=True) if a != b]
    assert different == [names[-2]]
    assert model.stages == plain.stages and model.head == plain.head


@every_arch
def test_the_features_are_the_means_of_stages_and_what_the_plain_head_sees(arch):
    plain, model = build_model(arch, 3).eval(), build_model(arch, 3, head="multi_stage").eval()
    state = {name: t for name, t in plain.state_dict().items() if t.shape[:1] != (3,)}
    model.load_state_dict(state, strict=False)
    freeze(model, "all_but_last")
    front, rest = split_frozen(model)
    images = torch.randn(2, 3, 64, 64)
    maps = []
    for name in plain.stages:
        plain.get_submodule(name).register_forward_hook(lambda m, i, out: maps.append(out))
    *_, linear = plain.modules()
    linear.register_forward_pre_hook(lambda m, inputs: maps.append(inputs[0]))
    with torch.no_grad():
        plain(images)
        features = front(images)
        assert torch.equal(rest.eval()(features), model(images))
    *maps, seen = maps
    maps = [one for one in maps if one.shape[-1] > 1]
    widths = [one.shape[1] for one in maps]
    last = [
        one.mean((2, 3))
        for one, following in zip(maps, [*widths[1:], 0], strict=True)
        if one.shape[1] != following
    ][-5:]
    if last[-1].shape == seen.shape and torch.allclose(last[-1], seen, atol=1e-5):
        last.pop()  # the plain head sees it, and nothing is there twice
    torch.testing.assert_close(features, torch.cat([*last, seen], 1), atol=1e-5, rtol=1e-4)


def test_the_last_five_widths_of_v2():
    linear = build_model("mobilenet_v2", 3, head="multi_stage").pieces()[-1]
    assert linear.in_features == 64 + 96 + 160 + 320 + 1280


def test_batch_norms_are_folded_where_the_network_sees_it():
    model = build_model("mobilenet_v2", 3, head="multi_stage").eval()
    images = torch.randn(2, 3, 64, 64)
    folded = fold_batch_norms(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model(images), atol=1e-5, rtol=1e-4)


def test_another_kind_of_head_is_refused():
    with pytest.raises(ValueError, match="linear or multi_stage, not pooled"):
        build_model("mobilenet_v2", 3, head="pooled")


def test_a_network_that_is_not_divided_is_refused():
    network = build_model("mobilenet_v2", 3)
    network.pieces = list
    with pytest.raises(RecipeError, match="not divided into pieces"):
        MultiStage(network, 3)
