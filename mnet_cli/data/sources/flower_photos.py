"""TensorFlow's flower photos: 3670 photographs of five flowers, Creative Commons Attribution.

The archive is a gzipped tar (POSIX.1-2001, "ustar" and "pax" interchange formats). It is
unpacked member by member, with nothing taken on trust but the names of files and folders.
"""

import gzip
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mnet_cli.errors import DataError
from mnet_cli.system.atomic import atomic_folder, atomic_write
from mnet_cli.system.download import download
from mnet_cli.system.text import printable

URL = "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"
SHA256 = "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"
SIZE = 228_813_984  # bytes
NAME = "flower_photos"

_MAX_BYTES = 1 << 29  # photographs hardly shrink: unpacked they take about SIZE
_MAX_MEMBERS = 10_000
_MAX_DEPTH = 16
_MAX_NAME = 255  # bytes of one name, as on most file systems
_HEADERS = 4 * tarfile.BLOCKSIZE  # tar's own bytes a member: headers and padding
_CHUNK = 1 << 16
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, ValueError, RecursionError)


def fetch_flower_photos(
    folder: Path,
    *,
    url: str = URL,
    sha256: str = SHA256,
    size: int | None = SIZE,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Download the flower photos and unpack them to `folder`/flower_photos, a folder of classes.

    The archive is removed once it is unpacked; until then a further call goes on from what
    has arrived. Photos that stand there already are taken as they are, for they get their
    name only when all are there.

    Args:
        folder: Where to put them; made if need be.
        url: Address of the archive.
        sha256: Its digest in hex.
        size: Its size in bytes.
        on_progress: Called with bytes downloaded and bytes in all.

    Returns:
        The folder with one folder a class.

    Raises:
        MachineError: The network or the disk refuses.
        DataError: The archive is not what it should be.
    """
    photos = folder / NAME
    if photos.is_dir() and any(photos.iterdir()):
        return photos
    archive = download(
        url, folder / f"{NAME}.tgz", sha256=sha256, size=size, on_progress=on_progress
    )
    extract_archive(archive, photos, max_bytes=_MAX_BYTES, max_members=_MAX_MEMBERS)
    archive.unlink()
    return photos


def extract_archive(archive: Path, destination: Path, *, max_bytes: int, max_members: int) -> Path:
    """Unpack a .tgz that holds one folder, so that `destination` is that folder.

    Only regular files and folders are accepted, below the one folder; hidden files, such as
    macOS adds, are left out. `destination` appears complete or not at all.

    Args:
        archive: A gzipped tar file.
        destination: A new or empty folder.
        max_bytes: The most that all files together may take, in bytes.
        max_members: The most entries that the archive may have.

    Returns:
        `destination`.

    Raises:
        DataError: The archive is missing, damaged, too large, empty or hostile (absolute
            names, "..", links, devices, one name twice); or `destination` is not empty.
        MachineError: The disk refuses.
    """
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise DataError(
            printable(str(destination)),
            "exists and is not empty",
            next_step="Choose a new or empty folder",
        )
    if not archive.is_file():
        raise _refusal(archive, "is not a file")
    limit = max_bytes + _HEADERS * (max_members + 1)
    with atomic_folder(destination) as folder, _CappedGzip(archive, limit) as stream:
        try:
            _unpack(archive, stream, folder, max_bytes, max_members)
        except _DAMAGED as error:
            raise _refusal(archive, f"is damaged ({printable(str(error))})") from error
        if not any(folder.iterdir()):
            raise _refusal(archive, "holds no files")
    return destination


class _CappedGzip(gzip.GzipFile):
    """A gzip file that refuses to unpack to more than `limit` bytes.

    The sizes of members are known before they are read, but tarfile reads extended headers
    of any size to memory without asking.
    """

    def __init__(self, archive: Path, limit: int) -> None:
        super().__init__(archive, "rb")
        self.archive = archive
        self.left = limit

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _refusal(self.archive, "unpacks to more than it may")
        return data


def _unpack(
    archive: Path, stream: _CappedGzip, folder: Path, max_bytes: int, max_members: int
) -> None:
    """Write the files of a tar stream into `folder`."""
    tops = set()
    # Blocks of a header's size keep what follows the last header readable from `stream`.
    with tarfile.open(fileobj=stream, mode="r|", bufsize=tarfile.BLOCKSIZE) as tar:
        for count, member in enumerate(tar, 1):
            max_bytes -= member.size
            if count > max_members or max_bytes < 0:
                raise _refusal(archive, "unpacks to more than it may")
            top, *parts = _safe_parts(archive, member)
            if any(part.startswith(".") for part in (top, *parts)):
                continue
            tops.add(top)
            if len(tops) > 1 or (member.isfile() and not parts):
                raise _refusal(archive, f"holds {printable(top)!r} beside its one folder")
            if member.isfile():
                _write_member(archive, tar, member, folder.joinpath(*parts))
    while data := stream.read(_CHUNK):  # tarfile takes a damaged header for the end
        if data.strip(b"\0"):
            raise tarfile.ReadError("a header is damaged")


def _safe_parts(archive: Path, member: tarfile.TarInfo) -> tuple[str, ...]:
    """The names on the way to a member; anything but a plain file or folder is refused."""
    name = member.name
    parts = PurePosixPath(name).parts
    hostile = (
        not parts
        or name.startswith("/")
        or ".." in parts
        or any(char in name for char in "\\:\0")  # separators and streams on Windows
        or len(parts) > _MAX_DEPTH
        or any(len(part.encode(errors="surrogateescape")) > _MAX_NAME for part in parts)
    )
    if hostile:
        raise _refusal(archive, f"member {printable(name[:80])!r} has a name that leads elsewhere")
    if member.issparse() or not (member.isdir() or member.isfile()):
        raise _refusal(
            archive, f"member {printable(name[:80])!r} is neither a plain file nor a folder"
        )
    return parts


def _write_member(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, to: Path) -> None:
    """Write one file; its folders are made if need be."""
    content = tar.extractfile(member)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        twice = to.exists()
    except (FileExistsError, NotADirectoryError):
        twice = True
    if twice or content is None:
        raise _refusal(archive, f"member {printable(member.name[:80])!r} is there twice")
    with atomic_write(to) as file:
        while data := content.read(_CHUNK):
            file.write(data)


def _refusal(archive: Path, found: str) -> DataError:
    return DataError(
        printable(str(archive)),
        f"{found}; it must be a .tgz of one folder with plain files",
        next_step="Delete it and download it again",
    )
