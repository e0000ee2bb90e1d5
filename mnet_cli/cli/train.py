"""`mnet train`."""

import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mnet_cli.cli import console
from mnet_cli.cli.options import DeviceOption, OverrideOption, run_behind
from mnet_cli.errors import RecipeError, UsageError, WeightsError
from mnet_cli.system.process_group import join_group
from mnet_cli.system.signals import StopSignal
from mnet_cli.system.text import listing

if TYPE_CHECKING:
    from mnet_cli.models.freeze import StageRow
    from mnet_cli.models.weights import LoadReport
    from mnet_cli.recipe import Recipe
    from mnet_cli.system.process_group import ProcessGroup
    from mnet_cli.training.batches import BatchSource, CacheUse
    from mnet_cli.training.events import BatchTrained, Column, Event, Row
    from mnet_cli.training.exact import Choice
    from mnet_cli.training.job import Job
    from mnet_cli.training.state import TrainState

LOSS_PERIOD = 0.5  # seconds between two losses on the bar


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe file, or the name of a shipped recipe.",
            show_default="v2_flowers, with --data",
        ),
    ] = None,
    recipe_option: Annotated[
        str | None, typer.Option("--recipe", "-r", help="The same as RECIPE.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Images to train on: a folder with one folder per class, or with train/ and "
            "val/; a .csv or .jsonl manifest; tar shards; Parquet; or a URL of one. Replaces "
            "data.root.",
            show_default="the recipe's",
        ),
    ] = None,
    overrides: OverrideOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run directory, new or empty.", show_default="runs/RECIPE"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Continue the run in this directory.", callback=run_behind),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train the model that a recipe describes and save the best checkpoint."""
    if resume and out:
        advice = "Leave --out out: the run stays where it is"
        raise UsageError("--out", "given with --resume", next_step=advice)
    if recipe and recipe_option:
        advice = "Give one of the two"
        raise UsageError(f"--recipe {recipe_option}", f"given with {recipe}", next_step=advice)
    options = TrainOptions(recipe or recipe_option, data, overrides or [], out, resume, device)
    group = join_group()
    if not group.is_main:
        console.settings.is_silent = True
    with group:
        _train(options, group)


@dataclass
class TrainOptions:
    """What the command line asks for; see `train`."""

    recipe: str | None
    data: str | None
    overrides: list[str]
    out: Path | None
    resume: Path | None
    device: str


def _train(options: TrainOptions, group: "ProcessGroup") -> None:
    """Train with all processes of a group; process 0 alone prints and writes."""
    job: Job | None
    if group.size == 1:
        job = _prepare(options, group)
    else:
        from mnet_cli.training.prepare import share_job

        job = share_job(group, lambda: _prepare(options, group))
    if job is None:
        return

    from mnet_cli.report.trackers import finish_trackers, open_trackers
    from mnet_cli.training.summary import failure_in_summary, summarize, write_results
    from mnet_cli.training.trainer import Trainer

    if not group.is_main:
        Trainer(job).fit()
        return
    console.note(_machine_line(job))
    trackers = open_trackers(job.recipe, job.run, _warn)
    with _saying_how_to_resume(job.run), failure_in_summary(job):
        with EpochConsole(job) as epoch_console:
            state = Trainer(job, [epoch_console, *trackers]).fit()
        _write_report(job, state, summarize(job, state))
        summary = write_results(job, state)  # last: with it the run is complete
        finish_trackers(trackers)
    console.show(summary, lambda: _show_summary(job.run, summary))


def _prepare(options: TrainOptions, group: "ProcessGroup") -> "Job | None":
    """Turn the command line into a job; None if the run that it names is complete."""
    from mnet_cli.recipe import data_overrides, select_recipe

    root, out = None, options.out
    recipe, data, overrides = options.recipe, options.data, options.overrides
    resume = options.resume or _restarted(options, group)
    if resume:
        out = None
        resume = resume.resolve() if resume.is_symlink() else resume  # runs/latest may move on
        resolved = _recipe_of(resume, recipe, data_overrides(overrides, data))
        if _show_complete(resume):
            from mnet_cli.report.trackers import log_complete

            log_complete(resolved, resume, _warn)
            return None
        root = _data_of(resume, resolved)
    elif recipe or data:
        resolved = select_recipe(recipe, overrides, data)
        if not recipe:
            console.note(f"recipe: v2_flowers, the default, with data.root: {data}")
    else:
        raise UsageError(
            "mnet train",
            "no recipe and no images",
            next_step="Give a recipe (mnet train v2_flowers), your images (mnet train --data DIR) "
            "or a run to continue (mnet train --resume DIR)",
        )

    from mnet_cli.models.device import choose_device
    from mnet_cli.report.trackers import check_trackers
    from mnet_cli.training.data_root import download_data, with_validation
    from mnet_cli.training.prepare import prepare_data, prepare_job
    from mnet_cli.training.resume import resume_job

    chosen = choose_device(options.device)
    check_trackers(resolved)
    if not resume:
        with console.bar("downloading", unit="B") as on_progress:
            download_data(resolved, console.note, on_progress)
        resolved = with_validation(resolved, console.note)
    with console.bar("checking images") as on_progress:
        images = prepare_data(resolved, on_progress, root)
    console.notes(images.notes)
    if images.skipped:
        console.note(f"note: {len(images.skipped)} bad images left out, see skipped.csv in the run")
    without = images.without_images("val")
    if without:
        console.note(f"note: no validation images of {listing(without)}: left out of macro-F1")
    counts = console.counts({split: len(s) for split, s in images.splits.items()})
    console.note(f"data: {images.root}: {len(images.class_names)} classes, {counts}")
    with console.bar("weights", unit="B") as on_progress:
        if resume:
            job = resume_job(resolved, images, chosen, resume, on_progress)
        else:
            job = prepare_job(resolved, images, chosen, out, on_progress, group.launch)
    if job.resume_state:
        training = job.resume_state.training
        console.note(f"resumed: {job.run} at step {training['step']:,}")
        before = training["history"].get("processes", 1)  # files of earlier versions lack it
        if before != group.size:
            console.note(
                f"note: the number of processes was {before} and is {group.size} now; the network "
                "stays the same but for the order in which numbers are added"
            )
    else:
        _show_weights(job.weights)
        is_exact = resolved.train.solver == "exact"
        if (
            job.weights is None
            and not is_exact
            and any(phase.freeze != "none" for phase in resolved.phases)
        ):
            console.note(
                "note: random weights are frozen, so the network learns little; "
                "to train all of it, set model.freeze=none"
            )
    if job.note:
        console.note(f"note: {job.note}")
    return job


def _restarted(options: TrainOptions, group: "ProcessGroup") -> Path | None:
    """The run that an earlier start of this launch has made; None at the first start."""
    if not group.restarts or not (options.recipe or options.data):
        return None

    from mnet_cli.recipe import select_recipe
    from mnet_cli.training.run_directory import find_launched

    root = options.out or Path(
        select_recipe(options.recipe, options.overrides, options.data).output.root
    )
    run = find_launched(root, group.launch)
    if run and not (run / "recipe.yaml").exists():  # it was killed before it had begun
        shutil.rmtree(run, ignore_errors=True)
        return None
    if run:
        console.note(f"start {group.restarts + 1} of this launch: {run} is resumed")
    return run


class EpochConsole:
    """Shows a training run on stderr: a line an epoch, and bars for what takes longer.

    Args:
        job: The run.
    """

    def __init__(self, job: "Job") -> None:
        self.job = job
        self.epochs = sum(phase.epochs for phase in job.recipe.phases)
        self._bars = ExitStack()
        self._shown = self._scored = 0.0  # when a loss was shown, and when scoring began

    def __enter__(self) -> "EpochConsole":
        self.features = self._bars.enter_context(console.bar("features"))
        self.batches = self._bars.enter_context(console.bar("training", unit="batch"))
        self.fits = self._bars.enter_context(console.bar("solving", unit="fit"))
        self.images = self._bars.enter_context(console.bar("validation"))
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.close()

    def __call__(self, event: "Event") -> None:
        """Show an event of the trainer."""
        from mnet_cli.training import events

        match event:
            case events.FeaturesComputed():
                self.features(event.done, event.total)
            case events.PhaseStarted():
                self._start_phase(event.source)
            case events.BatchTrained():
                self._show_batch(event)
            case events.FitsSolved():
                self.fits(event.done, event.total)
            case events.HeadSolved():
                console.note(_choice_line(event.choice))
            case events.ImagesScored():
                self._show_scored(event.done, event.total)
            case events.EpochEnded():
                console.note(_epoch_line(event.row, self.epochs))

    def _start_phase(self, source: "BatchSource") -> None:
        from mnet_cli.models.freeze import stage_table

        _show_stages(stage_table(self.job.model))
        if source.note:
            console.note(f"note: {source.note}")
        if source.cache:
            console.note(_cache_line(source.cache))
        console.note(_header(self.epochs))

    def _show_batch(self, event: "BatchTrained") -> None:
        now, text = time.monotonic(), None
        # The loss is read at most twice a second: that waits for the device.
        if console.has_bars() and now - self._shown >= LOSS_PERIOD:
            loss = event.progress.running_loss()
            self._shown, text = now, f"epoch {event.epoch}/{self.epochs}, loss {loss:.4f}"
        self.batches(event.done, event.total, text)
        self._scored = now

    def _show_scored(self, done: int, total: int) -> None:
        if time.monotonic() - self._scored >= 1 or self.images.is_shown:
            self.images(done, total)


def _warn(text: str) -> None:
    console.note(f"warning: {text}")


@contextmanager
def _saying_how_to_resume(run: Path) -> Iterator[None]:
    """Let a signal's message say where the run's state is, and how it goes on."""
    try:
        yield
    except StopSignal as stop:
        state = run / "last.pt"
        place = f"The state is in {state}" if state.exists() else "No step is saved yet"
        stop.next_step = f'{place}. Run "mnet train --resume {shlex.quote(str(run))}"'
        raise


def _show_complete(run: Path) -> bool:
    """If a run has ended, say so and how."""
    from mnet_cli.training.summary import read_summary

    summary = read_summary(run)
    if summary is None:
        return False
    console.note(f"already complete: {run}")
    console.show(summary, lambda: _show_summary(run, summary))
    return True


def _recipe_of(run: Path, recipe: str | None, overrides: Sequence[str]) -> "Recipe":
    """The recipe of a run; one that is given besides must not differ in what it trains."""
    from mnet_cli.recipe import load_recipe, load_resolved, plain_values

    file = run / "recipe.yaml"
    if not file.is_file():
        raise WeightsError(
            str(run),
            "not a run directory of mnet train",
            next_step='Start a run with "mnet train RECIPE"',
        )
    if not recipe and not overrides:
        return load_resolved(file)

    from mnet_cli.training.data_root import with_fraction
    from mnet_cli.training.resume import recipe_differences

    stored, given = load_resolved(file), load_recipe(recipe or file, overrides)
    if given.data.val_fraction is None:  # the run's may be the default
        given = with_fraction(given, stored.data.val_fraction)
    differences = recipe_differences(plain_values(stored), plain_values(given))
    if differences:
        raise RecipeError(
            str(file),
            f"the run has another recipe ({len(differences)} keys differ)",
            next_step="Leave the recipe and --set out, or start a new run",
            details=differences,
        )
    return given


def _data_of(run: Path, recipe: "Recipe") -> str:
    """Where the data set of a run is; a `data.root` that is given now comes first."""
    from mnet_cli.recipe import load_resolved
    from mnet_cli.training.run_directory import find_data

    root = recipe.data.root
    if root != load_resolved(run / "recipe.yaml").data.root:
        return root
    return find_data(run, root, "--set data.root=DIR")


def _machine_line(job: "Job") -> str:
    """What a run computes with."""
    import torch

    workers = f"{job.workers} workers" if job.workers else "no workers"
    computes = f"device: {job.device}, {torch.get_num_threads()} threads, {workers} for images"
    return f"{job.group.size} processes, each with {computes}" if job.group.size > 1 else computes


def _show_weights(weights: "LoadReport | None") -> None:
    if weights is None:
        console.note("weights: none, random initialization")
        return
    console.note(
        f"weights: {weights.origin}: {len(weights.loaded)} tensors loaded, "
        f"{len(weights.replaced)} replaced by a new head, {len(weights.missing)} missing, "
        f"{len(weights.unexpected)} unexpected"
    )


def _show_stages(rows: "list[StageRow]") -> None:
    console.table(
        ("stage", ">trainable", ">frozen"), list(_grouped(rows)), title="parameters", news=True
    )


def _grouped(rows: "list[StageRow]") -> Iterator[tuple[str, str, str]]:
    """Put neighbouring stages of the features that learn, or that do not, into one row."""
    for _, group in groupby(rows, lambda row: (row.is_head, row.trainable > 0)):
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


def _training_line(state: "TrainState", summary: Mapping[str, Any]) -> str:
    done = _choice_line(state.choice) if state.choice else f"{summary['epochs']} epochs"
    return f"{done} in {summary['seconds']:.0f} s"


def _choice_line(choice: "Choice") -> str:
    if choice.loss is None or choice.top1 is None:
        return f"exact solution, penalty {choice.strength:.2g}; too few images to choose it"
    end = "" if choice.converged else ", which did not converge"
    return (
        f"exact solution, penalty {choice.strength:.2g}, the best of {choice.tried} by "
        f"{choice.folds}-fold cross-validation (loss {choice.loss:.4f}, "
        f"top-1 {console.percent(choice.top1)}); {choice.iterations} iterations{end}"
    )


def _header(epochs: int) -> str:
    """The titles of the columns of `_epoch_line`."""
    from mnet_cli.training.events import COLUMNS

    first, *others = COLUMNS
    titles = (f"{column.title:>{_width(column)}}" for column in others)
    return "  ".join((f"{first.title:>{2 * len(str(epochs)) + 1}}", *titles))


def _epoch_line(row: "Row", epochs: int) -> str:
    from mnet_cli.training.events import COLUMNS

    digits = len(str(epochs))
    number = f"{row['epoch']:>{digits}}/{epochs}".rjust(len(COLUMNS[0].title))
    values = (f"{c.form.format(row[c.name]):>{_width(c)}}" for c in COLUMNS[1:])
    return "  ".join((number, *values))


def _width(column: "Column") -> int:
    return max(7, len(column.title))


def _write_report(job: "Job", state: "TrainState", summary: Mapping[str, Any]) -> None:
    from mnet_cli.recipe import dump_recipe
    from mnet_cli.report.html import WrongImage, write_report

    best, model = state.best, job.recipe.model
    assert best is not None, "a recipe has at least one epoch"
    write_report(
        job.run / "report.html",
        title=f"{job.run.name}: {model.arch}, width_mult {model.width_mult:g}",
        facts=[
            ("data", f"{job.recipe.data.root} ({console.counts(summary['images'])})"),
            ("weights", job.weights.origin if job.weights else "none"),
            ("preprocessing", str(job.preprocess)),
            ("training", _training_line(state, summary)),
        ],
        epochs=state.rows,
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
        best_epoch=state.best_epoch,
        recipe=dump_recipe(job.recipe),
        environment=[("device", summary["device"]), *summary["versions"].items()],
    )


def _show_summary(run: Path, summary: Mapping[str, Any]) -> None:
    best, frozen, total = summary["best"], summary["frozen"], len(summary["class_names"])
    scored = total - len(summary.get("classes_without_images", ()))  # an older run has no list
    low, high = (console.percent(bound) for bound in best["top1_interval"])
    epoch = f"epoch {best['epoch']} of {summary['epochs']}"
    console.line(f"best: {run / 'best.pt'} ({'exact' if summary.get('solver') else epoch})")
    console.line(
        f"top-1 {console.percent(best['top1'])} (95% interval {low} to {high} on "
        f"{summary['images']['val']} images), macro-F1 {console.percent(best['macro_f1'])}"
        f"{console.of_classes(scored, total)}, loss {best['loss']:.4f}"
    )
    if frozen["tensors"]:
        state = f"{len(frozen['moved'])} CHANGED" if frozen["moved"] else "none changed"
        console.line(f"frozen: {frozen['tensors']} tensors and buffers checked, {state}")
    console.line(f"report: {run / 'report.html'}")
    console.line(f"next: mnet eval --checkpoint {run}")
