"""ONNX files compressed by gzip, as an example of a file format."""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnet_cli.formats.base import Format, Run, Setting, not_loadable, require_cpu
from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.models.onnx_forward import OnnxForward


class CompressedOnnxFormat(Format):
    """Smaller on disk than ONNX; run by ONNX Runtime."""

    suffix = ".onnxgz"

    @property
    def precisions(self) -> Mapping[str, tuple[Setting, ...]]:
        """Floating point only."""
        from mnet_cli.formats.onnx import convert

        return {"float32": (Setting("", convert),)}

    def save(self, program: Any, path: Path, contract: Contract) -> None:
        """Write the ONNX model with the contract in its metadata."""
        import onnx

        onnx.helper.set_model_props(program, {KEY: contract.to_json()})
        path.write_bytes(gzip.compress(program.SerializeToString()))

    def check(self, path: Path) -> None:
        """Check the whole graph; any exception means that the file is not valid."""
        import onnx

        model = onnx.load_from_string(gzip.decompress(path.read_bytes()))
        onnx.checker.check_model(model, full_check=True)

    def load(self, path: Path, device: str) -> tuple[Run, Contract]:
        """Open a file; the function that is returned maps images to logits."""
        require_cpu(path, device)
        try:
            forward = OnnxForward(gzip.decompress(path.read_bytes()))
        except Exception as error:  # ONNX Runtime's errors have no other base class
            raise not_loadable(path, "a compressed ONNX model") from error
        return forward, read_contract(forward.metadata.get(KEY), str(path))
