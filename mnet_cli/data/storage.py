"""Files on disk, in object stores and on web servers, read whole or in part.

A URL such as s3://bucket/photos.tar is read through fsspec (https://filesystem-spec.readthedocs.io).
Credentials come from where its packages look for them: environment variables, files of the vendor's
tools, the machine's role. What is read of a URL is kept on the local disk in blocks, up to a limit.
"""

import hashlib
import io
import os
import random
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import platformdirs

from mnet_cli.errors import DataError, MachineError, UsageError
from mnet_cli.system.text import printable
from mnet_cli.system.urls import is_url

BLOCK = 1_000_000  # bytes that are read and kept together
CAP_VARIABLE, CAP_GB = "MNET_BLOCKS_GB", 10.0
ATTEMPTS = 5  # at one read
DENIED, MISSING, LATER = (401, 403), (404, 410), (408, 425, 429)  # of HTTP (RFC 9110, 6585, 8470)
FIRST_PAUSE = 0.5  # seconds before the second attempt; each further one waits twice as long
TIMEOUT_VARIABLE, TIMEOUT = "MNET_READ_TIMEOUT", 60.0  # seconds for one read
# What fsspec's packages call the thing that changes with a file's content.
VERSIONS = (
    "ETag", "etag", "md5Hash", "checksum",
    "LastModified", "Last-Modified", "last_modified", "mtime",
)  # fmt: skip
THIS_RUN = secrets.token_hex(8)
PRUNED = 256_000_000  # bytes written between two looks at the size of all blocks


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file, at a path or a URL.

    Attributes:
        name: Its path or URL.
        size: In bytes.
        version: What changes when its content does: a time of change, or a checksum.
    """

    name: str
    size: int
    version: str

    @property
    def key(self) -> str:
        """A name for what is kept of this version of the file."""
        return hashlib.sha256(f"{self.name}\0{self.size}\0{self.version}".encode()).hexdigest()[:32]

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """Read `length` bytes from `start` on; without a length all that follows.

        Raises:
            DataError: The file is missing, or shorter than it was.
            MachineError: It cannot be read.
        """
        stop = self.size if length is None else start + length
        if is_url(self.name):
            content = b"".join(_blocks(self, start, min(stop, self.size)))
        else:
            content = _read_local(self.name, start, stop - start)
        if len(content) != stop - start:
            raise DataError(
                printable(self.name),
                f"ends after {start + len(content):,} bytes where {stop:,} were listed",
                next_step="Copy the file again",
            )
        return content


class StoredStream(io.RawIOBase):
    """A stored file as a stream that is read here and there.

    Args:
        file: The file.
        ahead: The fewest bytes that are read at once; those that follow come from memory.
    """

    def __init__(self, file: StoredFile, ahead: int = 0) -> None:
        self.file, self.ahead, self.place = file, ahead, 0
        self._start, self._content = 0, b""

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.file.size}[whence]
        self.place = base + offset
        return self.place

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, or fewer at the end."""
        stop = self.file.size if size < 0 else min(self.place + size, self.file.size)
        begin = self.place - self._start
        if not (begin >= 0 and stop - self._start <= len(self._content)):
            length = max(stop - self.place, min(self.ahead, self.file.size - self.place))
            self._start, self._content = self.place, self.file.read(self.place, max(0, length))
            begin = 0
        content = self._content[begin : begin + max(0, stop - self.place)]
        self.place += len(content)
        return content


def find_file(place: str) -> StoredFile | None:
    """The file at a path or URL; None if there is none, or a folder.

    Raises:
        UsageError: fsspec does not know the kind of URL.
        MachineError: It cannot be looked up, or an extra is not installed.
    """
    if not is_url(place):
        with suppress(OSError, ValueError):
            if Path(place).is_file():
                return _local(place)
        return None
    try:
        status = _call(place, "info")
    except FileNotFoundError:
        return None
    return _stored(place, status) if status.get("type", "file") == "file" else None


def list_files(folder: str, depth: int = 1, suffix: str = "") -> list[StoredFile]:
    """The files in a folder and below it, sorted by name; none where there is no such folder.

    Their names begin with `folder` as it is given, without slashes at its end, and a slash. Web
    servers have no folders.

    Args:
        folder: A path or URL.
        depth: Levels of folders to look into.
        suffix: Of the files; others are left out.

    Raises:
        UsageError, MachineError: As `find_file` does.
        DataError: A folder cannot be read.
    """
    if not is_url(folder):
        return sorted(_local_files(folder, depth, suffix), key=lambda file: file.name)
    base, protocol = _path_of(folder)
    if protocol in ("http", "https"):
        return []
    try:
        found = _call(folder, "find", maxdepth=depth, detail=True, withdirs=False)
    except FileNotFoundError:
        return []
    files = []
    for name, status in found.items():
        below = name[len(base) :].strip("/") if name.startswith(base) else name.rpartition("/")[2]
        if status["type"] == "file" and below.endswith(suffix):
            files.append(_stored(f"{folder.rstrip('/')}/{below}", status))
    return sorted(files, key=lambda file: file.name)


def _local_files(folder: str, depth: int, suffix: str) -> Iterator[StoredFile]:
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise DataError(printable(folder), f"cannot be read ({error.strerror or error})") from error
    with entries:  # not as a list: there may be millions
        for entry in entries:
            name = f"{folder.rstrip('/')}/{entry.name}"
            try:
                if entry.name.endswith(suffix) and entry.is_file():
                    yield _local(name)
                elif depth > 1 and entry.is_dir():
                    yield from _local_files(name, depth - 1, suffix)
            except OSError:  # a link that leads nowhere, or a file that is being removed
                continue


def _local(path: str) -> StoredFile:
    status = os.stat(path)  # noqa: PTH116  a Path would drop a leading ./
    return StoredFile(path, status.st_size, f"{status.st_mtime_ns} {status.st_ctime_ns}")


def _stored(url: str, status: dict[str, Any]) -> StoredFile:
    """A file from what fsspec says of it."""
    size = status.get("size")
    if size is None:
        raise MachineError(
            printable(url),
            "the server does not say how long the file is",
            next_step="Copy the file, or put it on a server that does",
        )
    # Where nothing tells versions apart, what is kept is of use to this run only.
    version = next((str(status[name]) for name in VERSIONS if status.get(name)), THIS_RUN)
    return StoredFile(url, int(size), version)


def _read_local(name: str, start: int, length: int) -> bytes:
    try:
        with Path(name).open("rb", buffering=0) as file:
            file.seek(start)
            content = file.read(length)
            while len(content) < length and (more := file.read(length - len(content))):
                content += more
            return content
    except FileNotFoundError as error:
        raise DataError(printable(name), "does not exist any more") from error
    except OSError as error:
        raise DataError(printable(name), f"cannot be read ({error.strerror or error})") from error


def _blocks(file: StoredFile, start: int, stop: int) -> Iterator[bytes]:
    """The bytes from `start` to `stop` of a file at a URL, from blocks that are kept on disk."""
    folder = platformdirs.user_cache_path("mnet") / "blocks" / file.key
    first, last = start // BLOCK, (stop - 1) // BLOCK
    for number in range(first, last + 1):
        path, begins = folder / f"{number:08x}", number * BLOCK
        length = min(BLOCK, file.size - begins)
        content = _read_block(path, length)
        if content is None:
            content = _fetch(file, begins, length)
            _write_block(path, content)
        yield content[max(0, start - begins) : stop - begins]


def _fetch(file: StoredFile, start: int, length: int) -> bytes:
    try:
        content: bytes = _call(file.name, "cat_file", start=start, end=start + length)
    except FileNotFoundError as error:
        raise DataError(printable(file.name), "does not exist any more") from error
    return content


def read_unpacked(key: str, number: int, unpack: Callable[[], Sequence[bytes]]) -> bytes:
    """One of several values that can only be unpacked together; they are kept as blocks are.

    Args:
        key: A name for all of them.
        number: Which of them.
        unpack: Gives all; called if they are not kept.
    """
    path = platformdirs.user_cache_path("mnet") / "blocks" / key / "values"
    with suppress(OSError, struct.error), path.open("rb") as file:
        file.seek(8 * number)
        start, stop = struct.unpack("<2q", file.read(16))
        file.seek(start)
        content = file.read(stop - start)
        if len(content) == stop - start:
            os.utime(path)
            return content
    values = unpack()
    places = list(accumulate((len(value) for value in values), initial=8 * (len(values) + 1)))
    _write_block(path, b"".join((struct.pack(f"<{len(places)}q", *places), *values)))
    return values[number]


def _read_block(path: Path, length: int) -> bytes | None:
    """A block that is kept on disk, marked as used now; None if it is not there or not whole."""
    with suppress(OSError):
        content = path.read_bytes()
        if len(content) == length:
            os.utime(path)
            return content
    return None


def _write_block(path: Path, content: bytes) -> None:
    """Keep a block, unless the disk refuses; several processes may keep the same."""
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(content)
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        return
    _Written.bytes += len(content)
    if _Written.bytes >= PRUNED:
        _Written.bytes = 0
        prune_blocks()


class _Written:
    """Bytes of blocks that this process has written since it looked at their size."""

    bytes = PRUNED  # the first block makes it look


def blocks_cap() -> int:
    """The most bytes that blocks of files at URLs may take on disk.

    Raises:
        UsageError: `MNET_BLOCKS_GB` is not a number of at least 0.
    """
    return int(_number(CAP_VARIABLE, CAP_GB) * 1e9)


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable, str(default))
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1e9:
        raise UsageError(variable, f'"{text}"', next_step="Set it to a number of at least 0")
    return number


def prune_blocks() -> None:
    """Delete the blocks that were used longest ago, until the others fit below the limit."""
    cap, found = blocks_cap(), []
    for path in (platformdirs.user_cache_path("mnet") / "blocks").glob("*/*"):
        with suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    used = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if used <= cap:
            return
        with suppress(OSError):
            path.unlink()
            used -= size


def _call(url: str, method: str, **options: Any) -> Any:
    """Call a method of the file system of a URL with the path in it, again if that may help.

    Raises:
        FileNotFoundError: There is no such file.
        MachineError: Access is denied, the store refuses, or it does not answer in time, several
            times.
    """
    from fsspec.asyn import AsyncFileSystem, sync

    path, protocol = _path_of(url)
    timeout = _number(TIMEOUT_VARIABLE, TIMEOUT)
    pause, reason = FIRST_PAUSE, ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause * random.uniform(0.75, 1.25))  # not all workers at the same moment
            pause *= 2
        try:
            store = _filesystem(protocol, os.getpid())
            if isinstance(store, AsyncFileSystem):
                work = getattr(store, f"_{method}")
                return sync(store.loop, work, path, timeout=timeout, **options)
            return getattr(store, method)(path, **options)
        except (MachineError, LookupError, TypeError, AttributeError):
            raise  # not of the store
        except Exception as error:  # each package has errors of its own
            status, reason = _status(error), _reason(error)
            if status in DENIED or isinstance(error, PermissionError) or "Credential" in reason:
                raise MachineError(
                    printable(url),
                    f"access denied ({reason})",
                    next_step="Give credentials as the package for that store expects, such as "
                    "AWS_PROFILE or GOOGLE_APPLICATION_CREDENTIALS",
                ) from error
            # fsspec says "not found" of any failure of HTTP; its cause tells them apart.
            unknown = status is None and error.__cause__ is None
            if status in MISSING or (isinstance(error, FileNotFoundError) and unknown):
                raise FileNotFoundError(url) from error
            if status is not None and status < 500 and status not in LATER:
                break
    raise MachineError(
        printable(url),
        f"cannot be read: {attempt + 1} attempts failed, the last one with {reason}",
        next_step="Check the network and the server, then run the command again",
    )


def _status(error: BaseException) -> int | None:
    """The status of HTTP behind an error of aiohttp or botocore; None if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        status = getattr(seen, "status", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", status)
        if isinstance(status, int):
            return status
        seen = seen.__cause__
    return None


def _reason(error: BaseException) -> str:
    """An error of a package in a few words; its own words may hold credentials."""
    status, cause = _status(error), error.__cause__ or error
    return type(cause).__name__ + (f", HTTP status {status}" if status else "")


def _path_of(url: str) -> tuple[str, str]:
    """The path in the file system of a URL, and its protocol."""
    from fsspec.core import split_protocol
    from fsspec.registry import get_filesystem_class

    protocol, _ = split_protocol(url)
    try:
        kind = get_filesystem_class(protocol)
    except ImportError as error:
        raise MachineError(
            printable(url),
            f"reading {protocol}:// needs a package that is not installed",
            next_step='Run: pip install "mnet-cli[cloud]"',
        ) from error
    except ValueError as error:
        raise UsageError(
            printable(url),
            f"unknown kind of URL, {protocol}://",
            next_step="Use https://, s3://, gs:// or another that fsspec knows",
        ) from error
    return kind._strip_protocol(url), protocol


@cache
def _filesystem(protocol: str, process: int) -> Any:
    """A file system; each process has its own, because its threads do not survive a fork."""
    del process  # a part of the cache's key
    import fsspec

    return fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False)
