"""A network as the papers print it: one row a layer, with parameters and multiply-adds.

Multiply-adds (MACs) count convolutions and linear layers, for one image; batch norms,
activations, pools and gates count nothing, as in the papers.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from mnet_cli.models.freeze import as_staged
from mnet_cli.models.layers import SqueezeExcitation

OPERATORS = {nn.Linear: "linear", nn.AdaptiveAvgPool2d: "avgpool"}  # beside the blocks' kinds
ACTIVATIONS = {nn.ReLU: "ReLU", nn.ReLU6: "ReLU6", nn.Hardswish: "HS"}  # as the papers write
Shapes = dict[nn.Module, tuple[torch.Size, torch.Size]]  # input and output of each module


@dataclass(frozen=True)
class LayerRow:
    """One row of a paper's table."""

    name: str  # `features.3`
    input: str  # `56x56x24`, height x width x channels; `1280` after the pool
    operator: str  # `bottleneck 3x3`
    kernel: int | None  # side; None without a convolution
    expansion: float | None  # t, expanded channels over input channels; bottlenecks only
    channels: int  # c, of the output
    stride: int | None  # None without a convolution
    activation: str | None  # None when linear
    squeeze_excitation: bool
    parameters: int
    macs: int


@dataclass(frozen=True)
class SeparableCost:
    """A depthwise convolution and its pointwise one, beside the convolution they replace."""

    name: str  # of the layer
    kernel: int  # D_K
    in_channels: int  # M
    out_channels: int  # N
    macs: int  # of both
    standard_macs: int  # of one convolution of the same kernel, M, N and output size

    @property
    def share(self) -> float:
        """Counted cost as a share of the standard convolution's."""
        return self.macs / self.standard_macs

    @property
    def formula(self) -> float:
        """The same share by the paper's formula, 1/N + 1/D_K² (V1 paper, section 3.1)."""
        return 1 / self.out_channels + 1 / self.kernel**2


@dataclass(frozen=True)
class Summary:
    """All layers of a network at one image size."""

    image_size: int  # pixels
    layers: tuple[LayerRow, ...]
    separable: tuple[SeparableCost, ...]

    @property
    def parameters(self) -> int:
        """Parameters of all layers."""
        return sum(row.parameters for row in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions and linear layers, for one image."""
        return sum(row.macs for row in self.layers)


def summarize(model: nn.Module, image_size: int) -> Summary:
    """Describe every layer of `model` and count its parameters and multiply-adds.

    Nothing is computed: the shapes come from a copy of the model that holds no values.

    Args:
        model: A network of `build_model`; it is left as it is.
        image_size: Side of the input image in pixels.
    """
    model = copy.deepcopy(model).to("meta").eval()
    shapes = _trace(model, image_size)
    # A network may have layers that it does not call as modules; these have no shapes.
    stages = [row for row in _stages(model) if row[1] in shapes]
    return Summary(
        image_size,
        layers=tuple(_layer_row(name, stage, act, shapes) for name, stage, act in stages),
        separable=tuple(
            cost for name, stage, _ in stages if (cost := _separable_cost(name, stage, shapes))
        ),
    )


def _trace(model: nn.Module, image_size: int) -> Shapes:
    """Run the model on the meta device and note the shapes at every module."""
    shapes: Shapes = {}

    def note(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            shapes[module] = (inputs[0].shape, output.shape)

    for module in model.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.empty(1, 3, image_size, image_size, device="meta"))
    return shapes


def _stages(model: nn.Module) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Yield the name, module and activation of every row of the table."""
    staged = as_staged(model)
    for name in staged.stages:
        stage = model.get_submodule(name)
        # The first one: that of the squeeze-excitation comes behind it.
        found = (ACTIVATIONS[type(m)] for m in stage.modules() if type(m) in ACTIVATIONS)
        yield name, stage, next(found, None)
    for name, module in model.named_children():
        if isinstance(module, nn.AdaptiveAvgPool2d):
            yield name, module, None
    head = list(model.get_submodule(staged.head).named_modules(prefix=staged.head))
    for (name, layer), (_, behind) in zip(head, [*head[1:], ("", None)], strict=True):
        if isinstance(layer, nn.Linear):
            yield name, layer, ACTIVATIONS.get(type(behind))


def _layer_row(name: str, stage: nn.Module, activation: str | None, shapes: Shapes) -> LayerRow:
    before, after = shapes[stage]
    kind = OPERATORS.get(type(stage)) or str(getattr(stage, "kind", type(stage).__name__))
    convolutions = _convolutions(stage)
    # The depthwise convolution gives its block the kernel and the stride.
    main = next(filter(_is_depthwise, convolutions), convolutions[0] if convolutions else None)
    kernel = main.kernel_size[0] if main else None
    return LayerRow(
        name,
        input="x".join(str(side) for side in (*before[2:], before[1])),
        operator=f"{kind} {kernel}x{kernel}" if kernel else kind,
        kernel=kernel,
        expansion=main.in_channels / before[1] if main and kind == "bottleneck" else None,
        channels=after[1],
        stride=main.stride[0] if main else None,
        activation=activation,
        squeeze_excitation=any(isinstance(m, SqueezeExcitation) for m in stage.modules()),
        parameters=sum(parameter.numel() for parameter in stage.parameters()),
        macs=sum(_macs(module, shapes) for module in stage.modules()),
    )


def _separable_cost(name: str, stage: nn.Module, shapes: Shapes) -> SeparableCost | None:
    """The cost of a stage's depthwise separable pair; None when it has none."""
    for depthwise, pointwise in pairwise(_convolutions(stage)):
        if _is_depthwise(depthwise):
            kernel, m, n = depthwise.kernel_size[0], depthwise.in_channels, pointwise.out_channels
            _, _, height, width = shapes[depthwise][1]
            return SeparableCost(
                name,
                kernel,
                in_channels=m,
                out_channels=n,
                macs=_macs(depthwise, shapes) + _macs(pointwise, shapes),
                standard_macs=height * width * kernel**2 * m * n,
            )
    return None


def _convolutions(stage: nn.Module) -> list[nn.Conv2d]:
    """A stage's convolutions from input to output, without those of its squeeze-excitation."""
    gates = [m for m in stage.modules() if isinstance(m, SqueezeExcitation)]
    inside = {module for gate in gates for module in gate.modules()}
    return [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m not in inside]


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels > 1


def _macs(module: nn.Module, shapes: Shapes) -> int:
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return 0
    # Each output value is one product with the weights that lead to it.
    return math.prod(shapes[module][1]) * module.weight[0].numel()
