"""Read and write files of tensors without running code from the file.

Three formats are read: torch's zip format, its older pickle format, and safetensors. A bad
file is refused before torch reads it, because torch's message would advise unsafe loading.
"""

import io
import re
import stat
import zipfile
import zlib
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch

from mnet_cli.errors import MachineError, WeightsError
from mnet_cli.system.atomic import atomic_write
from mnet_cli.system.text import text_in_place_of_data

HEAD = 512  # bytes that identify the format; the mark of a tar archive ends at byte 262
CHUNK = 1 << 20  # bytes

NAME_FILE = "Give the path of a weights file"
AGAIN = "Download or copy the file again"
RESAVE = "Save only the model's state_dict with torch.save, where the file comes from"


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a dict of tensors and plain values onto the CPU.

    The CRC-32 checksums of a zip are compared first, so one flipped byte is found. The older
    pickle format has no checksums; a published file in it is verified by its sha256 only.

    Args:
        path: A file of `torch.save` (zip, or the pickle of torch before 1.6), or a
            `.safetensors` file.

    Returns:
        The content of the file, by name.

    Raises:
        WeightsError: The file is missing, unreadable, damaged, of another format, or contains
            anything but plain tensors and values under text names.
        MachineError: A `.safetensors` file, and the safetensors package is not installed.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would block
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise WeightsError(str(path), f"{kind}, not a file of weights", next_step=NAME_FILE)
        with path.open("rb") as file:
            content = _read(path, file)
    except FileNotFoundError as error:
        raise WeightsError(str(path), "no such file", next_step=NAME_FILE) from error
    except OSError as error:
        raise WeightsError(
            str(path), f"cannot be read ({error.strerror})", next_step="Check its permissions"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        kind = "a dict with keys that are not text" if isinstance(content, dict) else _type(content)
        problem = f"contains {kind}, not tensors by name"
        raise WeightsError(str(path), problem, next_step=RESAVE)
    return content


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values as a torch zip file, atomically.

    Args:
        path: The final name; its folder must exist.
        content: Tensors, numbers, text, None, and lists or dicts of these. Anything else, such
            as a numpy scalar or a path, gives a file that `read_tensors` refuses.

    Raises:
        MachineError: The file cannot be written.
    """
    # torch turns a failed write to disk into a RuntimeError without the cause. So torch writes
    # to memory, and atomic_write sees the errors of the disk.
    archive = io.BytesIO()
    torch.save(content, archive)
    with atomic_write(path) as file:
        file.write(archive.getbuffer())


def _read(path: Path, file: IO[bytes]) -> Any:
    """Read an open file of any accepted format."""
    head = file.read(HEAD)
    file.seek(0)
    _refuse_foreign(path, head)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, file.read())
    if head.startswith(b"PK"):
        _check_zip(path, file)
    elif not head.startswith(b"\x80"):  # every pickle since protocol 2 starts so
        found = f"not a PyTorch file (its first bytes are {head[:4].hex(' ')})"
        raise WeightsError(str(path), found, next_step=AGAIN)
    file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = "a pickle of Python objects, which could run code"
        found += f" (it calls {asked[1]})" if asked else ""
        raise WeightsError(str(path), found, next_step=RESAVE) from error
    except Exception as error:  # damaged pickles raise nearly every built-in type
        found = f"truncated or damaged ({_type(error)})"
        raise WeightsError(str(path), found, next_step=AGAIN) from error


def _refuse_foreign(path: Path, head: bytes) -> None:
    """Refuse, by its first bytes, a file that is often found in place of weights."""
    if text := text_in_place_of_data(head):
        raise WeightsError(str(path), f"{text[0]}, not weights", next_step=text[1])
    kinds = (
        (not head, "empty (0 bytes)", AGAIN),
        (head.count(0) == len(head), "filled with zeros", AGAIN),
        (
            head[257:262] == b"ustar",
            "a tar archive of torch before 0.2, which is not supported",
            RESAVE,
        ),
    )
    for matches, found, next_step in kinds:
        if matches:
            raise WeightsError(str(path), found, next_step=next_step)


def _check_zip(path: Path, file: IO[bytes]) -> None:
    """Refuse a zip that is damaged or was not written by `torch.save`."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
            if "constants.pkl" in names:
                found = "a TorchScript archive, which is not supported"
                raise WeightsError(str(path), found, next_step=RESAVE)
            if "data.pkl" not in names:
                found = "a zip that torch.save did not write"
                raise WeightsError(str(path), found, next_step=RESAVE)
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        found = f"truncated or damaged ({error})"
        raise WeightsError(str(path), found, next_step=AGAIN) from error
    except (zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        found = f"a damaged zip ({_type(error)})"
        raise WeightsError(str(path), found, next_step=AGAIN) from error
    if damaged:
        found = f"damaged (the checksum of {damaged} differs)"
        raise WeightsError(str(path), found, next_step=AGAIN)


def _read_safetensors(path: Path, data: bytes) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise MachineError(
            str(path),
            "reading it needs the safetensors package, which is not installed",
            next_step="""Run 'pip install "mnet-cli[timm]"'""",
        ) from error
    try:
        content: dict[str, Any] = load(data)
    except SafetensorError as error:
        found = f"truncated, damaged or not a safetensors file ({error})"
        raise WeightsError(str(path), found, next_step=AGAIN) from error
    return content


def _type(value: object) -> str:
    return type(value).__name__
