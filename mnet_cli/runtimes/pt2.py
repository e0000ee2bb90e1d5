"""Archives of torch.export, by torch."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mnet_cli.contract import KEY, Contract, read_contract
from mnet_cli.errors import WeightsError
from mnet_cli.runtimes import Run, require_cpu

# What an archive of a network alone holds; compiled code and Python objects are none of it.
HARMLESS = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|version|\.format_version"
    r"|\.storage_alignment|\.data/[\w.]+|models/[\w.]+\.json|extra/[\w.]+"
    r"|data/weights/[\w.]+|data/constants/[\w.]+|data/sample_inputs/[\w.]+)"
)


def load(path: Path, device: str) -> tuple[Run, Contract]:
    """Open an archive of torch.export; a call runs on the calling thread.

    Raises:
        WeightsError: It is missing, damaged, could run code, or is not from mnet export.
        UsageError: Another device than the CPU was named.
    """
    require_cpu(path, device)
    extra = {KEY: ""}
    try:
        _refuse_code(path)
        module = torch.export.load(path, extra_files=extra).module()
    except WeightsError:
        raise
    except Exception as error:  # the loader's errors are of nearly every built-in type
        raise WeightsError(
            str(path),
            f"no archive of torch.export that loads here ({type(error).__name__})",
            "a file written by mnet export was expected",
            "Export it again",
        ) from error
    torch.set_num_threads(1)

    def run(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        with torch.inference_mode():
            outputs: NDArray[np.float32] = module(torch.from_numpy(inputs)).numpy()
        return outputs

    return run, read_contract(extra[KEY], str(path))


def _refuse_code(path: Path) -> None:
    """Refuse what torch's loader would run: it unpickles whatever an archive marks as pickled."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            hostile = not HARMLESS.fullmatch(name)
            if name.endswith(".json") and "/data/" in name:
                hostile |= _asks_for_pickle(json.loads(content))
            if "/sample_inputs/" in name and content:
                torch.load(io.BytesIO(content), weights_only=True)  # raises at Python objects
            if hostile:
                raise WeightsError(
                    str(path),
                    f"{name.partition('/')[2]} could run code",
                    "a network and nothing else was expected",
                    "Export it again from its checkpoint",
                )


def _asks_for_pickle(value: object) -> bool:
    if isinstance(value, dict):
        return bool(value.get("use_pickle")) or any(map(_asks_for_pickle, value.values()))
    return isinstance(value, list) and any(map(_asks_for_pickle, value))
