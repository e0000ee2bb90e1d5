"""`train.solver: exact`: the last linear layer as a convex problem."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mnet_cli.cli import run
from mnet_cli.errors import RecipeError
from mnet_cli.formats.checkpoint import load_checkpoint
from mnet_cli.recipe import load_recipe, load_resolved
from mnet_cli.training.exact import MOST_ITERATIONS, TrainingRows, solve

EXACT = """\
schema: 1
model: {arch: ARCH, width_mult: 0.35, weights: none}
data: {root: ROOT, image_size: 32, workers: 0, augment: flip}
train: {solver: exact}
"""


def rows_of(classes: int, images: int = 120, views: int = 2) -> TrainingRows:
    noise = np.random.default_rng(0)
    labels = np.arange(images) % classes
    centres = noise.normal(size=(classes, 12)) * 2
    features = centres[labels] + noise.normal(scale=2, size=(views, images, 12)) + 5
    features[..., 3] = 1.5  # a feature that never changes
    sha256 = noise.integers(256, size=(images, 32), dtype=np.uint8)
    return TrainingRows(features.astype(np.float32), labels, classes, np.ones(classes), sha256)


def penalized_loss(rows, solution, weight, bias) -> torch.Tensor:
    """The objective, in double precision, as a function of the layer on plain features."""
    features = torch.from_numpy(rows.features.astype(np.float64)).flatten(0, 1)
    deviation = features.std(0, correction=0)
    deviation[3] = 1e-3 * deviation[deviation > 0].median()
    labels = torch.from_numpy(np.tile(rows.labels, len(rows.features)))
    counts = torch.from_numpy(rows.class_weights)[labels]
    losses = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels, reduction="none")
    penalty = solution.choice.strength / 2 * (weight * deviation).square().sum()
    return (losses * counts).sum() / counts.sum() + penalty


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_solution_is_the_minimum(classes, weighted):
    rows = rows_of(classes)
    if weighted:
        rows = replace(rows, class_weights=np.linspace(0.5, 2, classes))
    solution = solve(rows, seed=0)
    weight = torch.tensor(solution.weight, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(solution.bias, dtype=torch.float64, requires_grad=True)
    loss = penalized_loss(rows, solution, weight, bias)
    loss.backward()
    assert weight.grad.abs().max() < 2e-4
    assert bias.grad.abs().max() < 1e-4
    assert solution.choice.converged and 0 < solution.choice.iterations < MOST_ITERATIONS
    assert solution.choice.folds == 5
    assert 1 / classes < solution.choice.top1 <= 1


def test_the_order_of_images_does_not_matter():
    rows = rows_of(3)
    order = np.random.default_rng(1).permutation(len(rows.labels))
    other = replace(
        rows,
        features=rows.features[:, order],
        labels=rows.labels[order],
        sha256=rows.sha256[order],
    )
    one, another = solve(rows, 0), solve(other, 0)
    assert one.choice.strength == another.choice.strength
    np.testing.assert_allclose(one.weight, another.weight, atol=2e-4)
    again = solve(rows, 0)
    assert (again.weight == one.weight).all() and (again.bias == one.bias).all()


@pytest.mark.parametrize("images", [3, 4, 7])
def test_few_images_are_enough(images):
    rows = rows_of(3, images, views=1)
    solution = solve(rows, 0)
    assert np.isfinite(solution.weight).all() and np.isfinite(solution.bias).all()
    answers = rows.features[0] @ solution.weight.T + solution.bias
    assert (answers.argmax(1) == rows.labels).mean() > 0.5


@pytest.fixture
def exact_recipe(tmp_path, photos):
    def write(arch: str = "mobilenet_v2"):
        path = tmp_path / "exact.yaml"
        path.write_text(EXACT.replace("ARCH", arch).replace("ROOT", str(photos)))
        return path

    return write


@pytest.mark.parametrize("arch", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v4_conv_small"])
def test_a_run_has_one_epoch_and_says_how_it_was_solved(arch, exact_recipe, tmp_path, capsys):
    recipe = exact_recipe(arch)
    if arch == "mobilenet_v4_conv_small":
        recipe.write_text(recipe.read_text().replace(" width_mult: 0.35,", ""))
    out = tmp_path / "run"
    assert run(["train", str(recipe), "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert summary["epochs"] == 1 and summary["cache"][0]["views"] == 2
    assert summary["solver"]["folds"] == 5 and summary["solver"]["converged"]
    assert "5-fold cross-validation" in said.err
    assert summary["frozen"]["moved"] == []
    assert summary["best"]["top1"] > 0.5  # the colours of three classes, by random features
    assert run(["eval", "-c", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == summary["best"]["top1"]
    assert run(["train", str(recipe), "--out", str(tmp_path / "again"), "-q"]) == 0
    one, other = (
        torch.load(tmp_path / name / "best.pt", weights_only=True)["state_dict"]
        for name in ("run", "again")
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert load_resolved(out / "recipe.yaml").train.solver == "exact"
    assert "epochs" not in (out / "recipe.yaml").read_text()
    assert run(["train", "--resume", str(out)]) == 0
    assert "already complete" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epochs=3", "train.epochs=3: no effect with train.solver: exact"),
        ("train.lr=0.1", "it takes no steps of gradient descent"),
        ("model.freeze=none", "it trains the last linear layer alone"),
        ("data.balance=sampler", "sampler with train.solver: exact"),
        ("data.cached_views=0", "0 with train.solver: exact"),
        ("data.cached_views=3", "an image has one view with none and two with flip"),
    ],
)
def test_keys_without_effect_are_refused(override, says, exact_recipe):
    with pytest.raises(RecipeError, match=r"exact|flip") as caught:
        load_recipe(exact_recipe(), [override])
    assert says in str(caught.value)


def test_a_class_of_one_photograph_does_not_choose_the_penalty():
    rows = rows_of(3)
    labels = rows.labels.copy()
    labels[7] = 3
    one = solve(rows, 0)
    other = solve(replace(rows, labels=labels, num_classes=4, class_weights=np.ones(4)), 0)
    assert other.choice.strength == one.choice.strength
    assert abs(other.choice.loss - one.choice.loss) < 0.1
    assert other.weight.shape == (4, 12)


def test_a_feature_that_is_almost_constant_gets_no_huge_weight():
    rows = rows_of(3)
    rows.features[..., 3] = 0
    rows.features[0, 5, 3] = 1e-6
    assert np.abs(solve(rows, 0).weight[:, 3]).max() < 1


def test_class_weights_count(exact_recipe, tmp_path):
    rows = rows_of(3)
    plain, weighted = solve(rows, 0), solve(replace(rows, class_weights=np.array([9.0, 1, 1])), 0)
    features = rows.features.reshape(-1, 12)
    shares = [
        (features @ one.weight.T + one.bias).argmax(1).tolist().count(0)
        for one in (plain, weighted)
    ]
    assert shares[1] > shares[0]


def test_several_stages_are_solved_exported_and_resumed_from(exact_recipe, tmp_path, capsys):
    out = tmp_path / "run"
    several = ["--set", "model.head=multi_stage"]
    assert run(["train", str(exact_recipe()), *several, "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert load_checkpoint(out / "best.pt").model_args["head"] == "multi_stage"
    assert run(["export", str(out), "--format", "onnx,torchscript", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [row["refused"] for row in files] == [None, None]
    for name in ("mobilenet_v2.onnx", "mobilenet_v2.torchscript"):
        assert run(["eval", "-c", str(out / name), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["top1"] == summary["best"]["top1"]
    # A run is weights for another one: the last layer fits only the same kind of head.
    again = ["--set", f"model.weights={out}", "--out", str(tmp_path / "plain"), "--json"]
    assert run(["train", str(exact_recipe()), *again]) == 0
    assert json.loads(capsys.readouterr().out)["weights"]["replaced"] == [
        "classifier.1.weight", "classifier.1.bias",
    ]  # fmt: skip
