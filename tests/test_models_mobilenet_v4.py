"""MobileNetV4 against timm's networks, an independent counter and the paper's numbers."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from mnet_cli.cli import run
from mnet_cli.models.forward import compile_forward
from mnet_cli.models.freeze import freeze, frozen_title, split_frozen
from mnet_cli.models.onnx_forward import OnnxForward
from mnet_cli.models.registry import build_model, find_architecture
from mnet_cli.models.summary import summarize

SMALL, MEDIUM = "mobilenet_v4_conv_small", "mobilenet_v4_conv_medium"


@pytest.mark.parametrize(
    ("arch", "name", "width_mult"),
    [
        (SMALL, "mobilenetv4_conv_small", 1.0),
        (SMALL, "mobilenetv4_conv_small_050", 0.5),
        (SMALL, "mobilenetv4_conv_small_035", 0.35),
        (MEDIUM, "mobilenetv4_conv_medium", 1.0),
    ],
)
def test_timms_weights_load_both_ways_and_outputs_agree(arch, name, width_mult):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    renamed = find_architecture(arch).from_timm(theirs.state_dict())
    ours = build_model(arch, 1000, width_mult=width_mult).eval()
    ours.load_state_dict(renamed, strict=True)
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1
    # And back: every tensor of ours has one of theirs, with the same values.
    back = dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
    other = timm.create_model(name).eval()
    other.load_state_dict(back, strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(other(images), expected, rtol=1e-5, atol=1e-5)


def counted_macs(model: nn.Module, size: int) -> int:
    """Products of every convolution and linear layer, from its own weights and output."""
    counts = []

    def count(module, inputs, output):
        per_value = module.weight.numel() // module.weight.shape[0]
        counts.append(output.numel() * per_value)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    return sum(counts)


@pytest.mark.parametrize(
    ("arch", "size", "millions", "giga"),
    [  # parameters and multiply-adds as the paper rounds them
        (SMALL, 224, 3.8, 0.2),
        (MEDIUM, 256, 9.2, 1.0),
    ],
)
def test_parameters_and_macs_are_the_papers(arch, size, millions, giga):
    model = build_model(arch, 1000).eval()
    summary = summarize(model, size)
    assert summary.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert summary.macs == counted_macs(model, size)
    # timm's and our Conv-Medium have 9.7 M parameters and 1.1 G multiply-adds.
    assert summary.parameters / 1e6 == pytest.approx(millions, rel=0.06)
    assert summary.macs / 1e9 == pytest.approx(giga, rel=0.1)


def test_the_blocks_of_the_paper_are_all_there():
    stages = build_model(MEDIUM, 10, width_mult=0.25).features
    depths = [len(stage.block) for stage in stages if hasattr(stage, "block")]
    assert depths == [2, 4, 4, 4, 4, 4, 4, 4, 3, 2, 3, 4, 4, 4, 4, 2, 3, 4, 4, 2, 2, 3]


@pytest.mark.parametrize("arch", [SMALL, MEDIUM])
@pytest.mark.parametrize(("spec", "title"), [("features[:6]", "features[:6]"), ("features",) * 2])
def test_the_frozen_part_and_the_rest_are_the_network(arch, spec, title):
    model = build_model(arch, 3, width_mult=0.25).eval()
    freeze(model, spec)
    front, rest = split_frozen(model)
    assert frozen_title(model, front) == title
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(rest(front(images)), model(images))
    forward = compile_forward(front, torch.device("cpu"))
    assert isinstance(forward, OnnxForward)
    assert not forward.note
    with torch.inference_mode():
        found, expected = forward(images.numpy()), front(images).numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


def test_the_weights_are_listed(capsys):
    assert run(["info", "--weights", SMALL, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["release"].partition(".")[2] for row in rows] == [
        "e1200_r224_in1k",
        "e2400_r224_in1k",
    ]


def test_it_trains_from_the_cache_and_exports_in_integers(tmp_path, photos, capsys):
    recipe = tmp_path / "v4.yaml"
    recipe.write_text(
        f"""\
schema: 1
model: {{arch: {SMALL}, width_mult: 0.25, weights: none, freeze: "features[:8]"}}
data: {{root: {photos}, image_size: 32, workers: 0}}
train: {{epochs: 2}}
"""
    )
    out = tmp_path / "run"
    assert run(["train", "--recipe", str(recipe), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cache"][0]["boundary"] == f"{SMALL} features[:8]"
    assert run(["export", str(out), "--format", "onnx", "--int8", "--max-drop", "1"]) == 0
    assert (out / f"{SMALL}.int8.onnx").exists()
