"""Core ML packages (.mlpackage, a folder), by coremltools; it converts on Linux too."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnet_cli.errors import UsageError
from mnet_cli.formats.contract import KEY, Contract
from mnet_cli.formats.network import Network
from mnet_cli.formats.registry import Setting
from mnet_cli.system.quiet import quiet

with quiet():
    import coremltools

SYSTEM = "iOS16"  # the oldest with half-precision inputs; macOS 13


def _convert(network: Network, *, precision: str) -> Any:
    """Convert a trace: packages of exported programs carry a file of debugging besides.

    Raises:
        UsageError: Images, which a baked network takes, come one at a time in Core ML.
    """
    contract, example = network.contract, network.example()
    if contract.baked and contract.batch > 1:
        raise UsageError(
            f"--batch {contract.batch}",
            "given with --bake and --format coreml",
            "Core ML takes images one at a time",
            "Leave one of the three out",
        )
    image = {"color_layout": coremltools.colorlayout.RGB, "channel_first": False}
    kind, options = (
        (coremltools.ImageType, image)
        if contract.baked
        else (coremltools.TensorType, {"dtype": np.float32})
    )
    with quiet():
        return coremltools.convert(
            torch.jit.trace(network.module, example, check_trace=False),  # type: ignore[no-untyped-call]
            inputs=[kind("images", tuple(example.shape), **options)],
            outputs=[coremltools.TensorType("outputs", dtype=np.float32)],
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target[SYSTEM],
            compute_precision=coremltools.precision(precision),
            skip_model_load=True,  # as it would be compiled here, which the gate does
        )


PRECISIONS: dict[str, tuple[Setting, ...]] = {
    "float32": (Setting("", partial(_convert, precision="float32")),),
    "float16": (Setting("half precision throughout", partial(_convert, precision="float16")),),
}


def save(program: Any, path: Path, contract: Contract) -> None:
    """Write the package with its contract among the user's metadata."""
    program.user_defined_metadata[KEY] = contract.to_json()
    with quiet():
        program.save(str(path))


def check(path: Path) -> None:
    """Read the package's specification; only macOS can compile it."""
    with quiet():
        coremltools.models.MLModel(str(path), skip_model_load=True)
