"""Finding weights, refusing what does not fit, and loading the rest with an account."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mnet_cli.errors import MachineError, RecipeError, WeightsError
from mnet_cli.models import weights
from mnet_cli.models.registry import build_model, find_architecture, published
from mnet_cli.models.weights import find_weights, load_matching
from mnet_cli.system.plugins import ARCHITECTURES
from mnet_cli.system.tensorfile import write_tensors

SHARED = Path(__file__).parent.parent.parent / "shared" / "weights"
WIDTH = 0.25  # small models make quick tests
V2 = "mobilenet_v2"


def small_model(arch: str = V2, num_classes: int = 10, **arguments: float) -> nn.Module:
    return build_model(arch, num_classes, **({"width_mult": WIDTH} | arguments))


def checkpoint_of(model: nn.Module, **changes: object) -> dict:
    """What `mnet train` writes, as far as weights are concerned."""
    return {
        "format": 1,
        "arch": V2,
        "model_args": {"width_mult": WIDTH, "norm_eps": None},
        "state_dict": model.state_dict(),
        "class_names": ["daisy", "rose"],
        "preprocess": {
            "image_size": 96,
            "resize": 128,
            "interpolation": "bicubic",
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.2, 0.2],
            "background": [255, 255, 255],
        },
    } | changes


def randomised(model: nn.Module) -> nn.Module:
    """Give every norm statistics of its own, as training would; evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias.data):
                values.normal_(0, 0.1)
            for values in (module.running_var, module.weight.data):
                values.uniform_(0.5, 1.5)
    return model.eval()


def equal(model: nn.Module, state_dict: dict, prefix: str = "") -> bool:
    return all(
        torch.equal(value, state_dict[name])
        for name, value in model.state_dict().items()
        if name.startswith(prefix) and name in state_dict
    )


def refusal(source: Path | str, arch: str = V2, width_mult: float = WIDTH) -> str:
    """The one short line with which weights are refused."""
    with pytest.raises(WeightsError) as caught:
        load_matching(build_model(arch, 10, width_mult=width_mult), find(source, arch, width_mult))
    line = str(caught.value)
    assert len(line) < 400
    assert "\n" not in line
    return line


def find(source: Path | str, arch: str = V2, width_mult: float = WIDTH) -> weights.FoundWeights:
    return find_weights(str(source), arch, width_mult)


def test_none_is_none():
    assert find_weights("none", V2) is None


@pytest.mark.parametrize("arch", ARCHITECTURES.names())
def test_a_state_dict_loads_whole_into_its_own_architecture(arch, tmp_path):
    state_dict = small_model(arch).state_dict()
    write_tensors(tmp_path / "a.pth", state_dict)
    found, model = find(tmp_path / "a.pth", arch), small_model(arch)
    account = load_matching(model, found)
    assert equal(model, state_dict)
    assert account.loaded == tuple(n for n in state_dict if "num_batches" not in n)
    assert (account.replaced, account.missing, account.unexpected) == ((), (), ())
    assert (found.crop_ratio, found.interpolation, found.norm_eps) == (0.875, "bilinear", None)
    assert found.origin == str(tmp_path / "a.pth")
    assert len(account.sha256) == 64


def test_a_head_for_other_classes_is_kept_fresh_and_named(tmp_path):
    state_dict = small_model(num_classes=1000).state_dict()
    write_tensors(tmp_path / "a.pth", state_dict)
    model = small_model(num_classes=5)
    head = model.classifier[1].weight.clone()
    account = load_matching(model, find(tmp_path / "a.pth"))
    assert account.replaced == ("classifier.1.weight", "classifier.1.bias")
    assert torch.equal(model.classifier[1].weight, head)
    assert equal(model, state_dict, "features.")


def test_a_backbone_without_counters_and_with_a_stranger_loads(tmp_path):
    state_dict = small_model().state_dict()
    part = {n: v for n, v in state_dict.items() if n.startswith("features.") and "num_b" not in n}
    write_tensors(tmp_path / "a.pth", part | {"aux.weight": torch.zeros(3)})
    model = small_model()
    account = load_matching(model, find(tmp_path / "a.pth"))
    assert account.missing == ("classifier.1.weight", "classifier.1.bias")
    assert account.unexpected == ("aux.weight",)
    assert equal(model, part)


def test_half_precision_is_loaded_as_float32(tmp_path):
    half = {
        n: v.half() if v.is_floating_point() else v for n, v in small_model().state_dict().items()
    }
    write_tensors(tmp_path / "a.pth", half)
    found = find(tmp_path / "a.pth")
    assert found.state_dict["features.0.0.weight"].dtype == torch.float32
    assert found.state_dict["features.0.1.num_batches_tracked"].dtype == torch.int64
    load_matching(small_model(), found)


def test_a_run_directory_gives_its_best_checkpoint_and_its_facts(tmp_path):
    model = small_model(num_classes=2)
    content = checkpoint_of(model, model_args={"width_mult": WIDTH, "norm_eps": 1e-4})
    write_tensors(tmp_path / "best.pt", content)
    found = find(tmp_path)
    assert found.origin == str(tmp_path / "best.pt")
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert (found.interpolation, found.crop_ratio, found.norm_eps) == ("bicubic", 0.75, 1e-4)
    assert found.class_names == ("daisy", "rose")
    other = small_model(num_classes=2)
    assert load_matching(other, found, ["daisy", "rose"]).replaced == ()
    assert equal(other, model.state_dict())


def test_a_head_of_the_same_size_for_other_classes_is_not_taken(tmp_path):
    write_tensors(tmp_path / "best.pt", checkpoint_of(small_model(num_classes=2)))
    for names in (["cat", "dog"], ["rose", "daisy"]):
        account = load_matching(small_model(num_classes=2), find(tmp_path), names)
        assert account.replaced == ("classifier.1.weight", "classifier.1.bias")


@pytest.mark.parametrize("arch", ARCHITECTURES.names())
def test_a_head_without_class_names_is_never_taken_for_classes_with_names(arch, tmp_path):
    trained = small_model(arch, num_classes=2)
    write_tensors(tmp_path / "bare.pth", trained.state_dict())
    model = small_model(arch, num_classes=2)
    last = list(model.state_dict())[-1].rpartition(".")[0]
    head = model.get_submodule(last).weight.clone()
    account = load_matching(model, find(tmp_path / "bare.pth", arch), ["daisy", "rose"])
    assert account.replaced == (f"{last}.weight", f"{last}.bias")
    assert account.missing == ()
    assert torch.equal(model.get_submodule(last).weight, head)
    assert equal(model, trained.state_dict(), "features.")


@pytest.mark.parametrize(
    "changes",
    [
        {"arch": "mobilenet_v3_small"},
        {"model_args": {"width_mult": 0.5}},
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_both_names(tmp_path, changes):
    content = checkpoint_of(small_model(num_classes=2), **changes)
    write_tensors(tmp_path / "best.pt", content)
    line = refusal(tmp_path)
    assert (
        f"weights of {content['arch']} at width_mult {content['model_args']['width_mult']}" in line
    )
    assert f"but the model is {V2} at width_mult 0.25" in line


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocess": {"mean": [0.5]}},
        {"preprocess": 3},
        {"preprocess": {"mean": [0, 0], "std": [1, 1, 1], "interpolation": "bilinear"}},
        {"model_args": {}},
        {"arch": 5, "model_args": {"width_mult": "wide"}},
    ],
)
def test_an_incomplete_checkpoint_is_refused(tmp_path, changes):
    write_tensors(tmp_path / "best.pt", checkpoint_of(small_model(num_classes=2), **changes))
    assert "an incomplete checkpoint" in refusal(tmp_path)


@pytest.mark.parametrize("arch", ["mobilenet_v1", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_another_architecture_is_refused_by_name_and_leaves_the_model_alone(tmp_path, arch):
    write_tensors(tmp_path / "a.pth", small_model(arch).state_dict())
    line = refusal(tmp_path / "a.pth")
    assert f"looks like {arch}, but the model is {V2} at width_mult 0.25" in line
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError):
        load_matching(model, find(tmp_path / "a.pth"))
    assert equal(model, before)


def test_another_width_is_refused_with_a_tensor_that_tells_it(tmp_path):
    write_tensors(tmp_path / "a.pth", small_model(width_mult=1.0).state_dict())
    line = refusal(tmp_path / "a.pth")
    assert (
        f"{V2} with other widths (features.0.0.weight is 32x3x3x3, the model's is 8x3x3x3)" in line
    )


def test_under_nine_tenths_of_the_backbone_is_refused_and_more_is_loaded(tmp_path):
    state_dict = small_model().state_dict()
    names = [n for n in state_dict if n.startswith("features.") and "num_batches" not in n]
    for share, accepted in ((0.89, False), (0.91, True)):
        kept = names[-int(share * len(names)) :]
        write_tensors(tmp_path / "a.pth", {name: state_dict[name] for name in kept})
        if accepted:
            account = load_matching(small_model(), find(tmp_path / "a.pth"))
            assert set(names) - set(kept) < set(account.missing)
        else:
            assert f"only {len(kept)} of the backbone's {len(names)} tensors" in refusal(
                tmp_path / "a.pth"
            )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    state_dict = small_model().state_dict()
    state_dict["features.3.conv.0.0.weight"].view(-1)[7] = value
    write_tensors(tmp_path / "a.pth", state_dict)
    assert "features.3.conv.0.0.weight holds NaN or infinity" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "content",
    [
        {"epoch": 3},
        {},
        {"state_dict": {}},
        {"state_dict": [1]},
        {"weight": torch.eye(2).to_sparse()},
        {"weight": torch.empty(2, device="meta")},
    ],
)
def test_what_holds_no_plain_tensors_is_refused(tmp_path, content):
    write_tensors(tmp_path / "a.pth", content)
    refusal(tmp_path / "a.pth")


def test_a_mistyped_source_is_answered_with_the_nearest(tmp_path):
    assert 'Did you mean "imagenet"?' in refusal("imagnet")
    assert "best.pt: no such file" in refusal(tmp_path)


def test_the_starter_is_for_one_model_alone(tmp_path, monkeypatch):
    starter = replace(find_architecture(V2).starter, path=tmp_path / "starter.pth")
    mine = replace(find_architecture(V2), starter=starter)
    monkeypatch.setattr(weights, "find_architecture", lambda arch: mine)
    state_dict = small_model(width_mult=0.35).state_dict()
    backbone = {n: v.half() for n, v in state_dict.items() if n.startswith("features.")}
    content = {
        "format": "mnet-starter",
        "arch": V2,
        "width_mult": 0.35,
        "image_size": 96,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "state_dict": backbone,
    }
    write_tensors(tmp_path / "starter.pth", content)
    found = find("starter", V2, 0.35)
    account = load_matching(small_model(width_mult=0.35), found)
    assert account.missing == ("classifier.1.weight", "classifier.1.bias")
    assert found.mean == (0.485, 0.456, 0.406)
    assert "starter" in found.origin
    with pytest.raises(RecipeError, match=r"starter.*mobilenet_v2 at width_mult 1"):
        find("starter", V2, 1.0)


def test_a_width_that_nobody_published_never_starts_at_random():
    with pytest.raises(RecipeError, match=r"0\.5, 1, 1\.4.*weights to none"):
        find("imagenet", V2, 0.75)


@pytest.fixture
def cached_release(tmp_path, monkeypatch) -> Path:
    """A published release in torch's cache, at an address where nobody answers."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    path = tmp_path / "hub" / "checkpoints" / "net-12345678.pth"
    path.parent.mkdir(parents=True)
    write_tensors(path, small_model().state_dict())
    row = replace(
        published(V2, 1.0),
        width_mult=WIDTH,
        url=f"https://127.0.0.1:1/{path.name}",
        sha256=find(path).sha256[:8],
    )
    mine = replace(find_architecture(V2), published=(row,))
    monkeypatch.setattr(weights, "find_architecture", lambda arch: mine)
    monkeypatch.setattr(weights, "published", lambda *_: row)
    return path


def test_published_weights_come_from_the_cache_with_their_facts(cached_release):
    found = find("imagenet")
    assert found.origin == "torchvision IMAGENET1K_V2 (net-12345678.pth)"
    assert (found.crop_ratio, found.norm_eps) == (224 / 232, 1e-5)
    assert find(cached_release).crop_ratio == 224 / 232  # the same file by its path


@pytest.mark.parametrize("poison", [b"", b"cos\nsystem\n(S'true'\ntR."])
def test_a_poisoned_cache_without_a_network_tells_what_to_do(cached_release, poison):
    cached_release.write_bytes(poison)
    with pytest.raises(MachineError) as caught:
        find("imagenet")
    for words in ("https://127.0.0.1:1/net-12345678.pth", f"save it as {cached_release}"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arch", "width_mult"),
    [
        ("mobilenetv1_100", "mobilenet_v1", 1.0),
        ("mobilenetv1_125", "mobilenet_v1", 1.25),
        ("mobilenetv2_050", "mobilenet_v2", 0.5),
        ("mobilenetv2_140", "mobilenet_v2", 1.4),
        ("mobilenetv3_small_100", "mobilenet_v3_small", 1.0),
        ("mobilenetv3_large_100", "mobilenet_v3_large", 1.0),
    ],
)
def test_timms_weights_give_timms_outputs(tmp_path, name, arch, width_mult):
    timm = pytest.importorskip("timm")
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    theirs = randomised(timm.create_model(name, pretrained=False))
    safetensors.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    found = find(tmp_path / "model.safetensors", arch, width_mult)
    ours = build_model(arch, 1000, width_mult=width_mult, norm_eps=found.norm_eps).eval()
    account = load_matching(ours, found)
    assert (account.replaced, account.missing, account.unexpected) == ((), (), ())
    half = (0.5, 0.5, 0.5)
    assert (found.mean == half) == (arch == "mobilenet_v1")
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 1e-2  # the outputs say something


@pytest.mark.parametrize(("name", "width_mult"), [("050", 0.5), ("075", 0.75)])
def test_timms_narrow_v3_small_has_other_channels_and_is_refused(tmp_path, name, width_mult):
    timm = pytest.importorskip("timm")
    model = timm.create_model(f"mobilenetv3_small_{name}", pretrained=False)
    write_tensors(tmp_path / "a.pth", model.state_dict())
    assert "with other widths" in refusal(tmp_path / "a.pth", "mobilenet_v3_small", width_mult)


def test_names_that_timms_model_does_not_have_are_kept():
    strangers = {"aux.weight": torch.zeros(1), "blocks.0.0.odd.weight": torch.zeros(1)}
    assert find_architecture(V2).from_timm(strangers) == strangers


@pytest.mark.parametrize(
    ("name", "arch", "width_mult", "missing"),
    [
        ("mobilenet_v1_backbone_imagenet", "mobilenet_v1", 1.0, 2),
        ("mobilenet_v1_0.25_imagenet", "mobilenet_v1", 0.25, 0),
        ("mobilenet_v2_imagenet", "mobilenet_v2", 1.0, 0),
        ("mobilenet_v3_small_imagenet", "mobilenet_v3_small", 1.0, 0),
    ],
)
def test_real_weights_load(name, arch, width_mult, missing):
    path = SHARED / f"{name}.pth"
    if not path.exists():
        pytest.skip("needs real weights in ../shared/weights")
    model = build_model(arch, 1000, width_mult=width_mult)
    account = load_matching(model, find(path, arch, width_mult))
    assert (account.replaced, len(account.missing), account.unexpected) == ((), missing, ())
