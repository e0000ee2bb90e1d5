"""Find weights by what a recipe calls them, and load what fits a model, with a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnet_cli.data.class_indices import check_class_indices
from mnet_cli.errors import MachineError, RecipeError, WeightsError
from mnet_cli.models import timm_names
from mnet_cli.models.architecture import IMAGENET_MEAN, IMAGENET_STD, Triple
from mnet_cli.models.freeze import as_staged, head_layer
from mnet_cli.models.registry import PUBLISHED_NAMES, find_architecture, published
from mnet_cli.system.download import download
from mnet_cli.system.hashing import file_sha256
from mnet_cli.system.plugins import ARCHITECTURES
from mnet_cli.system.tensorfile import read_tensors

NONE, STARTER = "none", "starter"
SOURCE_NAMES = (NONE, STARTER, *PUBLISHED_NAMES)

MIN_FIT = 0.9  # share of the backbone's tensors that a file must have
COUNTERS = "num_batches_tracked"  # only read by batch norms without a momentum
OTHER_MARKS = {"layer1.0.conv1.weight": "a ResNet"}  # as `Architecture.mark`, of other families


@dataclass(frozen=True)
class FoundWeights:
    """A state dict with our names, where it is from, and how its images were prepared."""

    state_dict: dict[str, Tensor]  # float32, finite, on the CPU
    arch: str  # the architecture and width it is meant for
    width_mult: float
    origin: str
    sha256: str  # of the file
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    interpolation: str = "bilinear"
    crop_ratio: float = 224 / 256  # side of the central crop over the resized shorter side
    norm_eps: float | None = None  # None: the architecture's default
    class_names: tuple[str, ...] | None = None  # of the classifier, where known


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor's name; batch counters are left out."""

    origin: str
    sha256: str
    loaded: tuple[str, ...]
    replaced: tuple[str, ...]  # of the classifier: kept fresh, the file's are for other classes
    missing: tuple[str, ...]  # of the model: kept fresh, the file has none of that shape
    unexpected: tuple[str, ...]  # of the file: the model has no such name


def find_weights(
    source: str,
    arch: str,
    width_mult: float = 1.0,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> FoundWeights | None:
    """Get the weights that a recipe's `model.weights` names, downloading them if need be.

    Args:
        source: "none"; "starter", the small file in this package; "imagenet" or
            "imagenet-v1", the newest or the first published release; or a path: a state
            dict with our names or timm's, a checkpoint of mnet, or a run directory, whose
            `best.pt` is taken.
        arch: The architecture that they are for.
        width_mult: Its α.
        on_progress: Called with bytes done and bytes in all while downloading.

    Returns:
        The weights, or None for "none".

    Raises:
        RecipeError: There are no starter or published weights for this architecture and α.
        WeightsError: The file is missing, unusable, or a checkpoint of something else; or
            `class_indices.json` beside it has other class names.
        MachineError: The download failed.
    """
    if source == NONE:
        return None
    path, origin = _locate(source, arch, width_mult, on_progress)
    content = read_tensors(path)
    digest = file_sha256(path)
    tensors = _checked_tensors(path, content)
    architecture = find_architecture(arch)
    from_timm = architecture.from_timm if timm_names.MARK in tensors else None
    if "format" in content:
        facts = _declared_facts(path, content, arch, width_mult)
    else:
        facts = _known_facts(digest, arch, width_mult, from_timm is not None)
    state_dict = from_timm(tensors) if from_timm else tensors
    return FoundWeights(state_dict, arch, width_mult, origin, digest, **facts)


def load_matching(
    model: nn.Module, found: FoundWeights, class_names: Sequence[str] | None = None
) -> LoadReport:
    """Load into `model`, in place, every tensor whose name and shape it has.

    Args:
        model: A network of `build_model`.
        found: The weights.
        class_names: The model's classes. A last layer stays out, even one of the same shape,
            unless its file names these classes in this order. None takes it by its shape alone.

    Returns:
        What was loaded and what was not.

    Raises:
        WeightsError: Fewer than 90 % of the backbone's tensors fit; nothing was loaded.
    """
    expected = model.state_dict()
    fitting = {
        name: value
        for name, value in found.state_dict.items()
        if name in expected and value.shape == expected[name].shape
    }
    last = f"{head_layer(model)}."
    is_other = class_names is not None and found.class_names != tuple(class_names)
    if is_other or any(name.startswith(last) for name in expected.keys() - fitting.keys()):
        fitting = {name: value for name, value in fitting.items() if not name.startswith(last)}
    own = [name for name in expected if not name.endswith(COUNTERS)]
    head = f"{as_staged(model).head}."
    backbone = [name for name in own if not name.startswith(head)]
    misfits = [name for name in backbone if name not in fitting]
    if len(misfits) > (1 - MIN_FIT) * len(backbone):
        raise _misfit(found, expected, misfits, len(backbone))
    model.load_state_dict(fitting, strict=False)
    absent = [name for name in own if name not in fitting]
    replaced = tuple(name for name in absent if name in found.state_dict and name.startswith(head))
    return LoadReport(
        origin=found.origin,
        sha256=found.sha256,
        loaded=tuple(name for name in own if name in fitting),
        replaced=replaced,
        missing=tuple(name for name in absent if name not in replaced),
        unexpected=tuple(name for name in found.state_dict if name not in expected),
    )


def _locate(
    source: str,
    arch: str,
    width_mult: float,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[Path, str]:
    """The file that `source` stands for, and what to call its origin."""
    if source == STARTER:
        starter = find_architecture(arch).starter
        if starter is None or starter.width_mult != width_mult:
            raise RecipeError(
                "model.weights",
                f'"{STARTER}", but there are no starter weights of {_title(arch, width_mult)}',
                next_step=f"Set model.weights to {NONE} or to a file",
            )
        return starter.path, f"mnet's starter for {_title(arch, width_mult)}"
    if source in PUBLISHED_NAMES:
        row = published(arch, width_mult, source)
        path = Path(torch.hub.get_dir()) / "checkpoints" / row.file_name
        try:
            download(row.url, path, sha256=row.sha256, on_progress=on_progress)
        except MachineError as error:
            advice = f"{error.next_step}, or set model.weights to a file that you have"
            raise MachineError(error.where, error.found, next_step=advice) from error
        return path, f"{row.source} {row.release} ({row.file_name})"
    path = Path(source)
    if not path.exists():
        near = get_close_matches(source, SOURCE_NAMES, n=1)
        raise WeightsError(
            source,
            "no such file or run directory",
            next_step=f'Did you mean "{near[0]}"?'
            if near
            else f"Give a path, or one of {', '.join(SOURCE_NAMES)}",
        )
    path = path / "best.pt" if path.is_dir() else path
    return path, str(path)


def _checked_tensors(path: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    """The file's state dict in float32, once every value in it is known to be finite."""
    state_dict = content.get("state_dict", content)
    entries = state_dict if isinstance(state_dict, dict) else {}
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    if not tensors:
        listed = ", ".join(list(content)[:4]) or "nothing"
        raise WeightsError(
            str(path),
            f"holds no state dict (but {listed})",
            next_step="Save the state_dict of the model there, or choose other weights",
        )
    for name, value in tensors.items():
        if value.is_meta or value.is_quantized or value.layout != torch.strided:
            raise WeightsError(
                str(path),
                f"{name} is sparse, quantized or empty",
                next_step="Choose weights in plain floating point",
            )
        if value.is_floating_point():
            tensors[name] = value.float()
            if not tensors[name].isfinite().all():
                raise WeightsError(
                    str(path),
                    f"{name} holds NaN or infinity",
                    next_step="Choose other weights",
                )
    return tensors


def _declared_facts(
    path: Path, content: dict[str, Any], arch: str, width_mult: float
) -> dict[str, Any]:
    """What a checkpoint or the starter says of itself, if it is of the expected model."""
    try:
        arguments = content.get("model_args", content)
        declared = _title(content["arch"], arguments["width_mult"])
        prepared = content.get("preprocess", content)
        facts = {
            "mean": _triple(prepared["mean"]),
            "std": _triple(prepared["std"]),
            "interpolation": prepared["interpolation"],
            "norm_eps": arguments.get("norm_eps"),
        }
        if "resize" in prepared:
            facts["crop_ratio"] = prepared["image_size"] / prepared["resize"]
        if "class_names" in content:
            facts["class_names"] = tuple(content["class_names"])
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(
            str(path),
            f"an incomplete checkpoint ({error!r})",
            next_step="Choose a checkpoint that mnet wrote",
        ) from error
    if declared != _title(arch, width_mult):
        raise WeightsError(
            str(path),
            f"weights of {declared}, but the model is {_title(arch, width_mult)}",
            next_step="Set model.arch and model.width_mult to it, or choose other weights",
        )
    if "class_names" in facts:
        check_class_indices(path, facts["class_names"])
    return facts


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _known_facts(digest: str, arch: str, width_mult: float, from_timm: bool) -> dict[str, Any]:
    """What is known about a file of bare tensors: its release's facts, or its layout's."""
    architecture = find_architecture(arch)
    row = next(
        (row for row in architecture.published if row.sha256 and digest.startswith(row.sha256)),
        None,
    )
    if row is None and from_timm:
        row = next(reversed(architecture.releases(width_mult)), None)
        row = row if row and row.source == "timm" else None
    if row is None:
        return {"norm_eps": timm_names.NORM_EPS} if from_timm else {}
    names = ("mean", "std", "interpolation", "crop_ratio", "norm_eps")
    return {name: getattr(row, name) for name in names}


def _misfit(
    found: FoundWeights, expected: dict[str, Tensor], misfits: list[str], total: int
) -> WeightsError:
    """The error for a file of something else, which says of what if it can be told."""
    marks = {one.mark: arch for arch, one in ARCHITECTURES.usable()} | OTHER_MARKS
    looks = next((arch for name, arch in marks.items() if name in found.state_dict), None)
    shared = next((name for name in misfits if name in found.state_dict), None)
    if looks == found.arch and shared:
        theirs, ours = ("x".join(map(str, at[shared].shape)) for at in (found.state_dict, expected))
        what = f"{looks} with other widths ({shared} is {theirs}, the model's is {ours})"
    elif looks and looks != found.arch:
        what = f"looks like {looks}"
    else:
        what = f"only {total - len(misfits)} of the backbone's {total} tensors fit"
    return WeightsError(
        found.origin,
        f"{what}, but the model is {_title(found.arch, found.width_mult)}",
        next_step="Set model.arch and model.width_mult to what the file holds, "
        "or choose other weights",
    )


def _title(arch: str, width_mult: float) -> str:
    return f"{arch} at width_mult {width_mult:g}"
