import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mnet_cli.cli import run as mnet
from mnet_cli.data.dataset import DataSet, Samples
from mnet_cli.data.paths import Names
from mnet_cli.data.sources.folder import FolderSource
from mnet_cli.errors import DataError, MachineError, RefusedError, WeightsError
from mnet_cli.formats.checkpoint import load_checkpoint
from mnet_cli.recipe import load_recipe
from mnet_cli.system.atomic import write_csv
from mnet_cli.system.tensorfile import read_tensors, write_tensors
from mnet_cli.training import batches, events
from mnet_cli.training.batches import LiveBatches
from mnet_cli.training.optimization import MovingAverage
from mnet_cli.training.prepare import prepare_data, prepare_job
from mnet_cli.training.resume import resume_job
from mnet_cli.training.state import named_tensors, part_names, restore_state
from mnet_cli.training.trainer import Trainer

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent / "golden"
PROGRAM = "from mnet_cli.cli import main; main()"
STEPS = 5  # batches of an epoch: 24 images by 5
PHASES = """\
schema: 1
model: {arch: mobilenet_v2, width_mult: 0.35, weights: none}
data: {root: ROOT, image_size: 32, batch_size: 5, workers: 0}
train:
  early_stop: 1
  phases:
  - {epochs: 2, freeze: features, lr: 1.0e-2}
  - {epochs: 2, freeze: "features[:14]", lr: 1.0e-3}
"""
TIMES = ("seconds", "images_per_second", "fresh")  # what the cache had depends on earlier runs


def fit(job, *, on_batch=None, on_epoch=None):
    """Train, with functions that are called after each batch and each epoch."""

    def watch(event):
        if on_batch and isinstance(event, events.BatchTrained):
            on_batch(event.done, event.total)
        if on_epoch and isinstance(event, events.EpochEnded):
            on_epoch(event.row)

    return Trainer(job, [watch]).fit()


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def begin(recipe_file, overrides, out):
    recipe = load_recipe(recipe_file, overrides)
    return prepare_job(recipe, prepare_data(recipe), CPU, out)


def go_on(recipe_file, overrides, out):
    recipe = load_recipe(recipe_file, overrides)
    return resume_job(recipe, prepare_data(recipe), CPU, out)


def stopped_after(steps):
    """A callback that interrupts after so many batches."""
    seen = iter(range(1, 10_000))

    def on_batch(done, total):
        if next(seen) == steps:
            raise KeyboardInterrupt

    return on_batch


def final_state(run) -> dict[str, str]:
    """Digests of all that training leaves behind, times apart."""
    digests = {}
    for name in ("best.pt", "last.pt"):
        checkpoint = load_checkpoint(run / name)
        content = {"state": checkpoint.state_dict, "metrics": checkpoint.metrics}
        content |= {"training": without_times(checkpoint.training)}
        digest = hashlib.sha256()
        feed(digest, content)
        digests[name] = digest.hexdigest()
    return digests


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in TIMES}
    if isinstance(value, list | tuple):
        return [without_times(one) for one in value]
    return value


def feed(digest, value) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            feed(digest, value[key])
    elif isinstance(value, list | tuple):
        for one in value:
            feed(digest, one)
    else:
        digest.update(repr(value).encode())


SETTINGS = {
    "live": ("train.ema=0.9", "train.schedule=onecycle"),
    "live, two workers": ("data.workers=2", "train.schedule=cosine", "train.warmup_epochs=1"),
    "mixed": ("train.mixup=0.4", "train.cutmix=0.4", "train.optimizer=sgd"),
    "cached": ("model.freeze=features[:14]", "data.cached_views=2"),
    "cached head": ("model.freeze=features", "train.ema=0.9", "train.clip_grad_norm=1"),
    "frozen, no cache": ("model.freeze=features[:14]", "data.cached_views=0", "data.workers=2"),
    "phases": (),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(setting, tiny_recipe, photos, tmp_path):
    if setting == "phases":
        tiny_recipe.write_text(PHASES.replace("ROOT", str(photos)))
    overrides = SETTINGS[setting]
    job = begin(tiny_recipe, overrides, tmp_path / "whole")
    whole = fit(job)
    total = STEPS * len(whole.rows)
    expected = final_state(tmp_path / "whole")
    for steps in (1, 3, STEPS, STEPS + 2, total):
        out = tmp_path / f"stopped-{steps}"
        job = begin(tiny_recipe, overrides, out)
        with pytest.raises(KeyboardInterrupt):
            fit(job, on_batch=stopped_after(steps))
        job.lock.release()
        assert load_checkpoint(out / "last.pt").training["step"] == steps
        job = go_on(tiny_recipe, overrides, out)
        result = fit(job)
        job.lock.release()
        assert final_state(out) == expected, steps
        assert result.best_epoch == whole.best_epoch


@pytest.mark.parametrize("first", [True, False])
def test_an_average_goes_on_where_it_covers_another_part_of_the_network(
    first, tiny_recipe, tmp_path, monkeypatch
):
    """On a CPU it covers what lies above the frozen boundary, elsewhere the whole network."""
    overrides = ("model.freeze=features[:14]", "data.cached_views=0", "train.ema=0.9")

    def with_frozen_part(frozen):
        def live(*arguments, **options):
            return LiveBatches(*arguments, **options | {"frozen": frozen})

        return live

    monkeypatch.setattr(batches, "LiveBatches", with_frozen_part(first))
    job = begin(tiny_recipe, overrides, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        fit(job, on_batch=stopped_after(STEPS))
    job.lock.release()
    before = load_checkpoint(tmp_path / "run" / "last.pt").training["ema"]["state_dict"]
    monkeypatch.setattr(batches, "LiveBatches", with_frozen_part(not first))
    job = go_on(tiny_recipe, overrides, tmp_path / "run")
    result = fit(job)
    job.lock.release()
    after = load_checkpoint(tmp_path / "run" / "last.pt").training["ema"]
    shared = before.keys() & after["state_dict"].keys()
    assert "classifier.1.weight" in shared
    assert before.keys() != after["state_dict"].keys()
    assert after["updates"] == STEPS * len(result.rows)


def test_an_average_of_another_network_is_refused(tiny_recipe, tmp_path):
    overrides = ("train.ema=0.9",)
    job = begin(tiny_recipe, overrides, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        fit(job, on_batch=stopped_after(1))
    job.lock.release()
    last = tmp_path / "run" / "last.pt"
    content = read_tensors(last)
    del content["ema"]["state_dict"]["features.3.conv.0.0.weight"]
    write_tensors(last, content)
    with pytest.raises(WeightsError, match="holds no state that training can resume from"):
        fit(go_on(tiny_recipe, overrides, tmp_path / "run"))


def test_a_run_that_was_stopped_after_an_epoch_and_again_while_resumed(tiny_recipe, tmp_path):
    job = begin(tiny_recipe, ("train.epochs=3",), tmp_path / "whole")
    fit(job)
    expected = final_state(tmp_path / "whole")

    def after_the_epoch(row):
        raise KeyboardInterrupt

    out = tmp_path / "stopped"
    job = begin(tiny_recipe, ("train.epochs=3",), out)
    with pytest.raises(KeyboardInterrupt):
        fit(job, on_epoch=after_the_epoch)
    for steps in (1, 2, 4):
        job.lock.release()
        job = go_on(tiny_recipe, ("train.epochs=3",), out)
        with pytest.raises(KeyboardInterrupt):
            fit(job, on_batch=stopped_after(steps))
    job.lock.release()
    job = go_on(tiny_recipe, ("train.epochs=3",), out)
    fit(job)
    assert final_state(out) == expected


def test_an_error_of_the_system_leaves_a_checkpoint(tiny_recipe, tmp_path):
    def fails(done, total):
        if done == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))  # as a lost terminal does

    job = begin(tiny_recipe, (), tmp_path / "run")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        fit(job, on_batch=fails)
    assert load_checkpoint(tmp_path / "run" / "last.pt").training["step"] == 3


@pytest.mark.parametrize("begins_with_room", [True, False])
def test_a_resumed_phase_keeps_to_the_cache_or_to_none(
    begins_with_room, tiny_recipe, tmp_path, monkeypatch
):
    settings = ("model.freeze=features[:14]",)
    room = iter(("10", "0.000001") if begins_with_room else ("0.000001", "10"))
    monkeypatch.setenv("MNET_CACHE_GB", next(room))
    fit(begin(tiny_recipe, settings, tmp_path / "whole"))
    job = begin(tiny_recipe, settings, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        fit(job, on_batch=stopped_after(STEPS + 1))
    job.lock.release()
    monkeypatch.setenv("MNET_CACHE_GB", next(room))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "emptied"))
    job = go_on(tiny_recipe, settings, tmp_path / "run")
    if begins_with_room:
        with pytest.raises(MachineError):
            fit(job)
    else:
        assert fit(job).caches == []
        assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def test_checkpoints_within_an_epoch_come_by_the_clock(tiny_recipe, tmp_path, monkeypatch):
    job = begin(tiny_recipe, ("train.save_minutes=0.0001",), tmp_path / "run")
    steps = []

    def look(done, total):
        time.sleep(0.01)
        last = tmp_path / "run" / "last.pt"
        steps.append(load_checkpoint(last).training["step"] if last.exists() else 0)

    fit(job, on_batch=look)
    assert steps[:4] == [0, 1, 2, 3]


def test_a_run_killed_before_its_first_checkpoint_starts_again(tiny_recipe, tmp_path):
    whole = begin(tiny_recipe, (), tmp_path / "whole")
    fit(whole)
    begin(tiny_recipe, (), tmp_path / "run").lock.release()
    job = go_on(tiny_recipe, (), tmp_path / "run")
    assert job.resume_state is None
    fit(job)
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def test_other_images_are_refused(draw_photos, tiny_recipe, tmp_path):
    root = draw_photos(tmp_path / "drawn", train=8, val=4)
    overrides = (f"data.root={root}",)
    begin(tiny_recipe, overrides, tmp_path / "run").lock.release()
    next((root / "train").rglob("*.jpg")).unlink()
    with pytest.raises(DataError, match="1 are missing"):
        go_on(tiny_recipe, overrides, tmp_path / "run")


def many_images(count: int) -> DataSet:
    """A data set of `count` training images that exist by name alone."""
    sha256 = np.arange(4 * count, dtype=np.uint64).view(np.uint8).reshape(count, 32)
    names = Names(f"train/red/{number}.jpg" for number in range(count))
    classes, labels = ("red", "green"), np.zeros(count, np.int64)
    source = FolderSource("photos", "photos/train", classes, names, labels)
    samples = Samples(source, np.arange(count), labels, sha256)
    return DataSet("photos", classes, {"train": samples}, (), ())


def test_the_images_of_a_run_are_compared_in_little_memory_and_counted(tiny_recipe, tmp_path):
    count = 10_000
    data = many_images(count)
    (tmp_path / "run").mkdir()
    columns, manifest = ("path", "class", "split", "sha256"), [*data.manifest()]
    manifest[7]["sha256"] = "0" * 64  # changed since
    manifest[8]["class"] = "green"
    manifest += [{**manifest[9], "path": f"train/red/gone-{number}.jpg"} for number in range(3)]
    write_csv(tmp_path / "run" / "split.csv", columns, [*manifest[10:], *manifest[:10]])
    del manifest
    recipe = load_recipe(tiny_recipe)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="2 images are new or changed and 5 are missing"):
            resume_job(recipe, data, CPU, tmp_path / "run")
        assert tracemalloc.get_traced_memory()[1] < 250 * count
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("content", ["path,class\na,b,c\n", "path\n\xff\n"])
def test_a_manifest_that_is_none_is_refused(content, tiny_recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "split.csv").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"not the split\.csv of a run"):
        resume_job(load_recipe(tiny_recipe), many_images(3), CPU, tmp_path / "run")


def test_without_links_a_run_starts_and_is_found_as_the_latest(
    tiny_recipe, tmp_path, monkeypatch, capsys
):
    def refuse(self, target, target_is_directory=False):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    arguments = ["train", "-r", str(tiny_recipe), "--set", "train.epochs=1"]
    assert mnet([*arguments, "--out", str(tmp_path / "mine")]) == 0
    assert mnet(["eval", "--quiet"]) == 0
    assert mnet(["eval", "--quiet", "--checkpoint", "runs/latest"]) == 0
    capsys.readouterr()
    assert mnet(["train", "--resume", "runs/latest"]) == 0
    assert f"already complete: {tmp_path / 'mine'}" in capsys.readouterr().err


def test_a_latest_of_others_is_left_alone_and_training_goes_on(tiny_recipe, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "latest").write_text("mine")
    assert mnet(["train", "-r", str(tiny_recipe), "--set", "train.epochs=1"]) == 0
    assert "note: runs/latest: not made by mnet" in capsys.readouterr().err
    assert (tmp_path / "runs" / "latest").read_text() == "mine"
    assert (tmp_path / "runs" / "tiny" / "summary.json").exists()


def test_a_run_has_one_owner(tiny_recipe, tmp_path):
    job = begin(tiny_recipe, (), tmp_path / "run")
    with pytest.raises(MachineError, match=f"in use by pid {os.getpid()} on host"):
        go_on(tiny_recipe, (), tmp_path / "run")
    job.lock.release()
    go_on(tiny_recipe, (), tmp_path / "run").lock.release()


def test_a_state_that_keeps_too_little_is_refused(tiny_recipe, tmp_path):
    job = begin(tiny_recipe, (), tmp_path / "run")
    fit(job)
    job.lock.release()
    content = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    content["history"] = {}
    torch.save(content, tmp_path / "run" / "last.pt")
    job = go_on(tiny_recipe, (), tmp_path / "run")
    with pytest.raises(WeightsError, match="holds no state that training can resume from"):
        fit(job)
    job.lock.release()
    shutil.copy(tmp_path / "run" / "best.pt", tmp_path / "run" / "last.pt")
    with pytest.raises(WeightsError, match="not the state of this run"):
        go_on(tiny_recipe, (), tmp_path / "run")


SMALL = ("model.arch=mobilenet_v3_small", "model.width_mult=0.05", "model.reduced_tail=true")


def test_a_state_keeps_some_numbers_an_image_and_none_for_every_class(tiny_recipe, tmp_path):
    fit(begin(tiny_recipe, (*SMALL, "train.epochs=1"), tmp_path / "run"))
    history = load_checkpoint(tmp_path / "run" / "last.pt").training["history"]
    kept = [value for value in history["best"].values() if isinstance(value, torch.Tensor)]
    assert kept
    assert {value.shape for value in kept} == {(12,)}  # the validation images
    assert not any(isinstance(value, torch.Tensor) for value in history.values())


def test_a_state_of_format_1_with_all_logits_goes_on(photos, tmp_path):
    run = shutil.copytree(GOLDEN / "run-1", tmp_path / "run")
    before = load_checkpoint(run / "last.pt")
    assert "best_logits" in before.training["history"]
    job = go_on(run / "recipe.yaml", (f"data.root={photos}",), run)
    best = restore_state(job).best
    assert {"epoch": 1, **best.figures()} == pytest.approx(before.metrics, abs=1e-12)
    result = fit(job)
    assert len(result.rows) == 2
    assert (
        load_checkpoint(run / "last.pt").training["history"]["best"].keys()
        == vars(best.predictions).keys()
    )


def test_a_state_whose_scores_do_not_fit_is_refused(tiny_recipe, tmp_path):
    settings, run = (*SMALL, "train.epochs=1"), tmp_path / "run"
    job = begin(tiny_recipe, settings, run)
    fit(job)
    job.lock.release()
    content = torch.load(run / "last.pt", weights_only=True)
    good = content["history"]["best"]
    for damage in (
        {"classes": torch.full((12,), 3)},
        {"classes": torch.zeros(12)},
        {"ranks": torch.zeros(11)},
        {"true_log_probs": torch.full((12,), float("nan"))},
        {"more": torch.zeros(12)},
        {"log_probs": None},
    ):
        content["history"]["best"] = good | damage
        torch.save(content, run / "last.pt")
        job = go_on(tiny_recipe, settings, run)
        with pytest.raises(WeightsError, match="holds no state that training can resume from"):
            fit(job)
        job.lock.release()


def test_a_signal_in_the_middle_of_a_step_keeps_the_state_before_it(
    tiny_recipe, tmp_path, monkeypatch
):
    whole = begin(tiny_recipe, (), tmp_path / "whole")
    fit(whole)
    real, calls = Trainer.step, iter(range(1, 100))

    def torn(*arguments):
        real(*arguments)
        if next(calls) == STEPS + 2:
            raise KeyboardInterrupt  # as the second of two signals does

    monkeypatch.setattr(Trainer, "step", torn)
    job = begin(tiny_recipe, (), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        fit(job)
    job.lock.release()
    monkeypatch.setattr(Trainer, "step", real)
    assert load_checkpoint(tmp_path / "run" / "last.pt").training["step"] == STEPS
    fit(go_on(tiny_recipe, (), tmp_path / "run"))
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def test_a_loss_that_is_no_number_leaves_the_good_checkpoint(tiny_recipe, tmp_path, monkeypatch):
    settings = ("train.save_minutes=0.0001",)
    job = begin(tiny_recipe, settings, tmp_path / "run")
    real, calls = Trainer.step, iter(range(1, 100))

    def diverging(trainer, batch):
        bad = replace(batch, inputs=batch.inputs * float("nan"))
        real(trainer, bad if next(calls) == 3 else batch)

    monkeypatch.setattr(Trainer, "step", diverging)
    with pytest.raises(RefusedError, match="step 3"):
        fit(job, on_batch=lambda done, total: time.sleep(0.01))
    assert load_checkpoint(tmp_path / "run" / "last.pt").training["step"] == 2


def test_a_loss_that_is_no_number_in_the_first_epoch_claims_no_checkpoint(
    tiny_recipe, tmp_path, monkeypatch, capsys
):
    real, calls = Trainer.step, iter(range(1, 100))

    def diverging(trainer, batch):
        bad = replace(batch, inputs=batch.inputs * float("nan"))
        real(trainer, bad if next(calls) == 3 else batch)

    monkeypatch.setattr(Trainer, "step", diverging)
    out = tmp_path / "run"
    assert mnet(["train", "-r", str(tiny_recipe), "--out", str(out)]) == 6
    said = capsys.readouterr().err.splitlines()[-1]
    assert "step 3: the loss is nan" in said
    assert "kept" not in said
    assert "no epoch was finished, so there is no best.pt" in said
    assert not list(out.glob("*.pt"))


def test_weights_that_the_last_step_of_an_epoch_has_spoilt_do_not_replace_good_ones(
    tiny_recipe, tmp_path, monkeypatch
):
    real, calls = Trainer.step, iter(range(1, 100))

    def spoiling(trainer, *batch):
        real(trainer, *batch)
        if next(calls) == 2 * STEPS:
            with torch.no_grad():
                trainer.optimization.module.classifier[1].bias.fill_(float("nan"))

    monkeypatch.setattr(Trainer, "step", spoiling)
    out = tmp_path / "run"
    assert mnet(["train", "-r", str(tiny_recipe), "--out", str(out)]) == 6
    last = load_checkpoint(out / "last.pt")
    assert last.training["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in last.state_dict.values())


def test_the_figures_of_a_resumed_epoch_are_of_the_whole_epoch(tiny_recipe, tmp_path, monkeypatch):
    real, pause = Trainer.step, 0.05

    def slow(*arguments):
        time.sleep(pause)
        real(*arguments)

    monkeypatch.setattr(Trainer, "step", slow)
    job = begin(tiny_recipe, ("train.epochs=1",), tmp_path / "run")
    for steps in (3, 1):
        with pytest.raises(KeyboardInterrupt):
            fit(job, on_batch=stopped_after(steps))
        job.lock.release()
        job = go_on(tiny_recipe, ("train.epochs=1",), tmp_path / "run")
    [row] = fit(job).rows
    assert row["seconds"] >= STEPS * pause
    assert row["images_per_second"] <= 24 / (STEPS * pause)


def test_a_state_without_the_seconds_of_its_epoch_is_resumed(tiny_recipe, tmp_path):
    job = begin(tiny_recipe, (), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        fit(job, on_batch=stopped_after(STEPS + 2))
    job.lock.release()
    content = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert content["running"].pop("seconds") > 0
    torch.save(content, tmp_path / "run" / "last.pt")
    assert len(fit(go_on(tiny_recipe, (), tmp_path / "run")).rows) == 2


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")],
)
def test_too_little_memory_names_the_batch(error, tiny_recipe, tmp_path, monkeypatch):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(Trainer, "step", fails)
    with pytest.raises(MachineError, match=r"batches of 5 images.*data\.batch_size=2"):
        fit(begin(tiny_recipe, (), tmp_path / "run"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children by process")
def test_a_worker_that_dies_is_the_machines_fault_and_leaves_a_checkpoint(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    settings = ["--set", "data.workers=2", "--set", "train.epochs=400", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "train", "-r", str(tiny_recipe), *settings],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 5, said
    assert "a process that loads images died" in said.splitlines()[-1]
    assert load_checkpoint(out / "last.pt").training["step"] >= STEPS


def test_the_command_resumes_and_says_what_it_found(tiny_recipe, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert mnet(["train", "-r", str(tiny_recipe), "--out", out]) == 0
    capsys.readouterr()
    assert mnet(["train", "--resume", out, "--json"]) == 0
    captured = capsys.readouterr()
    assert "already complete" in captured.err
    assert json.loads(captured.out)["epochs"] == 2
    (tmp_path / "run" / "summary.json").unlink()
    assert mnet(["train", "--resume", out]) == 0
    assert "resumed" in capsys.readouterr().err
    assert (tmp_path / "run" / "summary.json").exists()


def test_another_recipe_is_refused_with_its_differences(tiny_recipe, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert mnet(["train", "-r", str(tiny_recipe), "--out", out]) == 0
    (tmp_path / "run" / "summary.json").unlink()
    assert mnet(["train", "--resume", out, "-r", str(tiny_recipe)]) == 0
    (tmp_path / "run" / "summary.json").unlink()
    capsys.readouterr()
    assert mnet(["train", "--resume", out, "--set", "train.lr=0.1"]) == 2
    assert "train.lr: 0.003 in the run, 0.1 now" in capsys.readouterr().err
    assert mnet(["train", "--resume", out, "--set", "data.workers=1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--resume", "empty"], 4, "not a run directory of mnet train"),
        (["--resume", "empty", "--out", "x"], 2, "--out"),
        ([], 2, "mnet train --resume DIR"),
    ],
)
def test_what_cannot_be_resumed_is_said(arguments, code, said, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert mnet(["train", *arguments]) == code
    assert said in capsys.readouterr().err


SIGNALLED = ("train.epochs=6", "data.workers=2")


@pytest.fixture(scope="module")
def unsignalled(tmp_path_factory, tiny_text):
    """The final state of the run that signals stop, when none does."""
    folder = tmp_path_factory.mktemp("unsignalled")
    recipe = folder / "tiny.yaml"
    recipe.write_text(tiny_text, encoding="utf-8")
    fit(begin(recipe, (*SIGNALLED, f"output.root={folder}"), folder / "whole"))
    return final_state(folder / "whole")


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize(
    ("number", "code", "group"),
    [
        (signal.SIGTERM, 143, False),
        (signal.SIGTERM, 143, True),
        (signal.SIGINT, 130, True),
        (signal.SIGHUP, 129, True),
    ],
)
def test_a_signal_leaves_a_checkpoint_to_resume_from(
    number, code, group, unsignalled, tiny_recipe, tmp_path
):
    out = tmp_path / "run"
    sets = [part for value in SIGNALLED for part in ("--set", value)]
    command = ["train", "-r", str(tiny_recipe), *sets, "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (out / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)
    started = time.monotonic()
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code, said
    assert time.monotonic() - started < 10
    assert "Traceback" not in said
    assert mnet(["train", "--resume", str(out), "--quiet"]) == 0
    assert final_state(out) == unsignalled


@pytest.mark.skipif(os.name != "posix", reason="limits as POSIX has them")
def test_a_file_that_may_not_grow_leaves_what_was_there(tiny_recipe, tmp_path):
    import resource

    out = tmp_path / "run"
    job = begin(tiny_recipe, (), out)
    with pytest.raises(KeyboardInterrupt):
        fit(job, on_batch=stopped_after(STEPS + 1))
    job.lock.release()
    before = {path.name: path.read_bytes() for path in out.glob("*.pt")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "train", "--resume", str(out)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert done.returncode == 5, done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in out.glob("*.pt")} == before
    assert not list(out.glob(".*.tmp"))
    assert mnet(["train", "--resume", str(out), "--quiet"]) == 0


@pytest.mark.skipif(os.name != "posix", reason="a shell's background jobs")
def test_a_background_job_of_a_shell_ends_at_sigterm(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    line = '"$@" & echo $!; wait $!; exit $?'
    command = [sys.executable, "-c", PROGRAM, "train", "-r", str(tiny_recipe)]
    longer = ["--set", "train.epochs=200", "--out", str(out)]
    shell = subprocess.Popen(
        ["sh", "-c", line, "sh", *command, *longer], stdout=subprocess.PIPE, text=True
    )
    number = int(shell.stdout.readline())
    while not (out / "last.pt").exists():
        assert shell.poll() is None
        time.sleep(0.05)
    os.kill(number, signal.SIGTERM)
    assert shell.wait(timeout=10) == 143
    shell.stdout.close()


def test_two_started_together_get_two_directories_and_share_one_cache(tiny_recipe, tmp_path):
    command = [sys.executable, "-c", PROGRAM, "train", "-r", str(tiny_recipe)]
    frozen = ["--set", "model.freeze=features[:14]", "--set", "data.cached_views=2"]
    both = [subprocess.Popen([*command, *frozen], stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    runs = tmp_path / "runs"
    assert final_state(runs / "tiny") == final_state(runs / "tiny-2")
    overrides = ("model.freeze=features[:14]", "data.cached_views=2")
    alone = begin(tiny_recipe, overrides, tmp_path / "alone")
    result = fit(alone)
    assert result.caches[0].fresh == 0
    assert final_state(tmp_path / "alone") == final_state(runs / "tiny")


def test_an_average_covers_both_names_of_a_tensor_that_is_used_twice():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
            self.second.weight = self.first.weight

    model = Tied()
    names = part_names(model, nn.Sequential(model))
    assert names == list(model.state_dict())
    average = MovingAverage(nn.Sequential(model), 0.5).module
    with torch.no_grad():
        average[0].first.weight.fill_(3)
    found = named_tensors(names, average)
    assert (found["first.weight"] == 3).all()
    assert (found["second.weight"] == 3).all()
