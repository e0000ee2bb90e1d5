"""An export step by step: convert, check, run, compare, and only then publish."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mnet_cli.data.dataset import DataSet
from mnet_cli.data.image_files import ImageFile
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import DataError, MachineError, RefusedError, UsageError
from mnet_cli.export.parity import ParityReport, check_parity, eager, fused, is_same, refusal
from mnet_cli.formats.base import Format
from mnet_cli.formats.checkpoint import Checkpoint, build_from
from mnet_cli.formats.contract import Contract, document_of
from mnet_cli.formats.network import Baked, Network
from mnet_cli.formats.registry import PRECISIONS, format_for_export
from mnet_cli.inference.classifier import Classify, as_classify, as_input, classified_preprocess
from mnet_cli.inference.evaluate import stacked
from mnet_cli.inference.stream import outputs_of
from mnet_cli.system.atomic import publish, remove_leftovers, scratch_folder, write_json
from mnet_cli.system.hashing import content_sha256, file_sha256
from mnet_cli.system.machine import BATCH

Progress = Callable[[str], None]
NOT_RUN = "converted, not run here"


@dataclass(frozen=True)
class Plan:
    """What to export, and how.

    Attributes:
        formats: Names of formats.
        precision: `float32`, `float16` or `int8`.
        bake: Pixels in, probabilities out.
        batch: Fixes the number of images a call; 0 leaves it free where the format can, and
            means one where it cannot.
        calibration: Training photographs that integers are calibrated on.
        max_drop: Share of top-1 that 8 bits may cost, [0, 1].
        out: The folder for the files.
        force: Replace files that are there.
    """

    formats: Sequence[str]
    precision: str
    bake: bool
    batch: int
    calibration: int
    max_drop: float
    out: Path
    force: bool


@dataclass(frozen=True)
class Exported:
    """What became of one format.

    Attributes:
        format: Its name.
        precision: As asked for.
        setting: The setting that passed the parity check, or the last that did not.
        path: The file; None if it was refused.
        size: Its bytes, companions included.
        report: What was measured; None if there were no numbers to compare.
        refused: Why there is no file; empty if there is one.
        tried: Settings that were refused before, with the reason.
        note: Why nothing was measured; empty if it was.
    """

    format: str
    precision: str
    setting: str
    path: Path | None
    size: int
    report: ParityReport | None
    refused: str = ""
    tried: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Photographs:
    """What outputs are compared on: the checkpoint's own logits (N, C) and the labels (N,)."""

    files: Sequence[ImageFile]
    labels: NDArray[np.int64]
    expected: NDArray[np.float32]


def export(
    checkpoint: Checkpoint,
    source: Path,
    images: DataSet,
    plan: Plan,
    on_step: Progress = lambda text: None,
) -> Iterator[Exported]:
    """Export a checkpoint to each of the plan's formats.

    Args:
        checkpoint: The trained classifier.
        source: Its file.
        images: Labelled photographs: outputs are compared on `val`, integers calibrated on
            `train`; where they are not divided, `all` serves for both.
        plan: What to export, and how.
        on_step: Called with a few words at each step.

    Yields:
        The outcome of each format in turn.

    Raises:
        UsageError, MachineError: As `check_plan` does, or the disk refused.
        DataError: A photograph has become unreadable.
        RefusedError: The checkpoint's own outputs are not finite.
    """
    formats = check_plan(checkpoint, plan)
    remove_leftovers(plan.out)
    model = build_from(checkpoint)
    on_step("outputs of the checkpoint")
    split = "val" if "val" in images.splits else "all"
    files = images.files(split)
    expected = _expected(model, checkpoint.preprocess, files)
    if not np.isfinite(expected).all():
        raise RefusedError(
            str(source),
            "its outputs are not finite",
            next_step="Train again with a lower train.lr",
        )
    photographs = Photographs(files, images.splits[split].labels, expected)
    seed = int(checkpoint.recipe["train"]["seed"])
    chosen, calibration = calibration_photographs(images, plan, seed)
    contract = Contract(
        arch=checkpoint.arch,
        model_args=checkpoint.model_args,
        class_names=checkpoint.class_names,
        preprocess=checkpoint.preprocess,
        source={"file": source.name, "sha256": file_sha256(source)},
        metrics=checkpoint.metrics,
        precision=plan.precision,
        baked=plan.bake,
        batch=plan.batch,
        calibration=calibration,
    )

    @cache
    def calibration_inputs() -> NDArray[Any]:
        preprocess = classified_preprocess(contract)
        return as_input(_outputs(lambda pixels: pixels, preprocess, chosen), contract)

    network = Network(
        Baked(model, checkpoint.preprocess).eval() if plan.bake else model,
        contract,
        calibration_inputs,
    )
    for name, kind in formats.items():
        target = plan.out / _file_name(checkpoint.arch, kind, plan)
        own = network.with_batch(plan.batch or 1) if kind.static else network
        yield _export_one(name, kind, own, target, photographs, plan, on_step)


def _expected(
    model: nn.Module, preprocess: Preprocess, files: Sequence[ImageFile]
) -> NDArray[np.float32]:
    """The checkpoint's own logits (N, C), by PyTorch.

    The fast form is used if it agrees with the plain one on the first photographs.
    """
    few = [files[index] for index in range(min(BATCH, len(files)))]
    plain = eager(model)
    try:
        fast = fused(model, preprocess.image_size)
        trusted = is_same(_outputs(fast, preprocess, few), _outputs(plain, preprocess, few))
    except (DataError, MachineError):
        raise
    except Exception:  # the compiler's errors on a network that it cannot follow
        trusted = False
    return _outputs(fast if trusted else plain, preprocess, files)


def check_plan(checkpoint: Checkpoint, plan: Plan) -> dict[str, Format]:
    """Find the plan's formats; what can be refused early is refused here.

    Raises:
        UsageError: A format is unknown, cannot have that precision, or its file exists.
        MachineError: An extra is not installed, or the folder cannot be written.
    """
    formats = {name: format_for_export(name, plan.precision) for name in plan.formats}
    for kind in formats.values():
        target = plan.out / _file_name(checkpoint.arch, kind, plan)
        companion = target.with_suffix(kind.companion or target.suffix)
        for path in (target, companion, document_of(target)):
            if path.exists() and not plan.force:
                raise UsageError(str(path), "exists already", next_step="Add --force to replace it")
    with scratch_folder(plan.out):
        pass  # it can be written
    return formats


def _export_one(
    name: str,
    kind: Format,
    network: Network,
    target: Path,
    photographs: Photographs,
    plan: Plan,
    on_step: Progress,
) -> Exported:
    """Try the format's settings in order until a file passes the parity check."""
    tried: list[tuple[str, str]] = []
    report = None
    for setting in kind.precisions[plan.precision]:
        on_step(f"{name} {plan.precision} {setting.title}".rstrip())
        contract = replace(network.contract, setting=setting.title)
        with scratch_folder(plan.out) as scratch:
            file = scratch / target.name
            try:
                program = setting.convert(network)
                kind.save(program, file, contract)
                kind.check(file)
                refused, report = "", None
                if kind.runs_here:
                    found = _outputs_of_file(kind, file, photographs.files)
                    refused, report = _judge(found, contract, photographs, plan.max_drop)
                if report and not refused:
                    contract = replace(contract, proof=report.to_dict())
                    kind.save(program, file, contract)
                    kind.check(file)
                    refused = _differs(kind, file, found, photographs.files)
            except (MachineError, DataError, UsageError, OSError):
                raise
            except Exception as error:  # converters and runtimes raise what they like
                text = str(error).strip().splitlines() or [""]
                refused = f"{type(error).__name__}: {text[0]}"
            if not refused:
                return Exported(
                    format=name,
                    precision=plan.precision,
                    setting=setting.title,
                    path=target,
                    size=_publish(file, target, contract),
                    report=report,
                    tried=(*tried,),
                    note="" if kind.runs_here else NOT_RUN,
                )
        tried.append((setting.title, refused))
    title, refused = tried.pop()
    return Exported(name, plan.precision, title, None, 0, report, refused, (*tried,))


def _judge(
    found: NDArray[np.float32], contract: Contract, photographs: Photographs, max_drop: float
) -> tuple[str, ParityReport | None]:
    """Compare a file's outputs (N, C) with the checkpoint's: why it is refused, and the numbers."""
    if not np.isfinite(found).all():
        return "outputs that are not finite", None
    report = check_parity(
        found, photographs.expected, photographs.labels, probabilities=contract.baked
    )
    return refusal(report, contract.precision, max_drop), report


def _differs(
    kind: Format, file: Path, found: NDArray[np.float32], files: Sequence[ImageFile]
) -> str:
    """Say whether a file that now carries its report still gives the outputs it was judged by."""
    few = [files[index] for index in range(min(BATCH, len(files)))]
    same = np.array_equal(_outputs_of_file(kind, file, few), found[: len(few)])
    return "" if same else "other outputs once the report was written into it"


def _outputs_of_file(
    kind: Format, file: Path, photographs: Sequence[ImageFile]
) -> NDArray[np.float32]:
    """Load a file in its own runtime and run it."""
    run, contract = kind.load(file, "cpu")
    return _outputs(as_classify(run, contract), classified_preprocess(contract), photographs)


def _publish(file: Path, target: Path, contract: Contract) -> int:
    """Move a checked file to its final name, and its companions before it; its size in bytes.

    An older file is deleted first, so that parts of two never stand together.
    """
    parts = [*file.parent.iterdir()]
    size = sum(map(_size, parts))
    about = {
        "name": target.name,
        "bytes": size,
        "sha256": content_sha256(file),
        "companions": {part.name: content_sha256(part) for part in sorted(parts) if part != file},
    }
    write_json(document_of(file), {**contract.to_dict(), "file": about})
    if target.is_file():
        target.unlink()
    for path in sorted(file.parent.iterdir(), key=lambda path: path == file):
        publish(path, target.with_name(path.name))
    return size


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def calibration_photographs(
    images: DataSet, plan: Plan, seed: int
) -> tuple[list[ImageFile], dict[str, Any]]:
    """Choose training photographs to calibrate with, as many of each class.

    Returns:
        The files, and what the contract says of them; nothing where nothing is calibrated.
    """
    if plan.precision != "int8":
        return [], {}
    split = "train" if "train" in images.splits else "all"
    samples, files = images.splits[split], images.files(split)
    chosen = balanced(samples.labels, plan.calibration, seed)
    digest = hashlib.sha256(samples.sha256[chosen].tobytes()).hexdigest()
    about = {"images": len(chosen), "split": split, "seed": seed, "sha256": digest}
    return [files[index] for index in chosen], about


def balanced(labels: NDArray[np.int64], count: int, seed: int) -> list[int]:
    """Choose `count` indices of labels (N,), or all, as evenly over the classes as they allow."""
    order = np.random.default_rng(seed).permutation(len(labels))
    members = order[np.argsort(labels[order], kind="stable")]  # class by class, each in that order
    _, first, sizes = np.unique(labels[members], return_index=True, return_counts=True)
    turn = np.empty(len(labels), np.int64)  # how many of its class come before it
    turn[members] = np.arange(len(labels)) - np.repeat(first, sizes)
    chosen: list[int] = np.lexsort((labels, turn))[:count].tolist()
    return chosen


def _outputs(
    classify: Classify, preprocess: Preprocess, files: Sequence[ImageFile]
) -> NDArray[np.float32]:
    return stacked(outputs_of(files, preprocess, classify, BATCH), len(files))


def _file_name(arch: str, kind: Format, plan: Plan) -> str:
    baked = ".baked" if plan.bake else ""
    return f"{arch}{PRECISIONS[plan.precision]}{baked}{kind.suffix}"
