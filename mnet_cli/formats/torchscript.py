"""TorchScript files: a trace of the network, for programs that have torch."""

import io
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnet_cli.formats.base import Format, Run, Setting, not_loadable
from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.system.quiet import quiet
from mnet_cli.system.trusted_files import read_trusted, trust

if TYPE_CHECKING:
    from mnet_cli.formats.network import Network


class TorchScriptFormat(Format):
    """Written and run by torch, on any device."""

    suffix = ".torchscript"

    @property
    def precisions(self) -> Mapping[str, tuple[Setting, ...]]:
        """Floating point only."""
        return {"float32": (Setting("", self._convert),)}

    def _convert(self, network: "Network") -> Any:
        import torch

        with quiet():
            traced = torch.jit.trace(network.module, network.example(), check_trace=False)  # type: ignore[no-untyped-call]
            return torch.jit.freeze(traced)

    def save(self, program: Any, path: Path, contract: Contract) -> None:
        """Write the archive with its contract as an extra file, and no paths of this machine."""
        import torch

        whole = io.BytesIO()  # given a path, torch turns errors of the disk into RuntimeError
        with quiet():
            torch.jit.save(program, whole, _extra_files={KEY: contract.to_json()})
        content = without_entries(whole, ".debug_pkl")  # they name source files
        path.write_bytes(content)
        trust(content)

    def check(self, path: Path) -> None:
        """Load the archive."""
        self.load(path, "cpu")

    def load(self, path: Path, device: str) -> tuple[Run, Contract]:
        """Open an archive that this user's mnet wrote; on a CPU a call runs on its own thread."""
        import torch

        from mnet_cli.models.device import DEVICE_LOCK, choose_device, one_thread

        chosen = choose_device(device)
        extra = {KEY: ""}
        content = read_trusted(path)
        try:
            with quiet():  # torch advises to use another format
                module = torch.jit.load(io.BytesIO(content), chosen, _extra_files=extra)  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError, ValueError) as error:
            raise not_loadable(path, "a TorchScript archive") from error

        def run(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
            turn: AbstractContextManager[object] = (
                one_thread() if chosen.type == "cpu" else DEVICE_LOCK
            )
            with turn, torch.inference_mode():
                outputs: NDArray[np.float32] = (
                    module(torch.from_numpy(inputs).to(chosen)).cpu().numpy()
                )
            return outputs

        return run, read_contract(extra[KEY], str(path))


def without_entries(archive: io.BytesIO, suffix: str) -> bytes:
    """A zip archive without the entries whose names end with `suffix`."""
    slim = io.BytesIO()
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(slim, "w") as copy:
        for entry in whole.infolist():
            if not entry.filename.endswith(suffix):
                copy.writestr(entry, whole.read(entry))
    return slim.getvalue()
