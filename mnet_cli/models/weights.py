"""Find weights by what a recipe calls them, and load what fits a model, with an account."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnet_cli.data.class_indices import check_class_indices
from mnet_cli.errors import RecipeError, WeightsError
from mnet_cli.models.published import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PUBLISHED,
    PUBLISHED_NAMES,
    STARTER,
    STARTER_ARCH,
    STARTER_WIDTH,
    Triple,
    published,
    published_for,
)
from mnet_cli.system.download import download
from mnet_cli.system.hashing import file_sha256
from mnet_cli.system.tensorfile import read_tensors

NONE = "none"
SOURCE_NAMES = (NONE, STARTER, *PUBLISHED_NAMES)

STARTER_FILE = Path(__file__).with_name("starter.pth")

BACKBONE = "features."
LEAST_FIT = 0.9  # share of the backbone's tensors that a file must bring
TIMM_NORM_EPS = 1e-5  # timm's default, for V3 too
COUNTERS = "num_batches_tracked"  # only read by batch norms without a momentum

LOOKS = (  # a tensor that only this architecture's state dict has
    ("features.13.1.0.weight", "mobilenet_v1"),
    ("features.17.conv.2.weight", "mobilenet_v2"),
    ("features.16.0.weight", "mobilenet_v3_large"),
    ("features.12.0.weight", "mobilenet_v3_small"),
    ("layer1.0.conv1.weight", "a ResNet"),
)

TIMM_STEM = {"conv_stem": "features.0.0", "bn1": "features.0.1"}
TIMM_V3_HEAD = {"conv_head": "classifier.0", "classifier": "classifier.3"}
TIMM_HEAD = {
    "mobilenet_v1": {"classifier": "classifier.1"},
    "mobilenet_v2": {
        "conv_head": "features.18.0",
        "bn2": "features.18.1",
        "classifier": "classifier.1",
    },
    "mobilenet_v3_large": TIMM_V3_HEAD,
    "mobilenet_v3_small": TIMM_V3_HEAD,
}
TIMM_SQUEEZE = ("se.conv_reduce", "se.conv_expand")
TIMM_SEPARABLE = (("conv_dw", "bn1"), TIMM_SQUEEZE, ("conv_pw", "bn2"))
TIMM_BOTTLENECK = (
    ("conv_pw", "bn1"),
    ("conv_dw", "bn2"),
    TIMM_SQUEEZE,
    ("conv_pwl", "bn3"),
)


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
class WeightsAccount:
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
    from_timm = "conv_stem.weight" in tensors
    if "format" in content:
        facts = _declared_facts(path, content, arch, width_mult)
    else:
        facts = _known_facts(digest, arch, width_mult, from_timm)
    state_dict = timm_to_mnet(tensors, arch) if from_timm else tensors
    return FoundWeights(state_dict, arch, width_mult, origin, digest, **facts)


def load_matching(
    model: nn.Module, found: FoundWeights, class_names: Sequence[str] | None = None
) -> WeightsAccount:
    """Load into `model`, in place, every tensor whose name and shape it has.

    Args:
        model: A network with `features` and `classifier`.
        found: The weights.
        class_names: The model's classes. A last layer stays out, even one of the same shape,
            unless its file names these classes in this order. None takes it by its shape alone.

    Returns:
        What was loaded and what was not.

    Raises:
        WeightsError: Under 90 % of the backbone's tensors are there; nothing was loaded.
    """
    wanted = model.state_dict()
    fitting = {
        name: value
        for name, value in found.state_dict.items()
        if name in wanted and value.shape == wanted[name].shape
    }
    if class_names is not None and found.class_names != tuple(class_names):
        last = list(wanted)[-1].rpartition(".")[0] + "."  # the layer whose outputs are classes
        fitting = {name: value for name, value in fitting.items() if not name.startswith(last)}
    own = [name for name in wanted if not name.endswith(COUNTERS)]
    backbone = [name for name in own if name.startswith(BACKBONE)]
    misfits = [name for name in backbone if name not in fitting]
    if len(misfits) > (1 - LEAST_FIT) * len(backbone):
        raise _misfit(found, wanted, misfits, len(backbone))
    model.load_state_dict(fitting, strict=False)
    absent = [name for name in own if name not in fitting]
    replaced = tuple(
        name for name in absent if name in found.state_dict and name.startswith("classifier.")
    )
    return WeightsAccount(
        origin=found.origin,
        sha256=found.sha256,
        loaded=tuple(name for name in own if name in fitting),
        replaced=replaced,
        missing=tuple(name for name in absent if name not in replaced),
        unexpected=tuple(name for name in found.state_dict if name not in wanted),
    )


def timm_to_mnet(state_dict: dict[str, Tensor], arch: str) -> dict[str, Tensor]:
    """Rename a state dict of timm's `mobilenetv1_*`, `mobilenetv2_*` or `mobilenetv3_*`.

    timm numbers blocks within stages and layers by their kind
    (`timm/models/_efficientnet_blocks.py`); V3's last-but-one linear layer is a 1x1
    convolution there. Names that timm's model of `arch` does not have are kept.

    Args:
        state_dict: Tensors by timm's names.
        arch: The architecture, one of ours.

    Returns:
        The tensors by our names, in the same order.
    """
    blocks: dict[tuple[int, int], set[str]] = defaultdict(set)
    for name in state_dict:
        if match := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)\.\w+", name):
            blocks[int(match[1]), int(match[2])].add(match[3])
    layers = TIMM_STEM | TIMM_HEAD[arch]
    for number, (stage, block) in enumerate(sorted(blocks), start=1):
        for layer, ours in _timm_block(blocks[stage, block], arch).items():
            layers[f"blocks.{stage}.{block}.{layer}"] = f"features.{number}.{ours}"
    renamed = {}
    for name, value in state_dict.items():
        layer, dot, leaf = name.rpartition(".")
        ours = layers.get(layer, layer)
        is_pointwise = ours.startswith("classifier.") and value.dim() == 4
        renamed[ours + dot + leaf] = value.flatten(1) if is_pointwise else value
    return renamed


def _timm_block(layers: set[str], arch: str) -> dict[str, str]:
    """Our names, below `features.N`, of one timm block's layers."""
    if "conv" in layers:  # V3's last convolution counts as a block there
        return {"conv": "0", "bn1": "1"}
    pairs = TIMM_BOTTLENECK if "conv_pwl" in layers else TIMM_SEPARABLE
    present = [pair for pair in pairs if pair[0] in layers]
    prefix = {"mobilenet_v1": "", "mobilenet_v2": "conv."}.get(arch, "block.")
    names: dict[str, str] = {}
    for index, (first, second) in enumerate(present):
        at = f"{prefix}{index}"
        names |= {first: f"{at}.0", second: f"{at}.1"}
        if first == TIMM_SQUEEZE[0]:
            names |= {first: f"{at}.fc1", second: f"{at}.fc2"}
        elif arch == "mobilenet_v2" and index == len(present) - 1:  # a bare convolution and norm
            names |= {first: at, second: f"{prefix}{index + 1}"}
    return names


def _locate(
    source: str,
    arch: str,
    width_mult: float,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[Path, str]:
    """The file that `source` stands for, and what to call its origin."""
    if source == STARTER:
        if (arch, width_mult) != (STARTER_ARCH, STARTER_WIDTH):
            raise RecipeError(
                "model.weights",
                f'"{STARTER}", which is made for {_title(STARTER_ARCH, STARTER_WIDTH)}',
                f"weights for {_title(arch, width_mult)} were expected",
                f"Choose the starter's model, or weights: {NONE} or a file",
            )
        return STARTER_FILE, f"mnet's starter for {_title(arch, width_mult)}"
    if source in PUBLISHED_NAMES:
        row = published(arch, width_mult, source)
        path = Path(torch.hub.get_dir()) / "checkpoints" / row.file_name
        download(row.url, path, sha256=row.sha256, on_progress=on_progress)
        return path, f"{row.source} {row.release} ({row.file_name})"
    path = Path(source)
    if not path.exists():
        near = get_close_matches(source, SOURCE_NAMES, n=1)
        raise WeightsError(
            source,
            "no such file or run directory",
            f"a path or one of {', '.join(SOURCE_NAMES)} was expected",
            f'Did you mean "{near[0]}"?' if near else "",
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
            str(path), f"holds no state dict (but {listed})", "tensors by name were expected"
        )
    for name, value in tensors.items():
        if value.is_meta or value.is_quantized or value.layout != torch.strided:
            raise WeightsError(
                str(path), f"{name} is sparse, quantized or empty", "plain numbers were expected"
            )
        if value.is_floating_point():
            tensors[name] = value.float()
            if not tensors[name].isfinite().all():
                raise WeightsError(
                    str(path), f"{name} holds NaN or infinity", "finite numbers were expected"
                )
    return tensors


def _declared_facts(
    path: Path, content: dict[str, Any], arch: str, width_mult: float
) -> dict[str, Any]:
    """What a checkpoint or the starter says of itself, if it is of the wanted model."""
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
        found = f"an incomplete checkpoint ({error!r})"
        raise WeightsError(str(path), found, "one that mnet wrote was expected") from error
    if declared != _title(arch, width_mult):
        raise WeightsError(
            str(path),
            f"weights of {declared}",
            f"{_title(arch, width_mult)} was expected",
            "Set model.arch and model.width_mult to it, or choose other weights",
        )
    if "class_names" in facts:
        check_class_indices(path, facts["class_names"])
    return facts


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _known_facts(digest: str, arch: str, width_mult: float, from_timm: bool) -> dict[str, Any]:
    """What is known about a file of bare tensors: its release's facts, or its layout's."""
    row = next((row for row in PUBLISHED if digest.startswith(row.sha256)), None)
    if row is None and from_timm:
        row = published_for(arch, width_mult)
        row = row if row and row.source == "timm" else None
    if row is None:
        return {"norm_eps": TIMM_NORM_EPS} if from_timm else {}
    names = ("mean", "std", "interpolation", "crop_ratio", "norm_eps")
    return {name: getattr(row, name) for name in names}


def _misfit(
    found: FoundWeights, wanted: dict[str, Tensor], misfits: list[str], total: int
) -> WeightsError:
    """The error for a file of something else, which says of what if it can be told."""
    looks = next((arch for name, arch in LOOKS if name in found.state_dict), None)
    shared = next((name for name in misfits if name in found.state_dict), None)
    if looks == found.arch and shared:
        theirs, ours = ("x".join(map(str, at[shared].shape)) for at in (found.state_dict, wanted))
        what = f"{looks} with other widths ({shared} is {theirs}, the model's is {ours})"
    elif looks and looks != found.arch:
        what = f"looks like {looks}"
    else:
        what = f"only {total - len(misfits)} of the backbone's {total} tensors fit"
    return WeightsError(
        found.origin,
        what,
        f"{_title(found.arch, found.width_mult)} was expected",
        "Set model.arch and model.width_mult to what the file holds, or choose other weights",
    )


def _title(arch: str, width_mult: float) -> str:
    return f"{arch} at width_mult {width_mult:g}"
