"""Every architecture by name: defaults, refusals, and that compilers can trace it."""

from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

from mnet_cli.errors import MachineError, RecipeError, UsageError
from mnet_cli.models.registry import build_model, find_architecture
from mnet_cli.system.plugins import ARCHITECTURES

every_arch = pytest.mark.parametrize("arch", ARCHITECTURES.names())
# Compilers need up to 40 s a network: by default only V3 Small, which has every kind of layer.
every_arch_slowly = pytest.mark.parametrize(
    "arch",
    [
        pytest.param(arch, marks=[] if arch == "mobilenet_v3_small" else [pytest.mark.slow])
        for arch in ARCHITECTURES.names()
    ],
)


def test_the_mobilenets_are_registered():
    assert {
        "mobilenet_v1",
        "mobilenet_v2",
        "mobilenet_v3_large",
        "mobilenet_v3_small",
    } <= set(ARCHITECTURES.names())


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
        if "reduced_tail" not in find_architecture(arch).options:
            with pytest.raises(RecipeError, match=f"reduced_tail: True has no effect with {arch}"):
                build_model(arch, 10, reduced_tail=True)
            return
        full, reduced = (build_model(arch, 10, reduced_tail=r) for r in (False, True))
    assert reduced.classifier[-1].in_features * 2 == full.classifier[-1].in_features


@every_arch
@pytest.mark.parametrize("round_nearest", [1, 4, 16])
def test_channels_are_multiples_of_round_nearest(arch, round_nearest):
    with torch.device("meta"):
        own = build_model(arch, 10, width_mult=0.35)
        model = build_model(arch, 10, width_mult=0.35, round_nearest=round_nearest)
    gates = {m for g in model.modules() if hasattr(g, "fc1") for m in g.modules()}
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m not in gates]
    assert all(m.out_channels % round_nearest == 0 for m in convolutions)
    channels = [
        [m.out_channels for m in n.modules() if isinstance(m, nn.Conv2d)] for n in (own, model)
    ]
    assert channels[0] != channels[1]


def test_round_nearest_gives_torchvisions_channels():
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        ours = build_model("mobilenet_v2", 10, width_mult=0.75, round_nearest=4)
        theirs = models.mobilenet_v2(num_classes=10, width_mult=0.75, round_nearest=4)
    shapes = [{n: t.shape for n, t in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_an_unknown_arch_names_the_nearest():
    with pytest.raises(UsageError, match=r'"mobilnet_v2".*Did you mean "mobilenet_v2"'):
        build_model("mobilnet_v2", 10)
    with pytest.raises(UsageError, match=r'"xyz"\. Choose one of mobilenet_v1, '):
        build_model("xyz", 10)


def test_what_is_no_architecture_is_refused_and_left_out(monkeypatch):
    from mnet_cli.system import plugins

    point = EntryPoint("toy", "math:tau", ARCHITECTURES.group)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    plugins._declared.cache_clear()
    try:
        with pytest.raises(MachineError, match='"toy" is a float, not an Architecture'):
            build_model("toy", 10)
    finally:
        monkeypatch.undo()
        plugins._declared.cache_clear()


@every_arch_slowly
def test_torch_export_traces_the_model_for_any_batch(arch):
    model = build_model(arch, 5, width_mult=0.25).eval()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=(batch,))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images))


@every_arch_slowly
def test_torch_compile_traces_the_model_as_one_graph(arch):
    model = build_model(arch, 5, width_mult=0.25).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))
