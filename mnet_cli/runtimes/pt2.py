"""Archives of torch.export, by torch."""

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.runtimes import Run, not_loadable, require_cpu
from mnet_cli.system.trusted_files import read_own


def load(path: Path, device: str) -> tuple[Run, Contract]:
    """Open an archive of torch.export; a call runs on the calling thread.

    Raises:
        WeightsError: It is missing, damaged, or not from this user's mnet export.
        UsageError: Another device than the CPU was named.
    """
    require_cpu(path, device)
    extra = {KEY: ""}
    content = read_own(path)
    try:
        module = torch.export.load(io.BytesIO(content), extra_files=extra).module()
    except Exception as error:  # the loader's errors are of nearly every built-in type
        raise not_loadable(path, "archive of torch.export") from error
    torch.set_num_threads(1)

    def run(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        with torch.inference_mode():
            outputs: NDArray[np.float32] = module(torch.from_numpy(inputs)).numpy()
        return outputs

    return run, read_contract(extra[KEY], str(path))
