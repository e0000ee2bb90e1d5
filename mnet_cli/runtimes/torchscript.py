"""TorchScript files, by torch."""

import io
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.models.forward import DEVICE_LOCK
from mnet_cli.runtimes import Run, choose_device, not_loadable
from mnet_cli.system.quiet import quiet
from mnet_cli.system.trusted_files import read_own


def load(path: Path, device: str) -> tuple[Run, Contract]:
    """Open a TorchScript archive; on a CPU a call runs on the calling thread.

    Raises:
        WeightsError: It is missing, damaged, or not from this user's mnet export.
        UsageError: The device is not to be had.
    """
    chosen = choose_device(device)
    extra = {KEY: ""}
    content = read_own(path)
    try:
        with quiet():  # torch advises to use another format
            module = torch.jit.load(io.BytesIO(content), chosen, _extra_files=extra)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError, ValueError) as error:
        raise not_loadable(path, "TorchScript archive") from error
    turn: AbstractContextManager[object] = DEVICE_LOCK
    if chosen.type == "cpu":
        torch.set_num_threads(1)
        turn = nullcontext()

    def run(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        with turn, torch.inference_mode():
            outputs: NDArray[np.float32] = module(torch.from_numpy(inputs).to(chosen)).cpu().numpy()
        return outputs

    return run, read_contract(extra[KEY], str(path))
