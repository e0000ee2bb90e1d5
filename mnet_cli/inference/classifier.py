"""A trained classifier, from a checkpoint or an exported file: images in, logits out."""

import json
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli.data.class_indices import check_class_indices
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import MnetError, WeightsError
from mnet_cli.formats.base import Run, filled, not_loadable
from mnet_cli.formats.contract import Contract, document_of
from mnet_cli.formats.registry import format_of
from mnet_cli.system.hashing import content_sha256

Classify = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images (N, 3, S, S), float32, normalised, to logits (N, C), float32."""

SMALLEST = np.finfo(np.float32).tiny  # a probability of 0 has no logarithm


@dataclass(frozen=True)
class Classifier:
    """A trained classifier that is ready to run.

    Attributes:
        classify: Images to logits.
        class_names: In the order of the logits.
        preprocess: How an image becomes the input of `classify`.
        recipe: The resolved recipe it was trained with, as plain values; empty for an exported
            file, which does not carry it.
        source: The file it was read from.
        batch: Images that it computes at a time, whatever it is given; 0 for any number.
        parallel: Whether calls from several threads use several cores; a GPU has one queue.
        note: Why it does not run in the usual way; empty if it does.
    """

    classify: Classify
    class_names: tuple[str, ...]
    preprocess: Preprocess
    recipe: dict[str, Any]
    source: Path
    batch: int = 0
    parallel: bool = True
    note: str = ""


def open_classifier(path: Path, device: str) -> Classifier:
    """Open a checkpoint, a run directory or an exported file on the device that `device` names.

    Raises:
        WeightsError: There is no usable checkpoint or exported file at `path`, an exported file
            has changed since, or `class_indices.json` beside it has other class names.
        MachineError: The package that runs such files is not installed.
        UsageError: The device is not available.
    """
    kind = format_of(path)
    if kind is None:
        return _open_checkpoint(path, device)
    refuse_changed(path)
    try:
        run, contract = kind.load(path, device)
    except MnetError:
        raise
    except Exception as error:  # a format of another package may raise anything
        raise not_loadable(path, f"a file of {type(kind).__name__} ({error})") from error
    check_class_indices(path, contract.class_names)
    return Classifier(
        classify=as_classify(run, contract),
        class_names=contract.class_names,
        preprocess=classified_preprocess(contract),
        recipe={},
        source=path,
        batch=contract.batch,
    )


def refuse_changed(path: Path) -> None:
    """Compare an exported file and its companions with the hashes in the document beside it.

    Raises:
        WeightsError: One differs or cannot be read, or the document is damaged.
    """
    for part, expected in _recorded_hashes(path).items():
        try:
            found = content_sha256(part)
        except OSError as error:
            raise WeightsError(
                str(part),
                f"cannot be read ({error.strerror or error})",
                next_step="Export it again",
            ) from error
        if found != expected:
            raise WeightsError(
                str(part),
                f"changed since it was exported: its sha256 is {found[:12]}…, "
                f"but {expected[:12]}… in {document_of(path).name}",
                next_step="Copy both files again from where they were exported, or export again",
            )


def _recorded_hashes(path: Path) -> dict[Path, str]:
    """The SHA-256 of an exported file and of its companions, from the document beside it.

    Raises:
        WeightsError: The document is damaged; where there is none, nothing is known.
    """
    document = document_of(path)
    try:
        file = json.loads(document.read_text(encoding="utf-8"))["file"]
        recorded = {path: file["sha256"]}
        for name, digest in file.get("companions", {}).items():
            # By the suffix, as runtimes find it: the files may have been renamed together.
            recorded[path.with_suffix(Path(name).suffix)] = digest
        if not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in recorded.values()):
            raise ValueError("no SHA-256")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(
            str(document),
            f"no hashes of {path.name} in it ({type(error).__name__})",
            next_step="Copy both files again from where they were exported, or export again",
        ) from error
    return recorded


def as_classify(run: Run, contract: Contract) -> Classify:
    """Feed an exported file as its contract says: pixels if baked, a fixed batch filled up.

    The function raises WeightsError if the file does not give what its contract says.
    """

    def classify(images: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = as_input(images, contract)
        size = contract.batch or len(inputs)
        outputs = [run(filled(inputs[at : at + size], size)) for at in range(0, len(inputs), size)]
        found = np.concatenate(outputs)[: len(images)]
        if found.shape != (len(images), len(contract.class_names)):
            raise WeightsError(
                contract.arch,
                f"gives outputs of shape {found.shape} for {len(contract.class_names)} classes",
                next_step="Export it again",
            )
        return np.log(np.maximum(found, SMALLEST)) if contract.baked else found

    return classify


def as_input(images: NDArray[np.float32], contract: Contract) -> NDArray[Any]:
    """Turn images (N, 3, S, S) of `classified_preprocess` into what the file takes."""
    if not contract.baked:
        return images
    return np.ascontiguousarray(np.rint(images).astype(np.uint8).transpose(0, 2, 3, 1))


def classified_preprocess(contract: Contract) -> Preprocess:
    """The preprocessing before `as_classify`: levels 0 to 255 for a file that normalises itself."""
    if not contract.baked:
        return contract.preprocess
    return replace(contract.preprocess, mean=(0.0,) * 3, std=(1 / 255,) * 3)


def checkpoint_file(path: Path) -> Path:
    """The file of a checkpoint, which may be named by its run directory."""
    return path / "best.pt" if path.is_dir() else path


def changed_on_machine(path: Path) -> WeightsError:
    """The error of a machine of a cluster that has another file than the one that asked it."""
    return WeightsError(
        str(path),
        f"differs on the machine {platform.node()}, or has changed meanwhile",
        next_step="Use a file that all machines share, and do not change it meanwhile",
    )


def _open_checkpoint(path: Path, device: str) -> Classifier:
    from mnet_cli.formats.checkpoint import build_from, load_checkpoint
    from mnet_cli.models.device import choose_device
    from mnet_cli.models.forward import compile_forward

    checkpoint, chosen = load_checkpoint(path), choose_device(device)
    size = checkpoint.preprocess.image_size
    forward = compile_forward(build_from(checkpoint), chosen, image_size=size)
    return Classifier(
        classify=forward,
        class_names=checkpoint.class_names,
        preprocess=checkpoint.preprocess,
        recipe=dict(checkpoint.recipe),
        source=checkpoint_file(path),
        parallel=chosen.type == "cpu",
        note=forward.note,
    )
