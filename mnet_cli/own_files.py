"""Which files this user's mnet wrote itself, by their hashes.

TorchScript and torch.export archives can hold more than a network: loading a stranger's may
write files or run code, and no check of ours would see all of it. So mnet runs those that it
wrote itself and refuses others. The list lies in the user's data folder, a hash a line.
"""

import hashlib
from pathlib import Path

import platformdirs

from mnet_cli.atomic import atomic_write
from mnet_cli.errors import WeightsError


def sign(content: bytes) -> None:
    """Remember that these bytes are our own.

    Raises:
        MachineError: The list cannot be written.
    """
    known = _known()
    known[hashlib.sha256(content).hexdigest()] = None
    path = _list()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.writelines(f"{digest}\n" for digest in known)


def read_own(path: Path) -> bytes:
    """Read a file that `sign` has seen.

    Raises:
        WeightsError: It cannot be read, or comes from elsewhere.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        found = f"cannot be read ({error.strerror or error})"
        raise WeightsError(str(path), found, "an exported file was expected") from error
    if hashlib.sha256(content).hexdigest() not in _known():
        raise WeightsError(
            str(path),
            "not written by this user's mnet export, and such files can run code",
            "a file of your own was expected",
            "Export it here from its checkpoint, or take its ONNX file",
        )
    return content


def _list() -> Path:
    return platformdirs.user_data_path("mnet") / "exported.txt"


def _known() -> dict[str, None]:
    try:
        return dict.fromkeys(_list().read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return {}
