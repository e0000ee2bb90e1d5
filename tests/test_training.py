import csv
import hashlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mnet_cli.errors import DataError, MachineError, RecipeError, RefusedError, UsageError
from mnet_cli.features import extract, store
from mnet_cli.formats.checkpoint import load_checkpoint
from mnet_cli.inference.classifier import open_classifier
from mnet_cli.inference.evaluate import evaluate
from mnet_cli.models.freeze import freeze
from mnet_cli.recipe import load_recipe
from mnet_cli.system import machine
from mnet_cli.system.tensorfile import read_tensors
from mnet_cli.training import events
from mnet_cli.training.batches import auto_views, choose_views
from mnet_cli.training.optimization import (
    build_ema,
    build_optimizer,
    build_scaler,
    build_scheduler,
)
from mnet_cli.training.prepare import prepare_data, prepare_job
from mnet_cli.training.summary import write_results
from mnet_cli.training.trainer import Trainer

CPU = torch.device("cpu")
STARTER = ("model.weights=starter", "model.freeze=features", "data.image_size=64", "train.lr=5e-2")


def fit(job, *, on_phase=None, on_epoch=None):
    """Train, with functions that are called when a phase starts and after each epoch."""

    def watch(event):
        if on_phase and isinstance(event, events.PhaseStarted):
            on_phase(event.source)
        if on_epoch and isinstance(event, events.EpochEnded):
            on_epoch(event.row)

    return Trainer(job, [watch]).fit()


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def prepared(recipe_file, *overrides):
    recipe = load_recipe(recipe_file, overrides)
    return prepare_job(recipe, prepare_data(recipe), CPU)


def trained(recipe_file, *overrides):
    job = prepared(recipe_file, *overrides)
    return job, fit(job)


def weights_hash(run, name="best.pt") -> str:
    digest = hashlib.sha256()
    for key, tensor in load_checkpoint(run / name).state_dict.items():
        digest.update(key.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_training_learns_colours_and_leaves_a_whole_run_directory(tiny_recipe):
    job, result = trained(tiny_recipe, *STARTER, "train.epochs=6")
    write_results(job, result)
    assert result.best.top1 > 0.9
    assert {path.name for path in job.run.iterdir()} == {
        ".lock", ".owner", "best.pt", "last.pt", "class_indices.json", "data.json", "metrics.csv",
        "recipe.yaml", "split.csv", "summary.json",
    }  # fmt: skip
    names = json.loads((job.run / "class_indices.json").read_text())
    assert names == {"0": "blue", "1": "green", "2": "red"}
    with (job.run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    summary = json.loads((job.run / "summary.json").read_text())
    best = hashlib.sha256((job.run / "best.pt").read_bytes()).hexdigest()
    assert summary["sha256"]["best.pt"] == best
    assert load_recipe(job.run / "recipe.yaml").train == job.recipe.train


def test_best_is_the_earlier_epoch_at_a_tie(tiny_recipe):
    _, result = trained(tiny_recipe, "train.epochs=4", "train.lr=1e-9")
    tops = [row["top1"] for row in result.rows]
    assert result.best_epoch == tops.index(max(tops)) + 1


@pytest.mark.parametrize("monitor", ["macro_f1", "loss"])
def test_monitor_picks_the_best_epoch(tiny_recipe, monitor):
    job, result = trained(tiny_recipe, "train.epochs=4", f"train.monitor={monitor}")
    key, pick = ("val_loss", min) if monitor == "loss" else ("macro_f1", max)
    values = [row[key] for row in result.rows]
    assert result.best_epoch == values.index(pick(values)) + 1
    assert load_checkpoint(job.run).metrics["epoch"] == result.best_epoch


@pytest.mark.parametrize(
    "extras", [(), ("train.mixup=0.4", "train.cutmix=0.4", "data.augment=trivialaugment")]
)
def test_result_is_the_same_bits_for_any_number_of_workers(tiny_recipe, extras):
    runs = [trained(tiny_recipe, f"data.workers={n}", *extras)[0].run for n in (0, 2)]
    assert weights_hash(runs[0]) == weights_hash(runs[1])
    assert weights_hash(runs[0], "last.pt") == weights_hash(runs[1], "last.pt")


def test_seed_changes_the_result(tiny_recipe):
    runs = [trained(tiny_recipe, f"train.seed={seed}")[0].run for seed in (0, 1)]
    assert weights_hash(runs[0]) != weights_hash(runs[1])


@pytest.mark.parametrize("frozen", ["features", "features[:4]", "['*.1', 'features.0']"])
def test_frozen_tensors_and_buffers_do_not_move(tiny_recipe, frozen):
    job = prepared(tiny_recipe, f"model.freeze={frozen}", "train.ema=0.9")
    before = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    result = fit(job)
    assert result.frozen > 0
    assert result.moved == []
    freeze(job.model, job.recipe.phases[0].freeze)
    still = {n for n, p in job.model.named_parameters() if not p.requires_grad}
    after = load_checkpoint(job.run).state_dict
    assert all(torch.equal(before[name], after[name]) for name in still)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_phases_train_the_head_first_then_more(tiny_recipe):
    phases = "[{epochs: 1, freeze: features, lr: 0.01}, {epochs: 2, freeze: none, lr: 0.001}]"
    text = tiny_recipe.read_text().replace(", freeze: none}", "}")
    tiny_recipe.write_text(text.replace("{epochs: 2, lr: 3.0e-3}", f"{{phases: {phases}}}"))
    seen = []
    job = prepared(tiny_recipe)
    stem = job.model.features[0][0].weight
    result = fit(
        job, on_epoch=lambda row: seen.append((row["epoch"], stem.detach().abs().sum().item()))
    )
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert seen[0][1] != seen[1][1]
    assert seen[0][1] == pytest.approx(seen[1][1], rel=0.2)
    assert result.moved == []


def test_early_stop_ends_a_run_that_no_longer_improves(tiny_recipe):
    _, result = trained(tiny_recipe, "train.epochs=30", "train.lr=1e-9", "train.early_stop=2")
    assert len(result.rows) == result.best_epoch + 2


def test_nan_loss_is_refused_with_its_step_and_keeps_the_last_good_checkpoint(tiny_recipe):
    job = prepared(tiny_recipe, "train.epochs=3")

    def poison(row):
        if row["epoch"] == 1:
            with torch.no_grad():
                job.model.classifier[1].bias.fill_(math.nan)

    with pytest.raises(RefusedError, match=r"step 6: the loss is nan"):
        fit(job, on_epoch=poison)
    assert load_checkpoint(job.run).metrics["epoch"] == 1


def test_averaged_weights_are_what_best_holds(tiny_recipe):
    job, _ = trained(tiny_recipe, "train.ema=0.99")
    assert weights_hash(job.run, "best.pt") != weights_hash(job.run, "last.pt")
    last = read_tensors(job.run / "last.pt")
    assert last["ema"] is not None
    assert last["step"] == 2 * 5


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.optimizer=sgd", "train.momentum=0.8", "train.schedule=cosine"),
        ("train.optimizer=adam", "train.schedule=cosine", "train.warmup_epochs=0.5"),
        ("data.balance=class_weights", "train.label_smoothing=0.1", "train.clip_grad_norm=1"),
        ("data.balance=sampler", "train.schedule=constant", "data.random_erasing=0.5"),
        ("train.amp=true", "data.augment=none"),
        ("model.arch=mobilenet_v1", "model.width_mult=0.25"),
        ("model.arch=mobilenet_v3_small", "model.reduced_tail=true"),
    ],
)
def test_every_choice_trains(tiny_recipe, overrides):
    _, result = trained(tiny_recipe, "train.epochs=1", *overrides)
    assert math.isfinite(result.rows[0]["train_loss"])
    assert result.rows[0]["train_loss"] < 3


def test_schedules_rise_and_fall_as_named(tiny_recipe):
    model = torch.nn.Linear(2, 2)

    def course(schedule, warmup):
        train = load_recipe(
            tiny_recipe, [f"train.schedule={schedule}", f"train.warmup_epochs={warmup}"]
        ).train
        optimizer = build_optimizer(model, train, 1.0)
        scheduler = build_scheduler(optimizer, train, 1.0, 4, 10)
        values = []
        for _ in range(40):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return values

    onecycle, cosine, constant = course("onecycle", 0), course("cosine", 1), course("constant", 0)
    assert onecycle[0] < 0.1 < 0.99 < max(onecycle) <= 1.0
    assert onecycle[-1] < 1e-3
    assert cosine[:10] == sorted(cosine[:10])
    assert max(cosine) == pytest.approx(1.0)
    assert cosine[-1] < 0.01
    assert constant == [1.0] * 40


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7, 8, 20])
def test_one_cycle_reaches_its_peak_in_any_number_of_steps(tiny_recipe, steps, optimizer_name):
    train = load_recipe(tiny_recipe, [f"train.optimizer={optimizer_name}"]).train
    optimizer = build_optimizer(torch.nn.Linear(2, 2), train, 0.5)
    scheduler = build_scheduler(optimizer, train, 0.5, 1, steps)
    rates, momenta = [], []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        rates.append(group["lr"])
        momenta.append(group["momentum"] if optimizer_name == "sgd" else group["betas"][0])
        optimizer.step()
        scheduler.step()
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(0.5, rel=0.03)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert min(rates[: max(1, steps - 2)]) >= 0.5 / 25
    assert all(0.84 < momentum < 0.96 for momentum in momenta)
    assert momenta[peak] == min(momenta)


@pytest.mark.parametrize("steps", [7, 8, 50])
def test_one_cycle_of_many_steps_is_that_of_torch(tiny_recipe, steps):
    train = load_recipe(tiny_recipe).train
    optimizers = [build_optimizer(torch.nn.Linear(2, 2), train, 0.5) for _ in range(2)]
    ours = build_scheduler(optimizers[0], train, 0.5, 1, steps)
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizers[1], max_lr=0.5, total_steps=steps)
    for _ in range(steps):
        first, second = (optimizer.param_groups[0] for optimizer in optimizers)
        assert (first["lr"], first["betas"]) == (second["lr"], second["betas"])
        for optimizer, scheduler in zip(optimizers, (ours, torchs), strict=True):
            optimizer.step()
            scheduler.step()


def test_a_single_step_learns(tiny_recipe, tmp_path, draw_photos):
    root = draw_photos(tmp_path / "few", train=2, val=2)
    job = prepared(tiny_recipe, f"data.root={root}", "data.batch_size=6", "train.epochs=1")
    before = job.model.classifier[1].weight.detach().clone()
    result = fit(job)
    assert result.rows[0]["lr"] == job.recipe.train.lr
    assert (job.model.classifier[1].weight - before).abs().max() > 1e-3


def test_weight_decay_spares_biases_and_norms(tiny_recipe):
    job = prepared(tiny_recipe)
    decayed, spared = build_optimizer(job.model, job.recipe.train, 1e-3).param_groups
    assert decayed["weight_decay"] == job.recipe.train.weight_decay
    assert spared["weight_decay"] == 0
    assert all(parameter.ndim == 1 for parameter in spared["params"])


def test_moving_average_starts_quickly_and_then_follows_slowly():
    model = torch.nn.Linear(1, 1, bias=False)
    ema = build_ema(model, 0.9)
    values = []
    for value in [0.0, *[1.0] * 30]:
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(model)
        values.append(ema.module.weight.item())
    assert values[0] == 0.0
    assert values[2] > 0.9
    assert values[30] > 0.99


def test_moving_average_follows_its_formula_to_the_last_bit_and_counts_without_the_device():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    ema, expected = build_ema(model, 0.9), {}
    for count in range(25):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(2, 3, 5, 5))  # moves the buffers, one of them an integer
        ema.update(model)
        weight = 1 - min(0.9, (1 + float(count)) / (10 + float(count)))
        for name, current in model.state_dict().items():
            before = expected.get(name)
            if before is None or not current.is_floating_point():
                expected[name] = current.clone()
            else:
                expected[name] = before + weight * (current - before)
    found = ema.module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert type(ema.updates) is int
    assert ema.updates == 25


@pytest.mark.parametrize(
    ("device", "amp", "scales"), [("mps", True, True), ("mps", False, False), ("cpu", True, False)]
)
def test_autocast_in_float16_always_has_a_scaler(device, amp, scales):
    assert build_scaler(torch.device(device), amp=amp).is_enabled() == scales


def test_wrong_freeze_leaves_no_run_directory(tiny_recipe, tmp_path):
    with pytest.raises(RecipeError, match="19 stages"):
        prepared(tiny_recipe, "model.freeze=features[:40]")
    assert not (tmp_path / "runs").exists()


def test_unsplit_folder_without_a_fraction_says_how_to_split(tiny_recipe, photos):
    recipe = load_recipe(tiny_recipe, [f"data.root={photos / 'train'}"])
    with pytest.raises(DataError, match=r"data\.val_fraction=0\.2"):
        prepare_data(recipe)


FROZEN = ("model.weights=starter", "data.image_size=64", "train.epochs=3")
EXTRAS = ("train.ema=0.9", "train.clip_grad_norm=1", "train.label_smoothing=0.1")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("arch", ["mobilenet_v2", "mobilenet_v3_small"])
def test_as_many_views_as_epochs_equal_no_cache_to_the_last_bit(tiny_recipe, workers, arch):
    recipe = [*EXTRAS, f"data.workers={workers}", "model.freeze=features", "train.epochs=3"]
    if arch == "mobilenet_v2":
        recipe.append("model.weights=starter")
    recipe.append(f"model.arch={arch}")
    (cached, with_cache), (live, without) = (
        trained(tiny_recipe, *recipe, f"data.cached_views={views}") for views in (3, 0)
    )
    assert with_cache.caches[0].views == 3
    assert without.caches == []
    assert weights_hash(cached.run) == weights_hash(live.run)
    assert weights_hash(cached.run, "last.pt") == weights_hash(live.run, "last.pt")
    without_time = [
        [{k: v for k, v in row.items() if "second" not in k} for row in result.rows]
        for result in (with_cache, without)
    ]
    assert without_time[0] == without_time[1]


@pytest.mark.parametrize("frozen", ["features", "features[:7]", "['features.0', '*.1']"])
def test_a_second_run_computes_nothing_and_ends_the_same(tiny_recipe, frozen):
    runs = [trained(tiny_recipe, *FROZEN, f"model.freeze={frozen}") for _ in range(2)]
    assert [result.caches[0].fresh > 0 for _, result in runs] == [True, False]
    assert weights_hash(runs[0][0].run) == weights_hash(runs[1][0].run)


def test_inner_boundaries_learn_from_the_cache_what_they_learn_without(tiny_recipe):
    # Maps are cached in half precision, and a larger lr makes more of that in every step.
    slow = (*FROZEN, "model.freeze=features[:7]", "train.lr=1e-3")
    results = [trained(tiny_recipe, *slow, f"data.cached_views={views}")[1] for views in (3, 0)]
    assert results[0].caches[0].boundary == "mobilenet_v2 features[:7]"
    for cached, live in zip(*(result.rows for result in results), strict=True):
        assert cached["train_loss"] == pytest.approx(live["train_loss"], rel=0.005)


def test_scores_of_a_cached_run_are_those_of_its_checkpoint(tiny_recipe):
    job, result = trained(tiny_recipe, *FROZEN, "model.freeze=features[:7]", "train.ema=0.9")
    classifier = open_classifier(job.run, "cpu")
    val = job.data.splits["val"]
    again = evaluate(
        classifier.classify,
        classifier.preprocess,
        job.data.files("val"),
        val.labels,
        classifier.class_names,
    )
    assert again.loss == pytest.approx(result.best.loss, abs=1e-5)
    assert again.top1 == result.best.top1


@pytest.mark.parametrize(
    ("overrides", "views"),
    [
        (("model.freeze=features",), 3),  # four, but for the number of epochs
        (("model.freeze=features", "data.cached_views=2"), 2),
        (("model.freeze=features", "data.augment=none"), 1),
        (("model.freeze=features", "train.epochs=6"), 4),
        (("model.freeze=features[:14]",), 3),  # maps: no view comes again
        (("model.freeze=features[:14]", "train.epochs=11"), None),
        (("model.freeze=features", "train.mixup=0.2"), None),
        (("model.freeze=none",), None),
    ],
)
def test_auto_caches_where_something_is_frozen_and_images_are_not_mixed(
    tiny_recipe, overrides, views
):
    _, result = trained(tiny_recipe, *FROZEN, *overrides)
    assert [use.views for use in result.caches] == ([] if views is None else [views])


def test_each_phase_has_a_boundary_of_its_own(tiny_recipe):
    first = "{epochs: 2, freeze: features, lr: 0.01}"
    second = "{epochs: 2, freeze: 'features[:5]', lr: 0.001}"
    removed = [f"{key}=null" for key in ("train.epochs", "train.lr", "model.freeze")]
    recipe = ("model.weights=starter", *removed, f"train.phases=[{first}, {second}]")
    job, result = trained(tiny_recipe, *recipe, "train.ema=0.9")
    assert [use.boundary.partition(" ")[2] for use in result.caches] == [
        "features",
        "features[:5]",
    ]
    assert result.moved == []
    write_results(job, result)
    summary = json.loads((job.run / "summary.json").read_text())
    assert [use["views"] for use in summary["cache"]] == [2, 2]


def test_auto_keeps_four_views_of_up_to_5000_images_and_fewer_of_more():
    counts = (2, 700, 5_000, 5_001, 10_000, 20_000, 1_000_000)
    assert [auto_views(count) for count in counts] == [4, 4, 4, 3, 2, 1, 1]


def test_a_phase_that_began_with_fewer_views_goes_on_with_them(tiny_recipe):
    job = prepared(tiny_recipe, *FROZEN, "model.freeze=features[:14]", "train.epochs=12")
    maps = SimpleNamespace(is_map=True)
    assert choose_views(job, maps, range(1, 13)) == {}
    views = choose_views(job, maps, range(1, 13), cached=4)
    assert [views[epoch] for epoch in range(1, 13)] == [1, 2, 3, 4] * 3


def test_a_balanced_sampler_learns_from_the_cache_too(tiny_recipe):
    recipe = (*FROZEN, "model.freeze=features", "data.balance=sampler")
    hashes = {
        weights_hash(trained(tiny_recipe, *recipe, f"data.cached_views={views}")[0].run)
        for views in (3, 0)
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME=/dev/null/no", "MNET_CACHE_GB=0.0000001"])
def test_without_room_for_a_cache_auto_trains_without_and_a_number_is_refused(
    tiny_recipe, monkeypatch, variable
):
    monkeypatch.setenv(*variable.split("="))
    recipe = (*FROZEN, "model.freeze=features")
    notes = []
    job = prepared(tiny_recipe, *recipe)
    result = fit(job, on_phase=lambda supply: notes.append(supply.note))
    assert result.caches == []
    assert len(result.rows) == 3
    assert "without the cache: " in notes[0]
    with pytest.raises(MachineError):
        trained(tiny_recipe, *recipe, "data.cached_views=2")


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="open files are not listed here")
def test_more_shards_than_the_soft_limit_on_open_files_are_used(tiny_recipe, monkeypatch):
    import resource

    monkeypatch.setattr(extract, "SHARD", 1)
    monkeypatch.setattr(store, "MAPPED", 1)
    monkeypatch.setattr(machine, "SPARE_FILES", 30)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = sum(1 for _ in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 40, before[1]))
    try:
        recipe = ("model.freeze=features", "data.image_size=32", "data.cached_views=1")
        _, result = trained(tiny_recipe, *FROZEN, *recipe)
        assert result.caches[0].fresh == 24 + 12
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > opened + 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_cap_that_is_no_number_is_refused_before_a_run_directory_is_made(
    tiny_recipe, tmp_path, monkeypatch
):
    monkeypatch.setenv("MNET_CACHE_GB", "ten")
    with pytest.raises(UsageError, match="MNET_CACHE_GB"):
        prepared(tiny_recipe)
    assert not (tmp_path / "runs").exists()


def test_a_number_of_views_where_the_first_layer_learns_is_refused(tiny_recipe):
    with pytest.raises(RecipeError, match=r"data\.cached_views"):
        prepared(tiny_recipe, *FROZEN, "model.freeze=['features.5']", "data.cached_views=2")


def test_without_augmentation_all_seeds_find_the_same_rows(tiny_recipe):
    recipe = (*FROZEN, "model.freeze=features", "data.augment=none")
    fresh = [trained(tiny_recipe, *recipe, f"train.seed={s}")[1].caches[0].fresh for s in (1, 2)]
    assert fresh == [36, 0]


def test_the_moving_average_is_kept_under_the_models_names(tiny_recipe):
    job, _ = trained(tiny_recipe, *FROZEN, "model.freeze=features", "train.ema=0.9")
    last = read_tensors(job.run / "last.pt")
    assert last["ema"]["updates"] == last["step"]
    assert list(last["ema"]["state_dict"]) == ["classifier.1.weight", "classifier.1.bias"]
    best = load_checkpoint(job.run).state_dict
    assert not torch.equal(last["state_dict"]["classifier.1.weight"], best["classifier.1.weight"])


def test_classes_without_a_readable_training_image_are_named(tiny_recipe, tmp_path, photos):
    broken = shutil.copytree(photos, tmp_path / "broken")
    for path in (broken / "train" / "red").iterdir():
        path.write_bytes(b"no image")
    recipe = load_recipe(tiny_recipe, [f"data.root={broken}", "data.skip_bad=true"])
    with pytest.raises(DataError, match="no usable training image of 'red'"):
        prepare_data(recipe)


def test_skipped_images_are_listed_in_the_run_directory(tiny_recipe, tmp_path, photos):
    broken = shutil.copytree(photos, tmp_path / "broken")
    (broken / "train" / "red" / "0.jpg").write_bytes(b"no image")
    job = prepared(tiny_recipe, f"data.root={broken}", "data.skip_bad=true")
    with (job.run / "skipped.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert row["path"] == "train/red/0.jpg"
    assert "not an image" in row["fault"]


def test_round_nearest_of_the_recipe_is_in_the_network_and_the_checkpoint(tiny_recipe):
    job = prepared(tiny_recipe, "model.round_nearest=4")
    assert job.model_args["round_nearest"] == 4
    [plain] = (prepared(tiny_recipe).model,)
    channels = [m.out_channels for m in job.model.modules() if isinstance(m, nn.Conv2d)]
    assert channels != [m.out_channels for m in plain.modules() if isinstance(m, nn.Conv2d)]


def test_the_running_loss_is_the_mean_of_the_last_steps(tiny_recipe):
    seen = []

    def watch(event):
        if isinstance(event, events.BatchTrained):
            losses = torch.stack(event.progress.losses)
            seen.append((event.progress.running_loss(), float(losses.mean())))

    Trainer(prepared(tiny_recipe, "train.epochs=1"), [watch]).fit()
    assert len(seen) == 5
    assert all(running == pytest.approx(mean) for running, mean in seen)


def test_an_error_in_the_code_is_not_taken_for_one_of_the_machine(tiny_recipe):
    def watch(event):
        if isinstance(event, events.BatchTrained):
            raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        Trainer(prepared(tiny_recipe), [watch]).fit()
