import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mnet_cli.cli import run
from mnet_cli.data.dataset import open_dataset
from mnet_cli.data.image_files import FileImage
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import DataError, MachineError, RefusedError, UsageError, WeightsError
from mnet_cli.export import parity, pipeline
from mnet_cli.export.pipeline import Plan, balanced, export
from mnet_cli.formats import quantization, registry
from mnet_cli.formats.base import Setting
from mnet_cli.formats.checkpoint import Checkpoint, build_from, load_checkpoint, save_checkpoint
from mnet_cli.formats.contract import read_contract
from mnet_cli.formats.onnx import OnnxFormat
from mnet_cli.inference import predict
from mnet_cli.inference.classifier import open_classifier, refuse_changed
from mnet_cli.models.onnx_forward import OnnxForward
from mnet_cli.models.onnx_graph import to_onnx
from mnet_cli.models.registry import build_model
from mnet_cli.recipe import load_recipe, plain_values
from mnet_cli.system.hashing import content_sha256, folder_sha256
from mnet_cli.system.plugins import ARCHITECTURES

# Those of an extra run where it is installed: scripts/test_extras.sh does that for each.
FORMATS = {name: registry.find_format(name) for name in registry.FORMATS.names()}
INSTALLED = [name for name, kind in FORMATS.items() if not kind.missing_package()]
RUN_HERE = [name for name in INSTALLED if FORMATS[name].runs_here]
# torch.export needs up to a minute for one network: tests of pt2 are slow where others do the same.
RUN_HERE_SLOWLY = [
    pytest.param(name, marks=[pytest.mark.slow] if name == "pt2" else []) for name in RUN_HERE
]
NO_TORCH = [name for name in ("onnx", "tflite") if name in INSTALLED]  # their adapters need none
STANDALONE = Path(__file__).with_name("standalone_predict.py")
NAMES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, photos):
    """A run directory of a small network that has learnt to tell the colours apart."""
    folder = tmp_path_factory.mktemp("tiny")
    overrides = (
        "model.weights=starter", "model.width_mult=0.35", "data.image_size=64", "train.lr=5e-2",
        "data.batch_size=6", "data.workers=0", "train.epochs=6", f"data.root={photos}",
    )  # fmt: skip
    sets = [part for value in overrides for part in ("--set", value)]
    code = run(["train", "-r", "v2_flowers", *sets, "--out", str(folder / "run"), "--quiet"])
    assert code == 0
    return folder / "run"


def lively(folder: Path, arch: str, photos: Path, size: int = 32, **arguments) -> Path:
    """A checkpoint of random weights whose batch norms do something, as after training."""
    torch.manual_seed(0)
    arguments = {"width_mult": 0.35, **arguments}
    model = build_model(arch, 3, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    recipe = load_recipe("v2_flowers", [f"data.root={photos}"])
    path = folder / f"{arch}.pt"
    save_checkpoint(
        path,
        Checkpoint(
            arch=arch,
            model_args=arguments,
            state_dict=model.state_dict(),
            class_names=NAMES,
            preprocess=Preprocess(size, size + 4, "bilinear", (0.5,) * 3, (0.25,) * 3, (255,) * 3),
            recipe=plain_values(recipe),
            metrics={"top1": 0.5},
        ),
    )
    return path


def plan(out: Path, **changes) -> Plan:
    return replace(Plan(["onnx"], "float32", False, 0, 12, 0.01, out, False), **changes)


def exported(source: Path, photos: Path, wanted: Plan):
    images = open_dataset(photos, class_names=NAMES)
    return list(export(load_checkpoint(source), source, images, wanted))


def logits(path: Path, photos: Path) -> np.ndarray:
    classifier = open_classifier(path, "cpu")
    files = map(FileImage, sorted(photos.rglob("*.jpg")))
    answers = predict.predict(classifier.classify, classifier.preprocess, files)
    return np.stack([answer.probabilities for answer in answers])


@pytest.fixture(scope="module")
def v3_file(tmp_path_factory, photos):
    """The function that gives a small V3 as a file of a format; do not change the file."""

    @cache
    def export_as(name: str) -> Path:
        folder = tmp_path_factory.mktemp(f"v3-{name}")
        source = lively(folder, "mobilenet_v3_small", photos)
        [result] = exported(source, photos, plan(folder, formats=[name]))
        return result.path

    return export_as


VARIANTS = [
    *((arch, {}, 32) for arch in ARCHITECTURES.names()),
    ("mobilenet_v1", {"width_mult": 0.25}, 64),
    ("mobilenet_v3_large", {"reduced_tail": True}, 32),
    ("mobilenet_v3_small", {"head": "multi_stage"}, 32),
]


@pytest.mark.parametrize(
    ("arch", "arguments", "size", "name"),
    [
        pytest.param(
            *(arch, arguments, size, name),
            marks=[pytest.mark.slow] if name == "pt2" and arch != "mobilenet_v2" else [],
        )
        for name in RUN_HERE
        for arch, arguments, size in VARIANTS
    ],
)
def test_every_network_exports_and_answers_as_its_checkpoint(
    arch, arguments, size, name, photos, tmp_path
):
    source = lively(tmp_path, arch, photos, size, **arguments)
    [result] = exported(source, photos, plan(tmp_path, formats=[name]))
    assert result.refused == ""
    assert result.report.max_delta <= 1e-3
    assert result.report.agreement == 1
    assert result.path == tmp_path / f"{arch}{FORMATS[name].suffix}"
    assert np.abs(logits(result.path, photos) - logits(source, photos)).max() < 1e-4
    document = json.loads((tmp_path / f"{result.path.name}.json").read_text())
    assert document["class_names"] == list(NAMES)
    assert document["preprocess"]["image_size"] == size
    assert document["proof"]["images"] == 12
    files = [path for path in tmp_path.glob(f"{arch}.*") if path.suffix not in (".pt", ".json")]
    assert document["file"]["bytes"] == sum(path.stat().st_size for path in files)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("arch", "arguments", "size"), VARIANTS)
def test_the_fast_form_of_the_reference_is_the_plain_one(arch, arguments, size, photos, tmp_path):
    model = build_from(load_checkpoint(lively(tmp_path, arch, photos, size, **arguments)))
    images = np.random.default_rng(0).standard_normal((4, 3, size, size), np.float32)
    expected = parity.eager(model)(images)
    assert parity.is_same(parity.fused(model, size)(images), expected)
    assert not parity.is_same(expected + 1e-4 * np.ptp(expected), expected)


@pytest.mark.parametrize("fast", [lambda *_: lambda images: images[:, :, 0, 0], lambda *_: 0])
def test_a_fast_form_that_answers_otherwise_or_not_at_all_is_not_trusted(
    fast, photos, tmp_path, monkeypatch
):
    source = lively(tmp_path, "mobilenet_v2", photos)
    monkeypatch.setattr(pipeline, "fused", fast)
    [result] = exported(source, photos, plan(tmp_path))
    assert result.refused == ""
    assert result.report.max_delta < 1e-4


@pytest.mark.parametrize("name", RUN_HERE)
def test_baked_files_take_pixels_and_give_probabilities(name, photos, tmp_path):
    source = lively(tmp_path, "mobilenet_v3_small", photos)
    [result] = exported(source, photos, plan(tmp_path, formats=[name], bake=True))
    assert result.refused == ""
    assert result.path.name == f"mobilenet_v3_small.baked{FORMATS[name].suffix}"
    assert np.abs(logits(result.path, photos) - logits(source, photos)).max() < 1e-4


def test_a_baked_graph_sums_to_one_without_mnet(photos, tmp_path):
    source = lively(tmp_path, "mobilenet_v2", photos)
    [result] = exported(source, photos, plan(tmp_path, bake=True))
    session = onnxruntime.InferenceSession(result.path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    [found] = session.run(None, {session.get_inputs()[0].name: pixels})
    assert np.allclose(found.sum(1), 1)


@pytest.mark.parametrize("name", RUN_HERE_SLOWLY)
@pytest.mark.parametrize("batch", [5, 17])
def test_a_fixed_batch_is_filled_up(name, batch, photos, tmp_path):
    source = lively(tmp_path, "mobilenet_v1", photos)
    [result] = exported(source, photos, plan(tmp_path, formats=[name], batch=batch))
    assert result.refused == ""
    assert json.loads((tmp_path / f"{result.path.name}.json").read_text())["batch"] == batch
    assert np.abs(logits(result.path, photos) - logits(source, photos)).max() < 1e-4


def test_half_precision_is_half_the_size(photos, tmp_path):
    source = lively(tmp_path, "mobilenet_v2", photos)
    [whole] = exported(source, photos, plan(tmp_path))
    [half] = exported(source, photos, plan(tmp_path, precision="float16"))
    assert half.refused == ""
    assert half.size < 0.6 * whole.size


def test_eight_bits_keep_the_accuracy_of_a_trained_network(tiny_run, photos, tmp_path):
    [whole] = exported(tiny_run / "best.pt", photos, plan(tmp_path))
    one_of_twelve = plan(tmp_path, precision="int8", max_drop=0.1)
    [small] = exported(tiny_run / "best.pt", photos, one_of_twelve)
    assert (small.refused, small.setting) == ("", "8 bits")
    assert small.report.reference_top1 - small.report.top1 <= 0.1
    assert small.size < 0.4 * whole.size
    kinds = {node.op_type for node in onnx.load(small.path).graph.node}
    assert "QuantizeLinear" in kinds


@pytest.mark.parametrize("changes", [{"bake": True}, {"batch": 40}, {"bake": True, "batch": 3}])
def test_eight_bits_go_with_the_other_options(changes, tiny_run, photos, tmp_path):
    wanted = plan(tmp_path, precision="int8", max_drop=0.1, **changes)
    [result] = exported(tiny_run / "best.pt", photos, wanted)
    assert result.refused == ""
    assert result.report.top1 >= 0.9


def test_half_precision_goes_with_baking(photos, tmp_path):
    source = lively(tmp_path, "mobilenet_v3_small", photos)
    [result] = exported(source, photos, plan(tmp_path, precision="float16", bake=True))
    assert result.refused == ""


def test_a_conversion_that_fails_is_refused_and_the_others_go_on(photos, tmp_path, monkeypatch):
    def fails(network):
        raise RuntimeError("no such operator\nand more")

    broken = {"float32": (Setting("", fails),)}
    monkeypatch.setattr(OnnxFormat, "precisions", broken)
    source = lively(tmp_path, "mobilenet_v1", photos)
    first, second = exported(source, photos, plan(tmp_path, formats=["onnx", "torchscript"]))
    assert first.refused == "RuntimeError: no such operator"
    assert (first.path, second.refused) == (None, "")


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_full_disk_leaves_no_part_of_a_file(number, photos, tmp_path, monkeypatch, capsys):
    source = lively(tmp_path, "mobilenet_v1", photos)
    before = sorted(tmp_path.iterdir())
    calls = iter(range(1, 100))
    real = os.fsync

    def full(descriptor):
        if next(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert run(["export", str(source), "--data", str(photos)]) == 5
    assert "No space left" in capsys.readouterr().err
    assert tmp_path / "mobilenet_v1.onnx" not in [
        path for path in tmp_path.iterdir() if path not in before and number < 4
    ]
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_written_is_found_first(photos, tmp_path, monkeypatch, capsys):
    source = lively(tmp_path, "mobilenet_v1", photos)
    (tmp_path / "file").touch()
    command = ["export", str(source), "--data", str(photos), "--out", str(tmp_path / "file" / "x")]
    assert run(command) == 5
    captured = capsys.readouterr().err
    assert "cannot be written" in captured
    assert "own answers" not in captured


def test_earlier_rows_stay_in_the_table(photos, tmp_path):
    source = lively(tmp_path, "mobilenet_v1", photos)
    command = ["export", str(source), "--data", str(photos), "--quiet"]
    assert run(command) == 0
    assert run([*command, "--half"]) == 0
    assert run([*command, "--force"]) == 0
    rows = json.loads((tmp_path / "export.json").read_text())["files"]
    assert [row["precision"] for row in rows] == ["float16", "float32"]


def test_another_formats_files_are_not_in_the_way(photos, tmp_path):
    source = lively(tmp_path, "mobilenet_v1", photos)
    (tmp_path / "mobilenet_v1.bin").touch()
    [result] = exported(source, photos, plan(tmp_path))
    assert result.refused == ""
    assert (tmp_path / "mobilenet_v1.bin").read_bytes() == b""


def test_a_file_away_from_its_run_asks_for_images(photos, tmp_path, capsys):
    source = lively(tmp_path, "mobilenet_v1", photos)
    assert run(["export", str(source), "--data", str(photos), "--quiet"]) == 0
    file = str(tmp_path / "mobilenet_v1.onnx")
    assert run(["eval", "-c", file]) == 3
    assert "--data DIR" in capsys.readouterr().err
    assert run(["eval", "-c", file, "--data", str(photos)]) == 0


QUANTIZING = [name for name in RUN_HERE if name in ("tflite", "executorch")]


@pytest.mark.parametrize("name", QUANTIZING)
def test_a_batch_larger_than_the_calibration_is_filled_up(name, tiny_run, photos, tmp_path):
    wanted = plan(tmp_path, formats=[name], precision="int8", max_drop=0.1, batch=40)
    [result] = exported(tiny_run / "best.pt", photos, wanted)
    assert (result.refused, result.setting) == ("", "8 bits")


@pytest.mark.parametrize("name", QUANTIZING)
def test_eight_bits_of_an_extra_keep_the_accuracy_too(name, tiny_run, photos, tmp_path):
    [whole] = exported(tiny_run / "best.pt", photos, plan(tmp_path, formats=[name]))
    one_of_twelve = plan(tmp_path, formats=[name], precision="int8", max_drop=0.1)
    [small] = exported(tiny_run / "best.pt", photos, one_of_twelve)
    assert (small.refused, small.setting) == ("", "8 bits")
    assert small.size < 0.5 * whole.size


@pytest.mark.parametrize("name", QUANTIZING)
def test_channels_that_training_emptied_keep_their_bias_in_eight_bits(
    name, tiny_run, photos, tmp_path
):
    checkpoint = load_checkpoint(tiny_run / "best.pt")
    state, norm = dict(checkpoint.state_dict), "features.2.conv.0.1."
    for part, value in (("weight", 1e-12), ("bias", 3)):
        state[norm + part] = state[norm + part].clone()
        state[norm + part][::2] = value
    source = tmp_path / "emptied.pt"
    save_checkpoint(source, replace(checkpoint, state_dict=state))
    wanted = plan(tmp_path, formats=[name], precision="int8")
    [result] = exported(source, photos, wanted)
    assert (result.refused, result.setting) == ("", "8 bits")
    assert result.report.max_delta < 0.05


@pytest.mark.parametrize("name", RUN_HERE_SLOWLY)
def test_threads_do_not_mix_up_their_answers(name, v3_file):
    classify = open_classifier(v3_file(name), "cpu").classify
    images = np.random.default_rng(0).standard_normal((16, 1, 3, 32, 32), np.float32)
    expected = [classify(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(classify, [*images] * 4)]
    assert np.abs(np.asarray(found) - np.asarray(expected * 4)).max() < 1e-5


def test_a_static_format_takes_one_image_unless_told(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(OnnxFormat, "static", True)
    source = lively(tmp_path, "mobilenet_v1", photos)
    for batch, expected in ((0, 1), (3, 3)):
        [result] = exported(source, photos, plan(tmp_path, batch=batch, force=True))
        assert json.loads((tmp_path / f"{result.path.name}.json").read_text())["batch"] == expected
        shape = onnxruntime.InferenceSession(result.path).get_inputs()[0].shape
        assert shape == [expected, 3, 32, 32]


def test_a_file_that_does_not_run_here_says_so(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(OnnxFormat, "runs_on", "elsewhere")
    source = lively(tmp_path, "mobilenet_v1", photos)
    assert run(["export", str(source), "--data", str(photos)]) == 0
    assert "converted, not run here" in capsys.readouterr().out
    [row] = json.loads((tmp_path / "export.json").read_text())["files"]
    assert (row["file"], row["note"]) == ("mobilenet_v1.onnx", "converted, not run here")
    assert not {"max_delta", "top1", "median_ms"} & row.keys()
    assert json.loads((tmp_path / "mobilenet_v1.onnx.json").read_text())["proof"] == {}


needs_coreml = pytest.mark.skipif("coreml" not in INSTALLED, reason="the coreml extra is missing")


@needs_coreml
@pytest.mark.parametrize(("arch", "arguments", "size"), VARIANTS)
def test_every_network_becomes_a_core_ml_package(arch, arguments, size, photos, tmp_path):
    import coremltools

    source = lively(tmp_path, arch, photos, size, **arguments)
    [result] = exported(source, photos, plan(tmp_path, formats=["coreml"]))
    assert (result.refused, result.note) == ("", "converted, not run here")
    files = [path for path in result.path.rglob("*") if path.is_file()]
    document = json.loads((tmp_path / f"{result.path.name}.json").read_text())
    assert document["file"]["bytes"] == sum(path.stat().st_size for path in files) == result.size
    assert document["file"]["sha256"] == folder_sha256(result.path)
    assert not list(tmp_path.glob(".*"))
    model = coremltools.models.MLModel(str(result.path), skip_model_load=True)
    contract = read_contract(model.user_defined_metadata["mnet"], "here")
    assert (contract.class_names, contract.batch) == (NAMES, 1)
    [taken], [given] = model.get_spec().description.input, model.get_spec().description.output
    assert [*taken.type.multiArrayType.shape] == [1, 3, size, size]
    assert [*given.type.multiArrayType.shape] == [1, 3]


@needs_coreml
def test_half_a_core_ml_package_is_half_the_size_and_replaces_one(photos, tmp_path):
    source = lively(tmp_path, "mobilenet_v2", photos)
    [whole] = exported(source, photos, plan(tmp_path, formats=["coreml"]))
    half = plan(tmp_path, formats=["coreml"], precision="float16")
    [result] = exported(source, photos, half)
    assert result.size < 0.6 * whole.size
    (result.path / "older").touch()
    with pytest.raises(UsageError, match="exists"):
        exported(source, photos, half)
    [again] = exported(source, photos, replace(half, force=True))
    assert (again.size, (again.path / "older").exists()) == (result.size, False)


@needs_coreml
def test_a_baked_core_ml_package_takes_an_image_and_only_one(photos, tmp_path):
    import coremltools

    source = lively(tmp_path, "mobilenet_v3_small", photos)
    baked = plan(tmp_path, formats=["coreml"], bake=True)
    [result] = exported(source, photos, baked)
    model = coremltools.models.MLModel(str(result.path), skip_model_load=True)
    [taken] = model.get_spec().description.input
    assert (taken.type.imageType.width, taken.type.imageType.height) == (32, 32)
    with pytest.raises(UsageError, match="--batch 2"):
        exported(source, photos, replace(baked, batch=2, force=True))


@pytest.mark.skipif(sys.platform == "darwin", reason="there it runs")
def test_a_core_ml_package_is_not_run_elsewhere(tmp_path):
    with pytest.raises(MachineError, match="macOS"):
        open_classifier(tmp_path / "model.mlpackage", "cpu")


def test_settings_are_tried_until_one_passes(tiny_run, photos, tmp_path, monkeypatch):
    verdicts = iter(["too far"] * 4 + ["", ""])
    monkeypatch.setattr("mnet_cli.export.pipeline.refusal", lambda *_: next(verdicts))
    [result] = exported(tiny_run / "best.pt", photos, plan(tmp_path, precision="int8"))
    assert [reason for _, reason in result.tried] == ["too far"] * 4
    assert result.setting == "16-bit activations, squeeze-excitation and head in float"
    document = json.loads((tmp_path / f"{result.path.name}.json").read_text())
    assert document["setting"] == result.setting
    assert document["calibration"]["images"] == 12


def test_what_differs_is_refused_and_leaves_no_file(photos, tmp_path, monkeypatch, capsys):
    source = lively(tmp_path, "mobilenet_v2", photos)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setitem(parity.TOLERANCE, "float32", 1e-12)
    assert run(["export", str(source), "--data", str(photos)]) == 6
    assert sorted(tmp_path.iterdir()) == [tmp_path / "export.json", *before]
    assert "logits differ by" in capsys.readouterr().err
    [row] = json.loads((tmp_path / "export.json").read_text())["files"]
    assert row["file"] is None
    assert row["max_delta"] > 0


def test_the_command_prints_a_table_and_keeps_it(tiny_run, capsys):
    assert run(["export", str(tiny_run), "--format", "onnx,torchscript", "--force"]) == 0
    printed = capsys.readouterr().out
    assert "mobilenet_v2.onnx" in printed
    assert "100.0%" in printed
    rows = json.loads((tiny_run / "export.json").read_text())["files"]
    assert [row["file"] for row in rows] == ["mobilenet_v2.onnx", "mobilenet_v2.torchscript"]
    assert all(row["median_ms"] > 0 for row in rows)


def test_files_are_replaced_only_when_asked_to(photos, tmp_path, capsys):
    source = lively(tmp_path, "mobilenet_v1", photos)
    command = ["export", str(source), "--data", str(photos)]
    assert run(command) == 0
    before = (tmp_path / "mobilenet_v1.onnx").read_bytes()
    assert run(command) == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "mobilenet_v1.onnx").read_bytes() == before
    assert run([*command, "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "onnx,tensorrt"], "tensorrt"),
        (["--int8", "--half"], "--int8"),
        (["--format", "torchscript", "--int8"], "cannot be int8"),
        (["--max-drop", "0.1"], "no effect without --int8"),
        (["--calibration", "10"], "no effect without --int8"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_done(
    arguments, said, photos, tmp_path, capsys
):
    source = lively(tmp_path, "mobilenet_v1", photos)
    assert run(["export", str(source), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_help_names_every_format(capsys):
    assert run(["export", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in FORMATS)


def test_a_missing_extra_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(OnnxFormat, "extra", "mnet-cli[openvino]")
    monkeypatch.setattr(OnnxFormat, "packages", ("no_such_package",))
    with pytest.raises(MachineError, match=r'pip install "mnet-cli\[openvino\]"'):
        registry.format_for_export("onnx", "float32")


def test_formats_that_cannot_have_a_precision_say_what_they_can():
    with pytest.raises(UsageError, match="Choose float32"):
        registry.format_for_export("pt2", "float16")


@pytest.mark.parametrize("name", INSTALLED)
def test_files_tell_nothing_of_the_machine_they_come_from(name, photos, v3_file):
    path = v3_file(name)
    files = path.rglob("*") if path.is_dir() else [path]
    parts = [file.read_bytes() for file in files if file.is_file()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = [archive.read(entry) for entry in archive.namelist()]
    here = str(Path(registry.__file__).parents[1]).encode()
    traces = (here, b"site-packages", str(photos).encode(), str(path.parent).encode())
    assert not [trace for part in parts for trace in traces if trace in part]


@pytest.mark.parametrize("name", NO_TORCH)
def test_a_file_is_classified_without_torch(name, tiny_run, photos):
    assert run(["export", str(tiny_run), "--format", name, "--force", "--quiet"]) == 0
    code = (
        "import sys; from mnet_cli.cli import run\n"
        "assert run(['predict', '-c', *sys.argv[1:]]) == 0\n"
        "assert not {'torch', 'torchvision', 'onnx'} & set(sys.modules)"
    )
    photo = next((photos / "val").rglob("*.jpg"))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_run / f"mobilenet_v2{FORMATS[name].suffix}"), photo],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "class: " in done.stdout


def test_a_script_of_few_lines_gives_the_probabilities_of_predict(tiny_run, photos, capsys):
    assert run(["export", str(tiny_run), "--force", "--quiet"]) == 0
    file, photo = tiny_run / "mobilenet_v2.onnx", next((photos / "val").rglob("*.jpg"))
    capsys.readouterr()
    assert run(["predict", "-c", str(tiny_run), "--json", str(photo)]) == 0
    expected = json.loads(capsys.readouterr().out)["probs"]
    found = json.loads(
        subprocess.check_output([sys.executable, str(STANDALONE), str(file), str(photo)])
    )
    assert found.keys() == expected.keys()
    assert max(abs(found[name] - expected[name]) for name in found) < 1e-4


def test_eval_of_an_exported_file_gives_the_checkpoints_scores(tiny_run, capsys):
    assert run(["export", str(tiny_run), "--force", "--quiet"]) == 0
    documents = []
    for checkpoint in (tiny_run, tiny_run / "mobilenet_v2.onnx"):
        capsys.readouterr()
        assert run(["eval", "-c", str(checkpoint), "--json"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0]["confusion"] == documents[1]["confusion"]
    assert documents[0]["loss"] == pytest.approx(documents[1]["loss"], abs=1e-4)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [name for name in RUN_HERE if name != "pt2"])  # slow to convert
def test_a_file_that_changed_since_its_export_is_refused(name, photos, tmp_path, capsys):
    source = lively(tmp_path, "mobilenet_v1", photos)
    [result] = exported(source, photos, plan(tmp_path, formats=[name]))
    file = json.loads((tmp_path / f"{result.path.name}.json").read_text())["file"]
    photo = str(next(photos.rglob("*.jpg")))
    for part in (file["name"], *file["companions"]):
        flip_a_bit(tmp_path / part)
        assert run(["predict", "-c", str(result.path), photo]) == 4
        captured = capsys.readouterr()
        assert captured.out == ""
        [line] = captured.err.splitlines()
        assert f"{part}: changed since it was exported: its sha256 is " in line
        assert {**file["companions"], file["name"]: file["sha256"]}[part][:12] in line
        flip_a_bit(tmp_path / part)  # back
    assert run(["predict", "-c", str(result.path), photo]) == 0


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"file": 3}', '{"file": {"sha256": 3}}', "[" * 100_000]
)
def test_a_damaged_document_beside_a_file_is_refused(content, tmp_path):
    (tmp_path / "model.onnx.json").write_text(content)
    with pytest.raises(WeightsError, match=r"model\.onnx\.json: no hashes of model\.onnx in it"):
        open_classifier(tmp_path / "model.onnx", "cpu")


def test_a_file_without_its_document_is_taken_as_it_is(photos, tmp_path):
    source = lively(tmp_path, "mobilenet_v1", photos)
    [result] = exported(source, photos, plan(tmp_path))
    (tmp_path / f"{result.path.name}.json").unlink()
    assert run(["predict", "-c", str(result.path), str(next(photos.rglob("*.jpg")))]) == 0


def test_companions_and_folders_are_compared_too(tmp_path):
    file, companion = tmp_path / "model.xml", tmp_path / "model.bin"
    file.write_text("graph")
    companion.write_text("weights")
    about = {"sha256": content_sha256(file), "companions": {"old.bin": content_sha256(companion)}}
    (tmp_path / "model.xml.json").write_text(json.dumps({"file": about}))
    refuse_changed(file)
    companion.write_text("others")
    with pytest.raises(WeightsError, match=r"model\.bin: changed since"):
        refuse_changed(file)
    companion.unlink()
    with pytest.raises(WeightsError, match=r"model\.bin: cannot be read"):
        refuse_changed(file)
    package = tmp_path / "model.mlpackage"
    package.mkdir()
    (package / "part").write_text("weights")
    about = {"sha256": content_sha256(package)}
    (tmp_path / "model.mlpackage.json").write_text(json.dumps({"file": about}))
    refuse_changed(package)
    (package / "another").touch()
    with pytest.raises(WeightsError, match=r"model\.mlpackage: changed since"):
        refuse_changed(package)


def test_bench_times_what_it_is_given(tiny_run, capsys):
    assert run(["export", str(tiny_run), "--force", "--quiet"]) == 0
    capsys.readouterr()
    file = tiny_run / "mobilenet_v2.onnx"
    assert run(["bench", str(tiny_run), str(file), "--rounds", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in document["files"]] == [str(tiny_run), str(file)]
    assert all(0 < row["median_ms"] <= row["p95_ms"] for row in document["files"])


def test_the_parity_check_compares_logits_by_their_range():
    expected = np.asarray([[0, 10], [8, 2]], np.float32)
    found = expected + np.asarray([[0.05, 0], [0, 0]], np.float32)
    proof = parity.check_parity(found, expected, np.asarray([1, 1]))
    assert proof.max_delta == pytest.approx(0.005)
    assert (proof.agreement, proof.top1, proof.reference_top1) == (1, 0.5, 0.5)
    assert parity.refusal(proof, "float16", 0) == ""
    assert "logits differ" in parity.refusal(proof, "float32", 0)


@pytest.mark.parametrize(("right", "allowed"), [(198, True), (197, False)])
def test_the_parity_check_allows_eight_bits_a_drop_of_whole_images(right, allowed):
    labels = np.zeros(200, int)
    expected = np.tile(np.asarray([1, 0], np.float32), (200, 1))
    found = expected.copy()
    found[right:] = found[right:, ::-1]
    proof = parity.check_parity(found, expected, labels)
    assert (parity.refusal(proof, "int8", 0.01) == "") == allowed
    assert parity.refusal(proof, "int8", 0.02) == ""


def test_half_a_percent_of_other_answers_is_too_much_in_floating_point():
    proof = parity.ParityReport(1000, 0.0, 0.994, 0.9, 0.9)
    assert "99.4%" in parity.refusal(proof, "float32", 1)


def test_calibration_takes_as_many_of_each_class_as_there_are():
    labels = np.repeat([0, 1, 2], [50, 3, 20])
    chosen = balanced(labels, 15, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [6, 3, 6]
    assert chosen == balanced(labels, 15, seed=1) != balanced(labels, 15, seed=2)
    assert sorted(balanced(labels, 500, seed=1)) == list(range(73))


def test_calibration_takes_turns_with_the_classes_in_a_shuffled_order():
    random = np.random.default_rng(0)
    for size, classes in [(1, 1), (60, 3), (500, 90), (300, 1000)]:
        labels = random.integers(classes, size=size)
        turn, seen = {}, dict.fromkeys(labels.tolist(), 0)
        for index in np.random.default_rng(7).permutation(size).tolist():
            turn[index] = seen[int(labels[index])]
            seen[int(labels[index])] += 1
        expected = sorted(range(size), key=lambda index: (turn[index], labels[index]))
        assert balanced(labels, 40, seed=7) == expected[:40]


def test_calibration_lets_go_of_the_activations_it_has_sampled(monkeypatch):
    seen: list[weakref.ref] = []
    alive: list[int] = []  # arrays of earlier photographs, at each photograph

    class Watched:
        def __init__(self, model):
            self.session, self.real = self, OnnxForward(model).session

        def __getattr__(self, name):
            return getattr(self.real, name)

        def run(self, names, fed):
            alive.append(sum(array() is not None for array in seen))
            outputs = self.real.run(names, fed)
            seen.extend(map(weakref.ref, outputs))
            return outputs

    monkeypatch.setattr(quantization, "OnnxForward", Watched)
    model = onnx.load_from_string(to_onnx(build_model("mobilenet_v1", 3, width_mult=0.25).eval()))
    images = np.random.default_rng(0).standard_normal((6, 3, 64, 64), np.float32)
    observed = quantization.observe(model, images)
    assert len(alive) == 6
    assert max(alive) <= len(observed)  # those of one


def test_calibration_of_very_many_classes_is_chosen_in_no_time():
    labels = np.repeat(np.arange(21_000), 10)
    started = time.process_time()
    chosen = balanced(labels, 200, seed=0)
    assert time.process_time() - started < 5  # class by class it took more than a minute
    assert len(set(labels[chosen].tolist())) == 200


def test_the_documentation_shows_the_script_that_is_tested():
    page = (STANDALONE.parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    assert f'--8<-- "tests/{STANDALONE.name}"' in page


@pytest.mark.parametrize("name", ["torchscript", "pt2"])
def test_a_file_of_torch_leaves_the_number_of_threads_as_it_was(name, photos, tmp_path):
    source = lively(tmp_path, "mobilenet_v1", photos)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        [result] = exported(source, photos, plan(tmp_path, formats=[name]))
        classify = open_classifier(result.path, "cpu").classify
        with ThreadPoolExecutor(2) as pool:
            images = np.zeros((2, 3, 32, 32), np.float32)
            assert len([*pool.map(classify, [images] * 8)]) == 8
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


class Mistaken(OnnxFormat):
    """Writes files whose outputs are not the network's."""

    def __init__(self, change):
        self.change = change

    def load(self, path, device):
        run, contract = super().load(path, device)
        return (lambda inputs: self.change(run(inputs))), contract


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda logits: logits[:, :2], r"outputs of shape \(\d+, 2\) for 3 classes"),
        (lambda logits: logits * np.nan, "outputs that are not finite"),
    ],
)
def test_outputs_of_another_shape_or_without_a_value_are_refused(
    change, says, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(pipeline, "format_for_export", lambda *_: Mistaken(change))
    source = lively(tmp_path, "mobilenet_v2", photos)
    [result] = exported(source, photos, plan(tmp_path / "out"))
    assert re.search(says, result.refused)
    assert not list((tmp_path / "out").glob("*.onnx"))


def test_a_checkpoint_whose_outputs_are_not_finite_is_refused(photos, tmp_path):
    source = lively(tmp_path, "mobilenet_v2", photos)
    checkpoint = load_checkpoint(source)
    checkpoint.state_dict["classifier.1.bias"][:] = 3e38
    checkpoint.state_dict["classifier.1.weight"][:] = 3e38
    save_checkpoint(source, checkpoint)
    with pytest.raises(RefusedError, match="its outputs are not finite"):
        exported(source, photos, plan(tmp_path / "out"))


def test_an_image_that_is_lost_during_an_export_is_named(photos, tmp_path, monkeypatch):
    images = shutil.copytree(photos, tmp_path / "photos")
    source = lively(tmp_path, "mobilenet_v2", images)
    data = open_dataset(str(images), class_names=NAMES)
    lost = next((images / "val").rglob("*.jpg"))
    lost.unlink()
    with pytest.raises(DataError, match=lost.name):
        list(export(load_checkpoint(source), source, data, plan(tmp_path / "out")))
