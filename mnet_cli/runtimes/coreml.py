"""Core ML packages, by Core ML itself, which is part of macOS."""

import sys
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnet_cli.errors import MachineError
from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.runtimes import Run, missing_extra, not_loadable, require_cpu
from mnet_cli.system.quiet import quiet


def load(path: Path, device: str) -> tuple[Run, Contract]:
    """Open a package, on the CPU alone; Core ML chooses its threads.

    Raises:
        WeightsError: It is missing, damaged, or not from mnet export.
        MachineError: This is not macOS, or coremltools is not installed.
        UsageError: Another device than the CPU was named.
    """
    require_cpu(path, device)
    if sys.platform != "darwin":
        raise MachineError(
            str(path),
            "Core ML runs on macOS",
            "another kind of file was expected here",
            "Name best.pt, or export to onnx",
        )
    try:
        with quiet():
            import coremltools
    except ImportError as error:
        raise missing_extra(path, "coremltools", "coreml") from error
    try:
        with quiet():
            units = coremltools.ComputeUnit.CPU_ONLY
            model = coremltools.models.MLModel(str(path), compute_units=units)
        text = model.user_defined_metadata.get(KEY, "")
    except Exception as error:  # its parser and its compiler each have their own
        raise not_loadable(path, "Core ML package") from error
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
