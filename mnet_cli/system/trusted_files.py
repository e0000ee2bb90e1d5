"""Which files this user's mnet wrote itself, by their hashes.

TorchScript and torch.export archives can hold more than a network: loading one from elsewhere may
write files or run code, and no check of ours would see all of it. So mnet runs those that it
wrote itself and refuses others. The list lies in the user's data folder, a hash a line.
"""

import hashlib
from pathlib import Path

import platformdirs

from mnet_cli.errors import WeightsError
from mnet_cli.system.atomic import not_writable


def trust(content: bytes) -> None:
    """Remember that these bytes are our own.

    Raises:
        MachineError: The list cannot be written.
    """
    path, digest = _list(), hashlib.sha256(content).hexdigest()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="ascii") as file:  # grows by lines, for two at once too
            file.write(f"\n{digest}\n")
    except OSError as error:
        raise not_writable(path, error) from error


def read_trusted(path: Path) -> bytes:
    """Read a file that `trust` has seen.

    Raises:
        WeightsError: It cannot be read, or comes from elsewhere.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        found = f"cannot be read ({error.strerror or error})"
        raise WeightsError(
            str(path), found, next_step="Name a file that mnet export wrote"
        ) from error
    if hashlib.sha256(content).hexdigest() not in _known():
        raise WeightsError(
            str(path),
            "not written by this user's mnet export, and such files can run code",
            next_step="Export it here from its checkpoint, or use its ONNX file",
        )
    return content


def _list() -> Path:
    return platformdirs.user_data_path("mnet") / "exported.txt"


def _known() -> set[str]:
    try:
        return set(_list().read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return set()
