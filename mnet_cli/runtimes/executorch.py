"""ExecuTorch programs, by its runtime with XNNPACK on the CPU."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mnet_cli.formats.contract import KEY, Contract, read_contract
from mnet_cli.runtimes import Run, missing_extra, not_loadable, require_cpu
from mnet_cli.system.quiet import quiet


def load(path: Path, device: str) -> tuple[Run, Contract]:
    """Open a program; a call runs on one thread.

    Raises:
        WeightsError: It is missing, damaged, or not from mnet export.
        MachineError: ExecuTorch is not installed.
        UsageError: Another device than the CPU was named.
    """
    require_cpu(path, device)
    runtime = _runtime(path)
    try:
        content = path.read_bytes()
        with quiet():
            program = runtime.load_program(content)
            carries = KEY in program.method_names
            [text] = program.load_method(KEY).execute([]) if carries else [""]
            program.load_method("forward")
    except (OSError, RuntimeError, KeyError) as error:
        raise not_loadable(path, "ExecuTorch program") from error
    own = threading.local()  # a program's methods have one memory, so each thread has its own

    def run(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        if not hasattr(own, "program"):
            own.program = runtime.load_program(content)
        [outputs] = own.program.load_method("forward").execute([torch.from_numpy(inputs)])
        logits: NDArray[np.float32] = outputs.numpy()
        return logits

    return run, read_contract(text, str(path))


def _runtime(path: Path) -> Any:
    """The runtime, its pool of threads set to one before anything uses it."""
    try:
        with quiet():
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime

            if portable_lib._threadpool_get_thread_count() != 1:
                portable_lib._unsafe_reset_threadpool(1)
            return Runtime.get()
    except ImportError as error:
        raise missing_extra(path, "executorch", "executorch") from error
