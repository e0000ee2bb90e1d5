"""What a freeze spec freezes, what stays in evaluation mode, and how a move is noticed."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mnet_cli.errors import RecipeError
from mnet_cli.models import registry
from mnet_cli.models.architecture import Architecture
from mnet_cli.models.freeze import (
    check_pieces,
    freeze,
    frozen_fingerprint,
    frozen_parameters,
    moved,
    set_train_mode,
    split_frozen,
    stage_table,
)
from mnet_cli.models.layers import MobileNet
from mnet_cli.models.registry import build_model
from mnet_cli.system.plugins import ARCHITECTURES


@pytest.fixture
def model() -> MobileNet:
    torch.manual_seed(0)
    return build_model("mobilenet_v3_small", 3, width_mult=0.25)


def train_steps(model: MobileNet, steps: int = 2) -> None:
    """Train as the loop does, with a weight decay that would move unused weights too."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.1, weight_decay=0.1)
    set_train_mode(model)
    for _ in range(steps):
        cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        optimizer.zero_grad()


def below(model: MobileNet, *roots: str) -> list[str]:
    return [n for n, _ in model.named_parameters() if n.startswith(tuple(f"{r}." for r in roots))]


@pytest.mark.parametrize(
    ("spec", "roots"),
    [
        ("none", []),
        ([], []),
        ("features", ["features"]),
        ("features[:1]", ["features.0"]),
        ("features[:3]", ["features.0", "features.1", "features.2"]),
        ("features[:13]", ["features"]),
        (["features.1"], ["features.1"]),
        (["features.1?"], ["features.10", "features.11", "features.12"]),
        (["features[:2]", "classifier.3"], ["features.0", "features.1", "classifier.3"]),
    ],
)
def test_a_spec_freezes_all_below_the_modules_it_names(model, spec, roots):
    assert frozen_parameters(model, spec) == (below(model, *roots) if roots else [])


def test_a_pattern_can_name_parameters_alone(model):
    biases = [n for n, _ in model.named_parameters() if n.endswith(".bias")]
    assert frozen_parameters(model, "*.bias") == biases


def test_freezing_again_thaws_what_the_new_spec_leaves_out(model):
    freeze(model, "features")
    freeze(model, "features[:2]")
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == below(model, "features.0", "features.1")


@pytest.mark.parametrize("count", [0, 14])
def test_too_few_or_many_stages_are_refused_with_their_number(model, count):
    with pytest.raises(RecipeError, match=r"the model has 13 stages"):
        freeze(model, f"features[:{count}]")


@pytest.mark.parametrize(
    ("spec", "near"),
    [("feature", "features"), (["features", "clasifier.0"], r"classifier\.0")],
)
def test_a_pattern_without_a_match_is_refused_with_the_nearest_names(model, spec, near):
    with pytest.raises(RecipeError, match=f"matches no parameter.*nearest names are {near}"):
        freeze(model, spec)


def test_a_module_without_parameters_is_no_match(model):
    with pytest.raises(RecipeError, match=r'"classifier\.2" matches no parameter'):
        freeze(model, "classifier.2")


def test_freezing_everything_is_refused_and_changes_nothing(model):
    with pytest.raises(RecipeError, match="freezes every parameter"):
        freeze(model, "*")
    assert all(p.requires_grad for p in model.parameters())


def test_frozen_parts_stay_in_evaluation_mode(model):
    freeze(model, "features[:2]")
    set_train_mode(model)
    modes = [any(m.training for m in stage.modules()) for stage in model.features]
    assert modes == [False] * 2 + [True] * 11
    assert model.classifier[2].training


def test_a_batch_norm_frozen_alone_stays_in_evaluation_mode(model):
    freeze(model, "features.0.1")
    set_train_mode(model)
    assert not model.features[0][1].training
    assert model.features[0][0].training


def test_dropout_is_quiet_inside_a_frozen_classifier(model):
    freeze(model, "classifier")
    set_train_mode(model)
    assert not [m for m in model.modules() if isinstance(m, nn.Dropout) and m.training]


def test_training_resumes_everywhere_after_a_thaw(model):
    freeze(model, "features")
    set_train_mode(model)
    freeze(model, "none")
    set_train_mode(model)
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("spec", ["features", "features[:5]", ["*.1.bias", "features.3"]])
@pytest.mark.parametrize("arch", ARCHITECTURES.names())
def test_training_moves_nothing_that_is_frozen(arch, spec):
    model = build_model(arch, 3, width_mult=0.25)
    freeze(model, spec)
    before = frozen_fingerprint(model)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    train_steps(model)
    assert not moved(before, model)
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, state[n])}
    assert changed == state.keys() - before.keys()


def test_a_fingerprint_holds_the_buffers_of_frozen_modules(model):
    freeze(model, "features[:1]")
    assert list(frozen_fingerprint(model)) == [
        "features.0.0.weight",
        "features.0.1.weight",
        "features.0.1.bias",
        "features.0.1.running_mean",
        "features.0.1.running_var",
        "features.0.1.num_batches_tracked",
    ]


def test_plain_training_mode_would_move_the_statistics(model):
    freeze(model, "features")
    before = frozen_fingerprint(model)
    model.train()
    model(torch.randn(4, 3, 32, 32))
    assert {n.rpartition(".")[2] for n in moved(before, model)} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_a_single_moved_value_is_noticed_even_after_a_thaw(model):
    freeze(model, "features")
    before = frozen_fingerprint(model)
    freeze(model, "none")
    with torch.no_grad():
        model.features[4].block[1][0].weight[0, 0, 0, 0] += 1e-6
    assert moved(before, model) == ["features.4.block.1.0.weight"]


def test_a_tensor_that_is_gone_counts_as_moved(model):
    freeze(model, "classifier.0")
    before = frozen_fingerprint(model)
    model.classifier[0] = nn.Identity()
    assert moved(before, model) == ["classifier.0.weight", "classifier.0.bias"]


@pytest.mark.parametrize(
    ("arch", "kinds"),
    [
        ("mobilenet_v1", ["conv2d"] + ["separable conv"] * 13 + ["linear"]),
        ("mobilenet_v2", ["conv2d"] + ["bottleneck"] * 17 + ["conv2d", "linear"]),
        ("mobilenet_v3_large", ["conv2d"] + ["bottleneck"] * 15 + ["conv2d", "linear"]),
        ("mobilenet_v3_small", ["conv2d"] + ["bottleneck"] * 11 + ["conv2d", "linear"]),
    ],
)
def test_the_stage_table_names_every_stage_and_counts_every_parameter(arch, kinds):
    model = build_model(arch, 3, width_mult=0.25)
    freeze(model, ["features[:2]", "classifier.*.bias"])
    rows = stage_table(model)
    assert [row.kind for row in rows] == kinds
    assert [row.name for row in rows][-2:] == [f"features.{len(kinds) - 2}", "classifier"]
    assert [row.trainable == 0 for row in rows] == [True] * 2 + [False] * (len(kinds) - 2)
    assert rows[-1].frozen == sum(
        p.numel() for n, p in model.classifier.named_parameters() if n.endswith("bias")
    )
    total = sum(p.numel() for p in model.parameters())
    assert sum(row.trainable + row.frozen for row in rows) == total


@pytest.mark.parametrize(
    ("arch", "spec", "deepest"),
    [
        ("mobilenet_v2", "none", 0),
        ("mobilenet_v2", "features[:14]", 14),
        ("mobilenet_v2", "features", 19 + 2),  # the pool and the flattening, but no dropout
        ("mobilenet_v2", ["features.0", "features.5", "classifier"], 1),
        ("mobilenet_v3_small", "features", 13 + 2),
        ("mobilenet_v3_small", ["features", "classifier.0"], 13 + 4),
        ("mobilenet_v1", "features[:13]", 13),
    ],
)
def test_a_network_is_divided_where_learning_begins(arch, spec, deepest):
    model = build_model(arch, 3, width_mult=0.25).eval()
    freeze(model, spec)
    front, rest = split_frozen(model)
    assert len(front) == deepest
    assert not any(parameter.requires_grad for parameter in front.parameters())
    assert any(parameter.requires_grad for parameter in rest[0].parameters()) or isinstance(
        rest[0], nn.Dropout
    )
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(rest(front(images)), model(images))


class Crossed(nn.Module):
    """A network whose pieces leave its shortcut out."""

    stages, head = ("low", "high"), "answer"

    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.answer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(3, 2))

    def pieces(self):
        return [self.low, self.high, *self.answer]

    def forward(self, x):
        return self.answer(x + self.high(self.low(x)))


def test_pieces_that_do_not_give_the_output_are_refused():
    with pytest.raises(RecipeError, match="pieces of the network do not give its output"):
        check_pieces(Crossed(), 8)
    model = build_model("mobilenet_v2", 3, width_mult=0.25)
    check_pieces(model, 32)
    assert model.training


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": ("low", "none")}, "is not as it says"),
        ({"head": "low"}, "has no linear layer"),
        ({}, "has 2 outputs for 7 classes"),
    ],
)
def test_a_network_that_is_not_as_it_says_is_refused(changes, said, monkeypatch):
    own = type("Own", (Crossed,), changes)
    mine = Architecture(title="Own", paper="", build=lambda num_classes: own())
    monkeypatch.setattr(registry, "find_architecture", lambda arch: mine)
    with pytest.raises(RecipeError, match=said):
        build_model("own", 7)
