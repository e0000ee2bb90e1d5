"""Core ML packages (.mlpackage, a folder), written by coremltools on Linux too."""

import sys
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli.errors import MachineError, UsageError
from mnet_cli.formats.base import Format, Run, Setting, not_loadable, require_cpu
from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.system.quiet import quiet

if TYPE_CHECKING:
    from mnet_cli.formats.network import Network

SYSTEM = "iOS16"  # the oldest with half-precision inputs; macOS 13


class CoreMlFormat(Format):
    """Run by Core ML, which is part of macOS."""

    suffix = ".mlpackage"
    extra = "mnet-cli[coreml]"
    packages = ("coremltools",)
    static = True
    runs_on = "darwin"

    @property
    def precisions(self) -> Mapping[str, tuple[Setting, ...]]:
        """Floating point and half precision."""
        half = partial(self._convert, precision="float16")
        return {
            "float32": (Setting("", partial(self._convert, precision="float32")),),
            "float16": (Setting("half precision throughout", half),),
        }

    def _convert(self, network: "Network", *, precision: str) -> Any:
        """Convert a trace: packages of exported programs carry a debugging file besides.

        Raises:
            UsageError: Several images a call with --bake: Core ML takes images one by one.
        """
        import torch

        with quiet():
            import coremltools

        contract, example = network.contract, network.example()
        if contract.baked and contract.batch > 1:
            raise UsageError(
                f"--batch {contract.batch}",
                "with --bake, Core ML takes images one at a time",
                next_step="Leave --batch or --bake out",
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
                skip_model_load=True,  # it would be compiled here, which the parity check does
            )

    def save(self, program: Any, path: Path, contract: Contract) -> None:
        """Write the package with its contract among the user's metadata."""
        program.user_defined_metadata[KEY] = contract.to_json()
        with quiet():
            program.save(str(path))

    def check(self, path: Path) -> None:
        """Read the package's specification; only macOS can compile it."""
        with quiet():
            import coremltools

            coremltools.models.MLModel(str(path), skip_model_load=True)

    def load(self, path: Path, device: str) -> tuple[Run, Contract]:
        """Open a package on the CPU; Core ML chooses its threads."""
        require_cpu(path, device)
        if not self.runs_here:
            raise MachineError(
                str(path),
                f"Core ML runs on macOS only, and this is {sys.platform}",
                next_step="Name best.pt, or export to onnx",
            )
        try:
            with quiet():
                import coremltools
        except ImportError as error:
            raise self.missing_extra(str(path)) from error
        try:
            with quiet():
                units = coremltools.ComputeUnit.CPU_ONLY
                model = coremltools.models.MLModel(str(path), compute_units=units)
            text = model.user_defined_metadata.get(KEY, "")
        except Exception as error:  # its parser and its compiler each have their own
            raise not_loadable(path, "a Core ML package") from error
        contract, turn = read_contract(text, str(path)), threading.Lock()

        def run(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
            with turn:  # a model serves one call at a time
                [outputs] = model.predict({"images": _as_image(inputs, contract)}).values()
            return np.asarray(outputs, np.float32)

        return run, contract


def _as_image(inputs: NDArray[np.generic], contract: Contract) -> object:
    """What Core ML takes: pixels (1, S, S, 3) as an image, all else as it is."""
    if not contract.baked:
        return inputs
    from PIL import Image

    return Image.fromarray(np.asarray(inputs[0], np.uint8))
