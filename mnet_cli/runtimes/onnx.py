"""ONNX files (https://onnx.ai) by ONNX Runtime, without torch."""

from pathlib import Path

from mnet_cli.errors import WeightsError
from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.models.onnx_forward import OnnxForward
from mnet_cli.runtimes import Run, not_loadable, require_cpu


def load(path: Path, device: str) -> tuple[Run, Contract]:
    """Open an ONNX file; a call runs on the calling thread.

    Raises:
        WeightsError: It is missing, damaged, or not from mnet export.
        UsageError: Another device than the CPU was named.
    """
    require_cpu(path, device)
    try:
        forward = OnnxForward(path.read_bytes())
    except OSError as error:
        found = f"cannot be read ({error.strerror or error})"
        raise WeightsError(str(path), found, "an exported file was expected") from error
    except Exception as error:  # the runtime's own errors have no common base but this
        raise not_loadable(path, "ONNX model") from error
    return forward, read_contract(forward.metadata.get(KEY), str(path))
