"""Download one file: resumable, verified by its hash, over https only."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from mnet_cli.errors import MachineError
from mnet_cli.system.atomic import not_writable
from mnet_cli.system.hashing import file_sha256

CHUNK = 1 << 16  # bytes
SIZE_CAP = 1 << 30  # bytes; several times the largest file that mnet asks for
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class _Job:
    """The parameters of one download."""

    url: str
    destination: Path
    sha256: str  # the digest or its beginning, lower case
    cap: int  # bytes
    timeout: float  # seconds

    @property
    def part(self) -> Path:
        return self.destination.with_name(f"{self.destination.name}.part")

    def failure(self, found: str) -> MachineError:
        return MachineError(
            self.url,
            f"{found}; this file must have sha256 {self.sha256}",
            next_step=f"Try again, or download it elsewhere and save it as {self.destination}",
        )


def download(
    url: str,
    destination: Path,
    *,
    sha256: str,
    size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    timeout: float = 30.0,
) -> Path:
    """Download a file to `destination`, unless a file with the right hash is there already.

    Received bytes are stored in `<name>.part` beside the destination, and the next call
    continues from there if the server supports it (RFC 9110, section 14). A destination that
    exists is hashed at every call and replaced if its hash is wrong.

    Args:
        url: An https address; http is accepted for this machine only.
        destination: The final name; its folder is created if it is missing.
        sha256: The expected digest in hex, or at least its first eight digits.
        size: The maximum number of bytes to receive; None means 1 GiB.
        on_progress: Called with bytes received and bytes in total (0 if unknown).
        timeout: Seconds without any data after which to give up.

    Returns:
        `destination`.

    Raises:
        MachineError: No connection, an error from the server, a stall, a short, long or
            wrong file, an address that is not https, or a disk that refuses.
        ValueError: `sha256` is shorter than eight digits.
    """
    if len(sha256) < 8:
        raise ValueError("sha256 must give at least eight digits")
    job = _Job(url, destination, sha256.lower(), size or SIZE_CAP, timeout)
    try:
        if destination.is_file() and file_sha256(destination).startswith(job.sha256):
            return destination
        _check_address(job, url)
        destination.parent.mkdir(parents=True, exist_ok=True)
        with job.part.open("ab") as file:
            _claim(job, file)
            _receive(job, file, on_progress)
            file.flush()
            os.fsync(file.fileno())
            found = file_sha256(job.part)
            if not found.startswith(job.sha256):
                job.part.unlink()
                raise job.failure(f"the server sent a file with sha256 {found}")
            # The folder is not synced as in `atomic`: a lost rename costs only another download.
            job.part.replace(destination)
    except OSError as error:
        raise not_writable(destination, error) from error
    return destination


def _receive(job: _Job, file: IO[bytes], on_progress: Callable[[int, int], None] | None) -> None:
    """Append to `file`, or write it from the start, until the server has sent everything."""
    with _network(job):
        response, done = _open(job, offset=file.tell())
    file.truncate(done)
    with response:
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else 0
        while True:
            with _network(job):
                chunk = response.read1(CHUNK)  # unlike read, returns the bytes before a stall
            if not chunk:
                break
            done += len(chunk)
            if max(done, total) > job.cap:
                job.part.unlink()
                raise job.failure(f"the server sends more than {job.cap} bytes")
            file.write(chunk)
            if on_progress:
                on_progress(done, total)
    if done < total:
        raise job.failure(f"the connection closed after {done} of {total} bytes")


def _open(job: _Job, offset: int) -> tuple[HTTPResponse, int]:
    """Request the bytes from `offset` on; return the response and its real first byte."""
    headers = {"User-Agent": "mnet"} | ({"Range": f"bytes={offset}-"} if offset else {})
    opener = build_opener(_HttpsRedirects(job))
    try:
        response = opener.open(Request(job.url, headers=headers), timeout=job.timeout)
    except HTTPError as error:
        if not (offset and error.code == 416):  # the .part file is longer than the file
            raise
        error.close()
        return _open(job, 0)
    if response.status == 200:
        return response, 0
    if offset and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
        return response, offset
    response.close()
    if offset:
        return _open(job, 0)
    raise job.failure(f"the server answered {response.status}")


class _HttpsRedirects(HTTPRedirectHandler):
    """Follow redirects to https addresses only."""

    def __init__(self, job: _Job) -> None:
        self.job = job

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        fp.close()  # urllib would leave it open when the check raises
        _check_address(self.job, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(job: _Job, address: str) -> None:
    parts = urlsplit(address)
    at_home = parts.hostname in LOOPBACK and not job.url.startswith("https:")
    if parts.scheme != "https" and not (parts.scheme == "http" and at_home):
        leads = "" if address == job.url else f"it leads to {address}, which is "
        raise job.failure(f"{leads}not an https address")


def _claim(job: _Job, file: IO[bytes]) -> None:
    """Prevent a second process from writing the same .part file (POSIX)."""
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise MachineError(
            str(job.part),
            "another process is downloading this file",
            next_step="Start again when it has finished",
        ) from error
    except OSError:  # a network folder without locks; the hash is still checked
        return


@contextmanager
def _network(job: _Job) -> Iterator[None]:
    """Turn every network error into a MachineError that says what to do."""
    try:
        yield
    except HTTPError as error:
        error.close()
        raise job.failure(f"the server answered {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, TimeoutError):
            found = f"no data received for {job.timeout:g} seconds"
        elif isinstance(cause, socket.gaierror):
            found = "the host name cannot be resolved (no network?)"
        else:
            found = f"the connection failed ({cause})"
        raise job.failure(found) from error
