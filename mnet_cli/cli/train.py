"""`mnet train`."""

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mnet_cli.cli import console
from mnet_cli.cli.options import DeviceOption, OverrideOption, run_behind
from mnet_cli.errors import RecipeError, UsageError, WeightsError
from mnet_cli.system.signals import StopSignal
from mnet_cli.system.text import listing

if TYPE_CHECKING:
    from mnet_cli.models.freeze import StageRow
    from mnet_cli.models.weights import WeightsAccount
    from mnet_cli.recipe import Recipe
    from mnet_cli.training.batches import CacheUse, Supply
    from mnet_cli.training.setup import Job
    from mnet_cli.training.state import Fit

HEADER = "  epoch  train loss  val loss   top-1  macro-F1  images/s        lr  seconds"


def train(
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="A recipe file, or the name of a shipped recipe."),
    ] = None,
    overrides: OverrideOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run directory, new or empty.", show_default="runs/RECIPE"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with the run in this directory.", callback=run_behind),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train the model that a recipe describes and keep the best checkpoint."""
    from mnet_cli.recipe import load_recipe

    _refuse_launcher()
    root = None
    if resume and out:
        raise UsageError("--out", "given with --resume", "the run stays where it is")
    if resume:
        resume = resume.resolve() if resume.is_symlink() else resume  # runs/latest may move on
        resolved = _recipe_of(resume, recipe, overrides or ())
        if (resume / "summary.json").is_file():
            _show_complete(resume)
            return
        root = _data_of(resume, resolved)
    elif recipe:
        resolved = load_recipe(recipe, overrides or ())
    else:
        raise UsageError("mnet train", "no recipe", "--recipe or --resume was expected")

    from mnet_cli.models.freeze import stage_table
    from mnet_cli.runtimes import choose_device
    from mnet_cli.training.setup import prepare_data, prepare_job, resume_job
    from mnet_cli.training.summary import summarize, write_results
    from mnet_cli.training.trainer import fit

    chosen = choose_device(device)
    if resolved.output.tensorboard:
        from mnet_cli.report.tensorboard import epoch_writer, require_tensorboard

        require_tensorboard()  # before anything is made
    with console.bar("checking images") as on_progress:
        data = prepare_data(resolved, on_progress, root)
    console.notes(data.notes)
    if data.skipped:
        console.note(f"note: {len(data.skipped)} bad images left out, see skipped.csv in the run")
    without = data.without_images("val")
    if without:
        console.note(f"note: no validation images of {listing(without)}: left out of macro-F1")
    images = console.counts({split: len(s) for split, s in data.splits.items()})
    console.note(f"data: {data.root}: {len(data.class_names)} classes, {images}")
    with console.bar("weights", unit="B") as on_progress:
        if resume:
            job = resume_job(resolved, data, chosen, resume, on_progress)
        else:
            job = prepare_job(resolved, data, chosen, out, on_progress)
    if job.kept:
        console.note(f"resumed: {job.run} at step {job.kept.training['step']:,}")
    else:
        _show_account(job.account)
    if job.note:
        console.note(f"note: {job.note}")

    def on_phase(supply: "Supply") -> None:
        _show_stages(stage_table(job.model))
        if supply.note:
            console.note(f"note: {supply.note}")
        if supply.cache:
            console.note(_cache_line(supply.cache))
        console.note(HEADER)

    total = sum(phase.epochs for phase in resolved.phases)
    watchers: list[Callable[[Mapping[str, float]], None]] = [
        lambda row: console.note(_epoch_line(row, total))
    ]
    if resolved.output.tensorboard:
        watchers.append(epoch_writer(job.run / "tensorboard"))

    def on_epoch(row: Mapping[str, float]) -> None:
        for watch in watchers:
            watch(row)

    with _saying_how_to_resume(job.run):
        with (
            console.bar("features") as on_features,
            console.bar("training", unit="batch") as on_batch,
        ):
            result = fit(
                job,
                on_features=on_features,
                on_phase=on_phase,
                on_batch=on_batch,
                on_epoch=on_epoch,
            )
        _write_report(job, result, summarize(job, result))
        summary = write_results(job, result)  # last: with it the run is complete
    console.show(summary, lambda: _show_summary(job.run, summary))


def _refuse_launcher() -> None:
    """Refuse to be one of the processes that torchrun and others start for one training."""
    processes = os.environ.get("WORLD_SIZE", "")
    if processes.isdecimal() and int(processes) > 1:
        raise UsageError(
            f"WORLD_SIZE={processes}",
            f"{processes} processes were started, and each would train a run of its own",
            next_step="Start mnet train without torchrun, or unset WORLD_SIZE",
        )


@contextmanager
def _saying_how_to_resume(run: Path) -> Iterator[None]:
    """Let a signal's message say where the run's state is, and how it goes on."""
    try:
        yield
    except StopSignal as stop:
        state = run / "last.pt"
        place = f"The state is in {state}" if state.exists() else "No step is saved yet"
        stop.next_step = f"{place}. Go on with: mnet train --resume {shlex.quote(str(run))}"
        raise


def _show_complete(run: Path) -> None:
    """Say that a run has ended, and how."""
    console.note(f"already complete: {run}")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    console.show(summary, lambda: _show_summary(run, summary))


def _recipe_of(run: Path, recipe: str | None, overrides: Sequence[str]) -> "Recipe":
    """The recipe of a run; one that is given besides must not differ in what it trains."""
    from mnet_cli.recipe import load_recipe, plain_values

    file = run / "recipe.yaml"
    if not file.is_file():
        raise WeightsError(
            str(run),
            "no run that could go on",
            "a run directory of mnet train was expected",
            "Start one with --recipe",
        )
    if not recipe and not overrides:
        return load_recipe(file)

    from mnet_cli.training.setup import recipe_differences

    wanted = load_recipe(recipe or file, overrides)
    differences = recipe_differences(plain_values(load_recipe(file)), plain_values(wanted))
    if differences:
        raise RecipeError(
            str(file),
            f"another recipe ({len(differences)} keys differ)",
            "the run's own was expected",
            "Leave --recipe and --set out, or start a new run",
            differences,
        )
    return wanted


def _data_of(run: Path, recipe: "Recipe") -> Path:
    """Where the data set of a run is; a `data.root` that is given now comes first."""
    from mnet_cli.recipe import load_recipe
    from mnet_cli.training.run_directory import find_data

    root = Path(recipe.data.root)
    if recipe.data.root != load_recipe(run / "recipe.yaml").data.root:
        return root
    return find_data(run, root, "--set data.root=DIR")


def _show_account(account: "WeightsAccount | None") -> None:
    if account is None:
        console.note("weights: none, a random start")
        return
    console.note(
        f"weights: {account.origin}: {len(account.loaded)} tensors loaded, "
        f"{len(account.replaced)} replaced by a new head, {len(account.missing)} missing, "
        f"{len(account.unexpected)} unexpected"
    )


def _show_stages(rows: "list[StageRow]") -> None:
    console.table(
        ("stage", ">trainable", ">frozen"), list(_grouped(rows)), title="parameters", news=True
    )


def _grouped(rows: "list[StageRow]") -> Iterator[tuple[str, str, str]]:
    """Put neighbouring stages of the features that learn, or that do not, into one row."""
    for _, group in groupby(rows, lambda row: (row.name == "classifier", row.trainable > 0)):
        stages = list(group)
        name = stages[0].name
        if len(stages) > 1:
            name += f" … {stages[-1].name.rpartition('.')[2]}"
        trainable, frozen = sum(s.trainable for s in stages), sum(s.frozen for s in stages)
        yield name, f"{trainable:,}", f"{frozen:,}"
    yield "all", f"{sum(r.trainable for r in rows):,}", f"{sum(r.frozen for r in rows):,}"


def _cache_line(cache: "CacheUse") -> str:
    views = "one view" if cache.views == 1 else f"{cache.views} views"
    return (
        f"cache: {cache.boundary}, {views} an image, {cache.row_bytes:,} bytes each: "
        f"{cache.fresh:,} computed, {cache.rows - cache.fresh:,} found"
    )


def _epoch_line(row: Mapping[str, float], total: int) -> str:
    return (
        f"{row['epoch']:>3}/{total:<3}  {row['train_loss']:10.4f}  {row['val_loss']:8.4f}  "
        f"{console.percent(row['top1']):>6}  {console.percent(row['macro_f1']):>8}  "
        f"{row['images_per_second']:8.0f}  {row['lr']:8.2g}  {row['seconds']:7.1f}"
    )


def _write_report(job: "Job", result: "Fit", summary: Mapping[str, Any]) -> None:
    from mnet_cli.recipe import dump_recipe
    from mnet_cli.report.html import WrongImage, write_report

    best, model = result.best, job.recipe.model
    assert best is not None, "a recipe has at least one epoch"
    write_report(
        job.run / "report.html",
        title=f"{job.run.name}: {model.arch}, width_mult {model.width_mult:g}",
        facts=[
            ("data", f"{Path(job.recipe.data.root)} ({console.counts(summary['images'])})"),
            ("weights", job.account.origin if job.account else "none"),
            ("preprocessing", str(job.preprocess)),
            ("training", f"{summary['epochs']} epochs in {summary['seconds']:.0f} s"),
        ],
        epochs=result.rows,
        evaluation=best,
        wrong=[
            WrongImage(
                row["image"].name,
                row["image"],
                row["true"],
                row["predicted"],
                row["prob"],
            )
            for row in best.wrong()
        ],
        next_commands=[f"mnet eval --checkpoint {job.run}"],
        best_epoch=result.best_epoch,
        recipe=dump_recipe(job.recipe),
        environment=[("device", summary["device"]), *summary["versions"].items()],
    )


def _show_summary(run: Path, summary: Mapping[str, Any]) -> None:
    best, frozen, total = summary["best"], summary["frozen"], len(summary["class_names"])
    scored = total - len(summary.get("classes_without_images", ()))  # an older run has no list
    low, high = (console.percent(bound) for bound in best["top1_interval"])
    console.line(f"best: {run / 'best.pt'} (epoch {best['epoch']} of {summary['epochs']})")
    console.line(
        f"top-1 {console.percent(best['top1'])} (95% interval {low} to {high} on "
        f"{summary['images']['val']} images), macro-F1 {console.percent(best['macro_f1'])}"
        f"{console.of_classes(scored, total)}, loss {best['loss']:.4f}"
    )
    if frozen["tensors"]:
        state = f"{len(frozen['moved'])} MOVED" if frozen["moved"] else "none moved"
        console.line(f"frozen: {frozen['tensors']} tensors and buffers checked, {state}")
    console.line(f"report: {run / 'report.html'}")
    console.line(f"next: mnet eval --checkpoint {run}")
