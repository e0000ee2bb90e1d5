"""The checkpoint file: everything that evaluation, prediction and export need.

Format 2 is a torch file of plain tensors, numbers, strings, lists and dicts with the keys
`format`, `mnet_version`, `arch`, `model_args`, `state_dict`, `class_names`, `preprocess`,
`recipe` and `metrics`. `last.pt` adds what a run resumes from: `optimizer`, `scheduler`,
`scaler`, `ema`, `epoch`, `step`, `seed`, `account` (the report on the weights it began with),
`running` (the epoch under way) and `history` (the epochs before). The `state_dict` of V2 and V3
has torchvision's names. Format 1 lacks the version of the decode rules in `preprocess`, and its
`last.pt` keeps the best epoch's logits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mnet_cli import __version__
from mnet_cli.data.class_indices import check_class_indices
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import RecipeError, UsageError, WeightsError
from mnet_cli.formats.registry import format_of
from mnet_cli.models.registry import build_model
from mnet_cli.system.tensorfile import read_tensors, write_tensors

FORMAT = 2
TRAINING_KEYS = (
    "optimizer", "scheduler", "scaler", "ema", "epoch", "step", "seed", "account", "running",
    "history",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A trained classifier and where it came from.

    Attributes:
        arch: Name in the registry of architectures.
        model_args: Keyword arguments of `build_model` besides the number of classes.
        state_dict: Parameters and buffers, on the CPU, float32.
        class_names: In the order of the logits.
        preprocess: How an image becomes the model's input.
        recipe: The resolved recipe, as plain values.
        metrics: Of the epoch that the state belongs to; those of the averaged weights where
            training keeps an average.
        training: `TRAINING_KEYS`, what a resume needs besides; empty in `best.pt`.
        source: The file it was read from; None for one that was not.
    """

    arch: str
    model_args: Mapping[str, Any]
    state_dict: Mapping[str, Tensor]
    class_names: tuple[str, ...]
    preprocess: Preprocess
    recipe: Mapping[str, Any]
    metrics: Mapping[str, float]
    training: Mapping[str, Any] = field(default_factory=dict)
    source: Path | None = None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`, whole or not at all.

    Raises:
        MachineError: The file cannot be written.
    """
    content = {
        "format": FORMAT,
        "mnet_version": __version__,
        "arch": checkpoint.arch,
        "model_args": dict(checkpoint.model_args),
        "state_dict": {name: tensor.cpu() for name, tensor in checkpoint.state_dict.items()},
        "class_names": list(checkpoint.class_names),
        "preprocess": checkpoint.preprocess.to_dict(),
        "recipe": dict(checkpoint.recipe),
        "metrics": dict(checkpoint.metrics),
    }
    write_tensors(path, content | dict(checkpoint.training))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint at `path`, or `best.pt` of the run directory at `path`.

    Raises:
        WeightsError: The file is missing, damaged, hostile, of a newer format, or no
            checkpoint of mnet; or `class_indices.json` beside it has other class names.
    """
    if format_of(path):
        raise WeightsError(
            str(path),
            "an exported file, not a checkpoint",
            next_step="Name the run directory or best.pt that it was exported from",
        )
    if not path.exists():
        raise WeightsError(
            str(path),
            "no such checkpoint, run directory or exported file",
            next_step="Check the path",
        )
    if path.is_dir():
        if not (path / "best.pt").exists():
            raise WeightsError(
                str(path),
                "no best.pt here: this is not a run, or its first epoch is not finished",
                next_step=f'Run "mnet train --resume {path}", or name another --checkpoint',
            )
        path = path / "best.pt"
    content = read_tensors(path)
    version = content.get("format")
    if not isinstance(version, int):
        raise WeightsError(
            str(path),
            "weights without a format, class names and preprocessing",
            next_step="Name a checkpoint of mnet train, or use the file as model.weights",
        )
    if version > FORMAT:
        raise WeightsError(
            str(path),
            f"checkpoint format {version}, but this mnet reads up to {FORMAT}",
            next_step="Update mnet",
        )
    try:
        checkpoint = Checkpoint(
            arch=content["arch"],
            model_args=content["model_args"],
            state_dict=content["state_dict"],
            class_names=tuple(content["class_names"]),
            preprocess=Preprocess.from_dict(content["preprocess"], str(path)),
            recipe=content["recipe"],
            metrics=content["metrics"],
            training={key: content[key] for key in TRAINING_KEYS if key in content},
            source=path,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            str(path),
            f"an incomplete checkpoint ({error})",
            next_step="Copy it again from where it was trained, or train again",
        ) from error
    check_class_indices(path, checkpoint.class_names)
    return checkpoint


def build_from(checkpoint: Checkpoint) -> nn.Module:
    """Build the checkpoint's model with its weights, in evaluation mode.

    Raises:
        WeightsError: The state does not fit the architecture it names, or is not finite.
    """
    where = str(checkpoint.source or f"checkpoint of {checkpoint.arch}")
    try:
        model = build_model(checkpoint.arch, len(checkpoint.class_names), **checkpoint.model_args)
        model.load_state_dict(dict(checkpoint.state_dict), strict=True)
    except UsageError as error:
        raise WeightsError(
            where,
            f'its architecture "{checkpoint.arch}" is not installed',
            next_step="Install the package that adds it",
        ) from error
    except (RuntimeError, TypeError, ValueError, RecipeError) as error:
        raise WeightsError(
            where,
            f"its tensors do not fit {checkpoint.arch}, the architecture that it names",
            next_step="Copy it again from where it was trained, or train again",
        ) from error
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(
            where,
            f"{broken[0]} holds NaN or infinity",
            next_step="Train again with a lower train.lr",
        )
    return model.eval()
