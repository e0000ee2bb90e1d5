"""Every architecture by name: defaults, refusals, and that compilers can trace it."""

import inspect

import pytest
import torch
from torch import nn

from mnet_cli.errors import RecipeError, UsageError
from mnet_cli.models.registry import ARCHITECTURES, build_model

every_arch = pytest.mark.parametrize("arch", ARCHITECTURES)


def test_the_four_mobilenets_are_registered():
    assert set(ARCHITECTURES) == {
        "mobilenet_v1",
        "mobilenet_v2",
        "mobilenet_v3_large",
        "mobilenet_v3_small",
    }


@every_arch
def test_the_registered_defaults_are_the_builders(arch):
    architecture = ARCHITECTURES[arch]
    parameters = inspect.signature(architecture.builder).parameters
    assert architecture.dropout == parameters["dropout"].default
    assert architecture.norm_eps == parameters["norm_eps"].default
    assert architecture.has_reduced_tail == ("reduced_tail" in parameters)


@every_arch
def test_a_model_has_the_promised_head_and_the_given_values(arch):
    model = build_model(arch, 7, width_mult=0.25, dropout=0.3, norm_eps=0.01)
    assert isinstance(model.classifier[-1], nn.Linear)
    assert model.classifier[-1].out_features == 7
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.3}
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}


@every_arch
def test_a_dropout_of_zero_is_not_taken_for_the_default(arch):
    model = build_model(arch, 7, width_mult=0.25, dropout=0.0)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.0}


@every_arch
def test_a_reduced_tail_shrinks_v3_and_is_refused_elsewhere(arch):
    with torch.device("meta"):
        if not ARCHITECTURES[arch].has_reduced_tail:
            with pytest.raises(RecipeError, match=f"reduced_tail: true with {arch}"):
                build_model(arch, 10, reduced_tail=True)
            return
        full, reduced = (build_model(arch, 10, reduced_tail=r) for r in (False, True))
    assert reduced.classifier[-1].in_features * 2 == full.classifier[-1].in_features


def test_an_unknown_arch_names_the_nearest():
    with pytest.raises(UsageError, match=r'"mobilnet_v2".*Did you mean "mobilenet_v2"'):
        build_model("mobilnet_v2", 10)
    with pytest.raises(UsageError, match=r'"xyz"; one of mobilenet_v1, .* was expected\.$'):
        build_model("xyz", 10)


@every_arch
def test_torch_export_traces_the_model_for_any_batch(arch):
    model = build_model(arch, 5, width_mult=0.25).eval()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=(batch,))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images))


@every_arch
def test_torch_compile_traces_the_model_as_one_graph(arch):
    model = build_model(arch, 5, width_mult=0.25).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))
