"""The layer table against the papers' figures and an independent counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mnet_cli.models.registry import build_model
from mnet_cli.models.summary import Summary, summarize
from mnet_cli.system.plugins import ARCHITECTURES


def summary_of(arch: str, image_size: int = 224, **arguments) -> Summary:
    with torch.device("meta"):
        return summarize(build_model(arch, 1000, **arguments), image_size)


@pytest.mark.parametrize(
    ("arch", "image_size", "width_mult", "macs", "parameters", "published"),
    [  # published: millions of multiply-adds and of parameters
        ("mobilenet_v1", 224, 1.00, 568_740_352, 4_231_976, (569, 4.2)),  # table 6
        ("mobilenet_v1", 224, 0.75, 325_400_448, 2_585_560, (325, 2.6)),
        ("mobilenet_v1", 224, 0.50, 149_497_088, 1_331_592, (149, 1.3)),
        ("mobilenet_v1", 224, 0.25, 41_030_272, 470_072, (41, 0.5)),
        ("mobilenet_v1", 192, 1.00, 418_121_728, 4_231_976, (418, 4.2)),  # table 7
        ("mobilenet_v1", 128, 1.00, 186_400_768, 4_231_976, (186, 4.2)),
        ("mobilenet_v2", 224, 1.00, 300_774_272, 3_504_872, (300, 3.47)),  # TF-Slim's README
        ("mobilenet_v2", 224, 1.40, 582_195_824, 6_108_776, (582, 6.06)),  # paper: 6.9
        ("mobilenet_v3_large", 224, 1.00, 216_589_760, 5_483_032, (219, 5.4)),  # table 3
        ("mobilenet_v3_small", 224, 1.00, 56_510_400, 2_542_856, (56, 2.5)),
    ],
)
def test_totals_are_exact_and_near_the_published(
    arch, image_size, width_mult, macs, parameters, published
):
    summary = summary_of(arch, image_size, width_mult=width_mult)
    assert (summary.macs, summary.parameters) == (macs, parameters)
    assert summary.macs / 1e6 == pytest.approx(published[0], rel=0.02)
    assert summary.parameters / 1e6 == pytest.approx(published[1], rel=0.02, abs=0.05)


@pytest.mark.parametrize(
    ("arch", "tail"),
    [
        *((arch, {}) for arch in ARCHITECTURES.names()),
        ("mobilenet_v3_large", {"reduced_tail": True}),
        ("mobilenet_v3_small", {"reduced_tail": True}),
    ],
)
def test_torchs_own_counter_counts_the_same(arch, tail):
    with torch.device("meta"):
        model = build_model(arch, 10, width_mult=0.75, **tail).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 97, 97))
    summary = summarize(model, 97)
    assert 2 * summary.macs == counter.get_total_flops()
    assert summary.parameters == sum(p.numel() for p in model.parameters())


def test_the_rows_of_v1_read_as_table_1_of_its_paper():
    rows = summary_of("mobilenet_v1").layers
    assert [row.name for row in rows] == [
        *(f"features.{i}" for i in range(14)),
        "pool",
        "classifier.1",
    ]
    assert [(r.input, r.operator, r.channels, r.stride) for r in (*rows[:3], *rows[-3:])] == [
        ("224x224x3", "conv2d 3x3", 32, 2),
        ("112x112x32", "separable conv 3x3", 64, 1),
        ("112x112x64", "separable conv 3x3", 128, 2),
        ("7x7x1024", "separable conv 3x3", 1024, 1),
        ("7x7x1024", "avgpool", 1024, None),
        ("1024", "linear", 1000, None),
    ]
    assert {row.activation for row in rows[:-2]} == {"ReLU6"}


def test_the_rows_of_v2_read_as_table_2_of_its_paper():
    rows = summary_of("mobilenet_v2").layers
    table = [
        *[(1, 16, 1)],
        *[(6, 24, 2), (6, 24, 1)],
        *[(6, 32, 2), (6, 32, 1), (6, 32, 1)],
        *[(6, 64, 2), (6, 64, 1), (6, 64, 1), (6, 64, 1)],
        *[(6, 96, 1), (6, 96, 1), (6, 96, 1)],
        *[(6, 160, 2), (6, 160, 1), (6, 160, 1)],
        *[(6, 320, 1)],
    ]
    assert [(r.expansion, r.channels, r.stride) for r in rows[1:18]] == table
    assert {row.operator for row in rows[1:18]} == {"bottleneck 3x3"}
    assert rows[18].operator == "conv2d 1x1"
    assert [rows[i].input for i in (3, 7, 18, 19)] == [
        "56x56x24",
        "28x28x32",
        "7x7x320",
        "7x7x1280",
    ]


def test_the_rows_of_v3_small_read_as_table_2_of_its_paper():
    rows = summary_of("mobilenet_v3_small").layers
    assert [
        (r.kernel, r.channels, r.squeeze_excitation, r.activation, r.stride) for r in rows[:13]
    ] == [
        (3, 16, False, "HS", 2),
        (3, 16, True, "ReLU", 2),
        (3, 24, False, "ReLU", 2),
        (3, 24, False, "ReLU", 1),
        (5, 40, True, "HS", 2),
        (5, 40, True, "HS", 1),
        (5, 40, True, "HS", 1),
        (5, 48, True, "HS", 1),
        (5, 48, True, "HS", 1),
        (5, 96, True, "HS", 2),
        (5, 96, True, "HS", 1),
        (5, 96, True, "HS", 1),
        (1, 576, False, "HS", 1),
    ]
    assert [round(r.expansion * int(r.input.split("x")[2])) for r in rows[1:12]] == [
        *(16, 72, 88, 96, 240, 240, 120, 144, 288, 576, 576)
    ]
    assert [(r.operator, r.channels, r.activation) for r in rows[-2:]] == [
        ("linear", 1024, "HS"),
        ("linear", 1000, None),
    ]


@pytest.mark.parametrize(
    ("arch", "pairs"),
    [
        ("mobilenet_v1", 13),
        ("mobilenet_v2", 17),
        ("mobilenet_v3_large", 15),
        ("mobilenet_v3_small", 11),
    ],
)
def test_separable_pairs_cost_what_the_formula_says(arch, pairs):
    costs = summary_of(arch, 97, width_mult=0.75).separable
    assert len(costs) == pairs
    for cost in costs:
        assert cost.share == pytest.approx(cost.formula, rel=1e-12)


def test_the_standard_cost_is_that_of_a_real_convolution():
    model = build_model("mobilenet_v1", 10, width_mult=0.25)
    second = summarize(model, 64).separable[1]  # 32x32x16 to 16x16x32, stride 2
    assert (second.name, second.in_channels, second.out_channels) == ("features.2", 16, 32)
    with FlopCounterMode(display=False) as counter:
        nn.Conv2d(16, 32, 3, stride=2, padding=1)(torch.empty(1, 16, 32, 32))
    assert second.standard_macs * 2 == counter.get_total_flops()


def test_a_summary_leaves_the_model_as_it_is():
    model = build_model("mobilenet_v2", 10, width_mult=0.25)
    summarize(model, 64)
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert {p.device.type for p in model.parameters()} == {"cpu"}
