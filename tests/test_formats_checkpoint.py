import dataclasses
import re

import pytest
import torch
from torchvision.models import mobilenet_v2 as torchvision_v2

from mnet_cli.data.preprocess import DECODE_RULES, Preprocess
from mnet_cli.errors import MachineError, WeightsError
from mnet_cli.formats.checkpoint import Checkpoint, build_from, load_checkpoint, save_checkpoint
from mnet_cli.models.registry import build_model
from mnet_cli.system.tensorfile import read_tensors, write_tensors


@pytest.fixture
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(
        arch="mobilenet_v2",
        model_args={"width_mult": 0.35},
        state_dict=build_model("mobilenet_v2", 3, width_mult=0.35).state_dict(),
        class_names=("a", "b", "c"),
        preprocess=Preprocess(32, 36, "bilinear", (0.5,) * 3, (0.5,) * 3, (255,) * 3),
        recipe={"schema": 1},
        metrics={"top1": 0.5},
    )


def test_what_was_saved_comes_back(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    loaded = load_checkpoint(tmp_path / "best.pt")
    assert loaded.class_names == checkpoint.class_names
    assert loaded.preprocess == checkpoint.preprocess
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(build_from(loaded)(images), build_from(checkpoint)(images))


def test_run_directory_stands_for_its_best(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    assert load_checkpoint(tmp_path).arch == "mobilenet_v2"


def test_state_loads_strictly_into_torchvision(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    state = torch.load(tmp_path / "best.pt", weights_only=True)["state_dict"]
    theirs = torchvision_v2(width_mult=0.35, num_classes=3)
    theirs.load_state_dict(state, strict=True)
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(theirs.eval()(images), build_from(checkpoint)(images), atol=1e-6)


def test_same_checkpoint_gives_the_same_bytes(checkpoint, tmp_path):
    for name in ("a.pt", "b.pt"):
        save_checkpoint(tmp_path / name, checkpoint)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_newer_format_names_both_versions(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    write_tensors(tmp_path / "best.pt", read_tensors(tmp_path / "best.pt") | {"format": 3})
    with pytest.raises(WeightsError, match=r"format 3, but this mnet reads up to 2"):
        load_checkpoint(tmp_path / "best.pt")


def test_the_rules_of_decoding_are_on_record_and_unknown_ones_are_refused(checkpoint, tmp_path):
    path = tmp_path / "best.pt"
    save_checkpoint(path, checkpoint)
    content = read_tensors(path)
    assert content["preprocess"]["decode"] == DECODE_RULES
    preprocess = dict(content["preprocess"])
    write_tensors(path, content | {"preprocess": preprocess | {"decode": DECODE_RULES + 1}})
    with pytest.raises(WeightsError, match=r"best\.pt: decodes images by version 2 .* Update mnet"):
        load_checkpoint(path)
    del preprocess["decode"]  # as in format 1
    write_tensors(path, content | {"format": 1, "preprocess": preprocess})
    assert load_checkpoint(path).preprocess.decode == 1


def test_a_preprocessing_that_is_no_group_of_values_is_refused(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    content = read_tensors(tmp_path / "best.pt") | {"preprocess": "resize"}
    write_tensors(tmp_path / "best.pt", content)
    with pytest.raises(WeightsError, match="incomplete checkpoint"):
        load_checkpoint(tmp_path / "best.pt")


def test_bare_weights_are_no_checkpoint(checkpoint, tmp_path):
    write_tensors(tmp_path / "bare.pth", dict(checkpoint.state_dict))
    with pytest.raises(WeightsError, match=r"model\.weights"):
        load_checkpoint(tmp_path / "bare.pth")


@pytest.mark.parametrize("key", ["arch", "state_dict", "class_names", "preprocess"])
def test_missing_key_is_named(checkpoint, tmp_path, key):
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    content = read_tensors(tmp_path / "best.pt")
    del content[key]
    write_tensors(tmp_path / "best.pt", content)
    with pytest.raises(WeightsError, match=key):
        load_checkpoint(tmp_path / "best.pt")


def test_state_of_another_architecture_is_refused(checkpoint):
    with pytest.raises(WeightsError, match="do not fit"):
        build_from(dataclasses.replace(checkpoint, arch="mobilenet_v1"))


def test_an_error_about_the_weights_names_their_file(checkpoint, tmp_path):
    path = tmp_path / "best.pt"
    for change in ({"arch": "mobilenet_v1"}, {"model_args": {"width_mult": 0.5}}):
        save_checkpoint(path, dataclasses.replace(checkpoint, **change))
        with pytest.raises(WeightsError, match=f"^{re.escape(str(path))}: .*do not fit"):
            build_from(load_checkpoint(tmp_path))
    broken = {**checkpoint.state_dict, "classifier.1.bias": torch.full((3,), torch.inf)}
    save_checkpoint(path, dataclasses.replace(checkpoint, state_dict=broken))
    with pytest.raises(WeightsError, match=f"^{re.escape(str(path))}: .*holds NaN or infinity"):
        build_from(load_checkpoint(path))


def test_failed_save_keeps_the_old_file(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    before = (tmp_path / "best.pt").read_bytes()
    with pytest.raises(MachineError):
        save_checkpoint(tmp_path / "none" / "best.pt", checkpoint)
    assert (tmp_path / "best.pt").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"arch": "mobilenet_v9"},
        {"model_args": {"width": 1}},
        {"state_dict": []},
        {"preprocess": {"image_size": 0}},
        {"class_names": 3},
    ],
)
def test_nonsense_in_a_checkpoint_is_refused_as_such(checkpoint, tmp_path, change):
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    write_tensors(tmp_path / "best.pt", read_tensors(tmp_path / "best.pt") | change)
    with pytest.raises(WeightsError):
        build_from(load_checkpoint(tmp_path / "best.pt"))


def test_weights_that_are_not_finite_are_refused(checkpoint):
    state = {name: tensor.clone() for name, tensor in checkpoint.state_dict.items()}
    state["classifier.1.bias"][0] = float("nan")
    with pytest.raises(WeightsError, match=r"classifier\.1\.bias holds NaN"):
        build_from(dataclasses.replace(checkpoint, state_dict=state))
