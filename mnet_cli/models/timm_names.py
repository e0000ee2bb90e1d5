"""Names of timm's state dicts, which number blocks within stages and layers by their kind.

Source of the names: `timm/models/_efficientnet_blocks.py`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Names = dict[str, str]  # timm's name of a layer to ours

MARK = "conv_stem.weight"  # only timm's state dicts have it
STEM: Names = {"conv_stem": "features.0.0", "bn1": "features.0.1"}
NORM_EPS = 1e-5  # timm's default ε, for V3 too

_SQUEEZE = ("se.conv_reduce", "se.conv_expand")
_SEPARABLE = (("conv_dw", "bn1"), _SQUEEZE, ("conv_pw", "bn2"))
_BOTTLENECK = (("conv_pw", "bn1"), ("conv_dw", "bn2"), _SQUEEZE, ("conv_pwl", "bn3"))


def rename(
    state_dict: "Mapping[str, Tensor]", head: Names, block_names: Callable[[set[str]], Names]
) -> "dict[str, Tensor]":
    """Rename a state dict of timm's; names that are not known stay as they are.

    A linear layer that timm keeps as a 1x1 convolution becomes a matrix.

    Args:
        state_dict: Tensors by timm's names.
        head: Names of the layers behind the blocks.
        block_names: From the layers of one block to their names below `features.N`.

    Returns:
        The tensors by our names, in the same order.
    """
    blocks: dict[tuple[int, int], set[str]] = defaultdict(set)
    for name in state_dict:
        if match := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)\.\w+", name):
            blocks[int(match[1]), int(match[2])].add(match[3])
    layers = STEM | head
    for number, (stage, block) in enumerate(sorted(blocks), start=1):
        for layer, ours in block_names(blocks[stage, block]).items():
            layers[f"blocks.{stage}.{block}.{layer}"] = f"features.{number}.{ours}"
    renamed = {}
    for name, value in state_dict.items():
        layer, dot, leaf = name.rpartition(".")
        ours = layers.get(layer, layer)
        is_matrix = ours.startswith("classifier.") and value.dim() == 4
        renamed[ours + dot + leaf] = value.flatten(1) if is_matrix else value
    return renamed


def layer_pairs(layers: set[str]) -> list[tuple[str, str]]:
    """The convolutions of a block in order, each with its norm; or the pair of a gate."""
    pairs = _BOTTLENECK if "conv_pwl" in layers else _SEPARABLE
    return [pair for pair in pairs if pair[0] in layers]


def nested_names(layers: set[str], prefix: str) -> Names:
    """Names for blocks whose convolutions stand with their norm in numbered groups."""
    names: Names = {}
    for index, (first, second) in enumerate(layer_pairs(layers)):
        leaves = ("fc1", "fc2") if first == _SQUEEZE[0] else ("0", "1")
        names |= {first: f"{prefix}{index}.{leaves[0]}", second: f"{prefix}{index}.{leaves[1]}"}
    return names
