"""The story of an export: convert, check, run, compare, and only then hand over."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli.atomic import remove_leftovers, scratch_folder, settle
from mnet_cli.checkpoint import Checkpoint, build_from
from mnet_cli.contract import Contract
from mnet_cli.data.dataset import DataSet
from mnet_cli.data.inference import outputs_of
from mnet_cli.errors import UsageError
from mnet_cli.evaluate import stacked
from mnet_cli.export.formats import FORMATS, PRECISIONS, Writer, find_writer
from mnet_cli.export.gate import Proof, compare, eager, fault
from mnet_cli.export.network import Baked, Network
from mnet_cli.hashing import file_sha256, folder_sha256
from mnet_cli.machine import BATCH
from mnet_cli.run_directory import write_json
from mnet_cli.runtimes import Classify, as_input, classified_preprocess, open_classifier

Progress = Callable[[str], None]
NOT_RUN = "converted, not run here"


@dataclass(frozen=True)
class Plan:
    """What is wanted.

    Attributes:
        formats: Names in `FORMATS`.
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
        setting: The setting that passed the gate, or the last that did not.
        path: The file; None if it was refused.
        size: Its bytes, companions included.
        proof: What was measured; None if there were no numbers to compare.
        refused: Why there is no file; empty if there is one.
        tried: Settings that were refused before, with the reason.
        note: What a file lacks; empty if it is proven.
    """

    format: str
    precision: str
    setting: str
    path: Path | None
    size: int
    proof: Proof | None
    refused: str = ""
    tried: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Photographs:
    """What the answers are compared on: the checkpoint's own logits (N, C) and the labels (N,)."""

    files: Sequence[Path]
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
        images: Labelled photographs: `val` proves, `train` calibrates; where they are not
            divided, `all` does both.
        plan: What is wanted.
        on_step: Called with a few words at each step.

    Yields:
        The outcome of each format in turn.

    Raises:
        UsageError, MachineError: As `check_plan` does, or the disk refused.
        DataError: A photograph has become unreadable.
    """
    writers = check_plan(checkpoint, plan)
    remove_leftovers(plan.out)
    model = build_from(checkpoint)
    contract = Contract(
        arch=checkpoint.arch,
        model_args=checkpoint.model_args,
        class_names=checkpoint.class_names,
        preprocess=checkpoint.preprocess,
        recipe=checkpoint.recipe,
        source={"file": source.name, "sha256": file_sha256(source)},
        metrics=checkpoint.metrics,
        precision=plan.precision,
        baked=plan.bake,
        batch=plan.batch,
    )
    network = Network(
        Baked(model, checkpoint.preprocess).eval() if plan.bake else model,
        contract,
        cache(partial(calibration_inputs, images, contract, plan.calibration)),
    )
    on_step("the checkpoint's own answers")
    split = "val" if "val" in images.splits else "all"
    files = images.files(split)
    expected = _answers(eager(model), checkpoint.preprocess, files)
    photographs = Photographs(files, images.splits[split].labels, expected)
    for name, writer in writers.items():
        target = plan.out / _file_name(checkpoint.arch, name, plan)
        own = _fixed(network) if FORMATS[name].static else network
        yield _export_one(name, writer, own, target, photographs, plan, on_step)


def check_plan(checkpoint: Checkpoint, plan: Plan) -> dict[str, Writer]:
    """Find the writers of the plan's formats; what can be refused early is refused here.

    Raises:
        UsageError: A format is unknown, cannot have that precision, or its file is there.
        MachineError: An extra is not installed.
    """
    writers = {name: find_writer(name, plan.precision) for name in plan.formats}
    for name in writers:
        target = plan.out / _file_name(checkpoint.arch, name, plan)
        if target.exists() and not plan.force:
            raise UsageError(str(target), "exists", "a new file was expected", "Or add --force")
    return writers


def _fixed(network: Network) -> Network:
    """The network for a format whose files take the same number of images at every call."""
    return replace(network, contract=replace(network.contract, batch=network.contract.batch or 1))


def _export_one(
    name: str,
    writer: Writer,
    network: Network,
    target: Path,
    photographs: Photographs,
    plan: Plan,
    on_step: Progress,
) -> Exported:
    """Go down the ladder of settings until one passes the gate, if that can be run here."""
    runs_here = FORMATS[name].runs_here
    tried: list[tuple[str, str]] = []
    proof = None
    for setting in writer.PRECISIONS[plan.precision]:
        on_step(f"{name} {plan.precision} {setting.title}".rstrip())
        program = setting.convert(network)
        contract = replace(network.contract, setting=setting.title)
        with scratch_folder(plan.out) as scratch:
            file = scratch / target.name
            writer.save(program, file, contract)
            writer.check(file)
            refused, proof = "", None
            if runs_here:
                refused, proof = _judge(file, contract, photographs, plan.max_drop)
            if proof and not refused:
                contract = contract.proven(proof.to_dict())
                writer.save(program, file, contract)
            if not refused:
                return Exported(
                    format=name,
                    precision=plan.precision,
                    setting=setting.title,
                    path=target,
                    size=_hand_over(file, target, contract),
                    proof=proof,
                    tried=(*tried,),
                    note="" if runs_here else NOT_RUN,
                )
        tried.append((setting.title, refused))
    title, refused = tried.pop()
    return Exported(name, plan.precision, title, None, 0, proof, refused, (*tried,))


def _judge(
    file: Path, contract: Contract, photographs: Photographs, max_drop: float
) -> tuple[str, Proof | None]:
    """Load a file in its own runtime and compare its answers; the fault, and the numbers."""
    classifier = open_classifier(file, "cpu")
    found = _answers(classifier.classify, classifier.preprocess, photographs.files)
    if found.shape != photographs.expected.shape:
        return f"answers of shape {found.shape}", None
    if not np.isfinite(found).all():
        return "answers that are not finite", None
    proof = compare(found, photographs.expected, photographs.labels, probabilities=contract.baked)
    return fault(proof, contract.precision, max_drop), proof


def _hand_over(file: Path, target: Path, contract: Contract) -> int:
    """Move a proven file, its companions first, to its final name; its size in bytes."""
    companions = [path for path in file.parent.iterdir() if path != file]
    size = sum(map(_size, (file, *companions)))
    document = {**contract.to_dict(), "file": {"name": target.name, "bytes": size}}
    for path in (*companions, file):
        settle(path, target.with_name(path.name))
    digest = folder_sha256 if target.is_dir() else file_sha256
    document["file"]["sha256"] = digest(target)
    write_json(target.with_name(f"{target.name}.json"), document)
    return size


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def calibration_inputs(images: DataSet, contract: Contract, count: int) -> NDArray[Any]:
    """Training photographs to calibrate with, balanced by class, as the file takes them (n, …).

    The same photographs are taken for the same recipe's seed.

    Raises:
        DataError: A photograph has become unreadable.
    """
    split = "train" if "train" in images.splits else "all"
    chosen = balanced(images.splits[split].labels, count, _seed(contract))
    files = images.files(split)
    inputs = _answers(
        lambda pixels: pixels, classified_preprocess(contract), [files[index] for index in chosen]
    )
    return as_input(inputs, contract)


def balanced(labels: NDArray[np.int64], count: int, seed: int) -> list[int]:
    """Choose `count` indices of labels (N,), or all, as evenly over the classes as they allow."""
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), np.int64)  # how many of its class come before it
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    return [int(index) for index in np.lexsort((labels, turn))[:count]]


def _answers(classify: Classify, preprocess: Any, files: Sequence[Path]) -> NDArray[np.float32]:
    return stacked(outputs_of(files, preprocess, classify, BATCH), len(files))


def _file_name(arch: str, name: str, plan: Plan) -> str:
    baked = ".baked" if plan.bake else ""
    return f"{arch}{PRECISIONS[plan.precision]}{baked}{FORMATS[name].suffix}"


def _seed(contract: Contract) -> int:
    return int(contract.recipe["train"]["seed"])
