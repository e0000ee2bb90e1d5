"""Read and write files of tensors without ever running what a file asks for.

Reading takes torch's zip format, its older bare pickle and safetensors. Whatever is wrong
with a file is said in one line before torch, which would advise unsafe loading, sees it.
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

HEAD = 512  # bytes that tell a file's kind; a tar archive's mark ends at byte 262
CHUNK = 1 << 20  # bytes

EXPECTED = "a file of plain tensors was expected"
AGAIN = "Download or copy the file again"
RESAVE = "Save the model's state_dict alone with torch.save, where the file comes from"


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a dict of tensors and plain values onto the CPU.

    A zip's CRC-32 sums are compared first, so one flipped byte is found. The older pickle
    format has no sums; a published file of that kind is guarded by its sha256 alone.

    Args:
        path: A file of `torch.save` (zip, or the pickle of torch before 1.6), or one named
            `.safetensors`.

    Returns:
        What the file holds, by name.

    Raises:
        WeightsError: The file is missing, unreadable, damaged, of another kind, or holds
            something else than plain tensors and values under text names.
        MachineError: A `.safetensors` file, and the safetensors package is not installed.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would block
            kind = "a directory" if path.is_dir() else "not a regular file"
            raise WeightsError(str(path), kind, EXPECTED)
        with path.open("rb") as file:
            content = _read(path, file)
    except FileNotFoundError as error:
        raise WeightsError(str(path), "no such file", EXPECTED) from error
    except OSError as error:
        raise WeightsError(str(path), f"cannot be read ({error.strerror})", EXPECTED) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        found = "a dict with unnamed entries" if isinstance(content, dict) else _type(content)
        raise WeightsError(str(path), f"holds {found}", "a dict by name was expected", RESAVE)
    return content


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values as a torch zip file, whole or not at all.

    Args:
        path: The final name; its folder must exist.
        content: Tensors, numbers, text, None, and lists or dicts of these. Anything else,
            numpy scalars and paths included, makes a file that `read_tensors` refuses.

    Raises:
        MachineError: The disk refused.
    """
    # torch turns a failed write into a RuntimeError of its own; from memory it cannot fail,
    # and the disk's errors reach atomic_write as they are.
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
        found = f"not a file of torch (it begins with {head[:4].hex(' ')})"
        raise WeightsError(str(path), found, EXPECTED, AGAIN)
    file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = "a pickle of Python objects, which could run code"
        found += f" (it asks for {asked[1]})" if asked else ""
        raise WeightsError(str(path), found, EXPECTED, RESAVE) from error
    except Exception as error:  # damaged pickles raise nearly every built-in type
        found = f"truncated or damaged ({_type(error)})"
        raise WeightsError(str(path), found, EXPECTED, AGAIN) from error


def _refuse_foreign(path: Path, head: bytes) -> None:
    """Refuse what commonly stands in a weights file's place, by its first bytes."""
    text = head.lstrip().lower()
    tells = (
        (not head, "empty (0 bytes)", AGAIN),
        (head.count(0) == len(head), "filled with zeros", AGAIN),
        (
            text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")),
            "an HTML page, not weights",
            "Download the file itself; the address led to a web page",
        ),
        (
            text.startswith(b"version https://git-lfs"),
            "a Git LFS pointer, not the weights it points to",
            "Run git lfs pull where it comes from",
        ),
        (
            head[257:262] == b"ustar",
            "a tar archive of torch before 0.2, an unsupported kind",
            RESAVE,
        ),
    )
    for matches, found, next_step in tells:
        if matches:
            raise WeightsError(str(path), found, EXPECTED, next_step)


def _check_zip(path: Path, file: IO[bytes]) -> None:
    """Refuse zips that are damaged or not of `torch.save`."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
            if "constants.pkl" in names:
                found = "a TorchScript archive, an unsupported kind"
                raise WeightsError(str(path), found, EXPECTED, RESAVE)
            if "data.pkl" not in names:
                raise WeightsError(str(path), "a zip, but not of torch.save", EXPECTED, RESAVE)
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        found = f"truncated or damaged ({error})"
        raise WeightsError(str(path), found, EXPECTED, AGAIN) from error
    except (zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        found = f"a damaged zip ({_type(error)})"
        raise WeightsError(str(path), found, EXPECTED, AGAIN) from error
    if damaged:
        found = f"damaged (the checksum of {damaged} differs)"
        raise WeightsError(str(path), found, EXPECTED, AGAIN)


def _read_safetensors(path: Path, data: bytes) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise MachineError(
            str(path),
            "reading it needs the safetensors package, which is not installed",
            next_step='Run pip install "mnet-cli[timm]"',
        ) from error
    try:
        content: dict[str, Any] = load(data)
    except SafetensorError as error:
        found = f"truncated, damaged or not of safetensors ({error})"
        raise WeightsError(str(path), found, EXPECTED, AGAIN) from error
    return content


def _type(value: object) -> str:
    return type(value).__name__
