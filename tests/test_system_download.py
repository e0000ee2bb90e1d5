"""Downloads from a server on this machine, well-behaved and otherwise."""

import errno
import fcntl
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mnet_cli.errors import MachineError
from mnet_cli.system.download import download

DATA = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves DATA at every path; what the path says decides how."""

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.starts.append(start)
        match self.path:
            case "/missing":
                self.send_error(404)
            case "/broken":
                self.send_error(500)
            case "/away":
                self.redirect("http://example.com/file")
            case "/near":
                self.redirect("/file")
            case "/local":
                self.redirect("file:///etc/hostname")
            case "/no-range":
                self.answer(200, DATA)
            case "/odd-range":
                if start:
                    self.answer(206, DATA[7:], {"Content-Range": f"bytes 7-{len(DATA)}/*"})
                else:
                    self.answer(200, DATA)
            case "/short":
                self.answer(200, DATA[:1000], length=len(DATA))
            case "/stall":
                self.answer(200, DATA[:1000], length=len(DATA))
                self.wfile.flush()
                self.server.released.wait()
            case "/unsized":
                self.answer(200, DATA, length=None)
            case _ if start >= len(DATA):
                self.send_error(416)
            case _ if start:
                span = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
                self.answer(206, DATA[start:], {"Content-Range": span})
            case _:
                self.answer(200, DATA)

    def redirect(self, target: str) -> None:
        self.answer(302, b"", {"Location": target})

    def answer(
        self, status: int, body: bytes, headers: dict | None = None, length: int | None = -1
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def server(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.starts = []
        server.released = threading.Event()
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def failure(url: str, destination: Path, **options) -> str:
    """The line of a failing download, which always tells the way around."""
    options = {"sha256": SHA256, "timeout": 5.0} | options
    with pytest.raises(MachineError) as caught:
        download(url, destination, **options)
    line = str(caught.value)
    assert line.startswith(url)
    assert options["sha256"] in line
    assert f"save it as {destination}" in line
    return line


def test_a_file_is_downloaded_whole_with_progress(server, tmp_path):
    path, steps = tmp_path / "new" / "a.pth", []
    result = download(
        f"{server.address}/file",
        path,
        sha256=SHA256,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    assert result == path
    assert path.read_bytes() == DATA
    assert steps[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert list(path.parent.iterdir()) == [path]


def test_eight_digits_of_the_hash_are_enough_and_fewer_are_not(server, tmp_path):
    url = f"{server.address}/file"
    download(url, tmp_path / "a", sha256=SHA256[:8].upper())
    with pytest.raises(ValueError, match="eight digits"):
        download(url, tmp_path / "b", sha256=SHA256[:7])


def test_a_file_with_the_right_hash_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "a").write_bytes(DATA)
    assert download(f"{server.address}/file", tmp_path / "a", sha256=SHA256) == tmp_path / "a"
    assert server.starts == []


@pytest.mark.parametrize("poison", [b"", b"poison", DATA[:-1], DATA + b"x"])
def test_a_file_with_a_wrong_hash_is_replaced(server, tmp_path, poison):
    (tmp_path / "a").write_bytes(poison)
    download(f"{server.address}/file", tmp_path / "a", sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_part_is_gone_on_with(server, tmp_path):
    (tmp_path / "a.part").write_bytes(DATA[:1234])
    download(f"{server.address}/file", tmp_path / "a", sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == DATA
    assert server.starts == [1234]
    assert not (tmp_path / "a.part").exists()


@pytest.mark.parametrize(("path", "starts"), [("no-range", [1234]), ("odd-range", [1234, 0])])
def test_a_server_that_cannot_resume_sends_all_again(server, tmp_path, path, starts):
    (tmp_path / "a.part").write_bytes(DATA[:1234])
    download(f"{server.address}/{path}", tmp_path / "a", sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == DATA
    assert server.starts == starts


def test_a_part_as_long_as_the_file_is_fetched_anew(server, tmp_path):
    (tmp_path / "a.part").write_bytes(b"x" * len(DATA))
    download(f"{server.address}/file", tmp_path / "a", sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == DATA
    assert server.starts == [len(DATA), 0]


def test_a_size_that_is_not_told_is_no_obstacle(server, tmp_path):
    totals = []
    download(
        f"{server.address}/unsized",
        tmp_path / "a",
        sha256=SHA256,
        on_progress=lambda _, total: totals.append(total),
    )
    assert set(totals) == {0}


def test_a_wrong_hash_leaves_no_file_and_no_part(server, tmp_path):
    line = failure(f"{server.address}/file", tmp_path / "a", sha256="0" * 64)
    assert f"sent a file with sha256 {SHA256}" in line
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_hash_leaves_the_old_file(server, tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    failure(f"{server.address}/file", tmp_path / "a", sha256="0" * 64)
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize(("path", "words"), [("missing", "404"), ("broken", "500")])
def test_an_error_of_the_server_is_told(server, tmp_path, path, words):
    assert f"the server answered {words}" in failure(f"{server.address}/{path}", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_short_body_is_told_and_kept_for_the_next_call(server, tmp_path):
    line = failure(f"{server.address}/short", tmp_path / "a")
    assert f"closed after 1000 of {len(DATA)} bytes" in line
    assert not (tmp_path / "a").exists()
    download(f"{server.address}/file", tmp_path / "a", sha256=SHA256)
    assert server.starts == [0, 1000]


def test_a_stall_is_given_up_and_what_came_is_kept(server, tmp_path):
    line = failure(f"{server.address}/stall", tmp_path / "a", timeout=0.2)
    assert "no data received for 0.2 seconds" in line
    assert (tmp_path / "a.part").read_bytes() == DATA[:1000]


@pytest.mark.parametrize("path", ["file", "unsized"])
def test_more_bytes_than_allowed_are_not_taken(server, tmp_path, path):
    line = failure(f"{server.address}/{path}", tmp_path / "a", size=1000)
    assert "more than 1000 bytes" in line
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        assert "the connection failed" in failure(url, tmp_path / "a")


def test_a_name_that_cannot_be_resolved_is_told(tmp_path, monkeypatch):
    def unresolved(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    assert "cannot be resolved" in failure("https://absent.example/file", tmp_path / "a")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/file",
        "http://127.0.0.1@example.com/file",
        "http://localhost.example.com/file",
        "ftp://127.0.0.1/file",
        "file:///etc/hostname",
    ],
)
def test_only_https_leaves_this_machine(tmp_path, url):
    assert "not an https address" in failure(url, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_is_followed_but_not_off_https(server, tmp_path):
    download(f"{server.address}/near", tmp_path / "a", sha256=SHA256)
    line = failure(f"{server.address}/away", tmp_path / "b")
    assert "it leads to http://example.com/file, which is not an https address" in line
    assert "not allowed" in failure(f"{server.address}/local", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_two_processes_do_not_write_one_part(server, tmp_path):
    with (tmp_path / "a.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(MachineError, match="another process is downloading"):
            download(f"{server.address}/file", tmp_path / "a", sha256=SHA256)
    download(f"{server.address}/file", tmp_path / "a", sha256=SHA256)


def test_a_full_disk_is_told_apart_from_the_network(server, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match=r"cannot be written \(No space left"):
        download(f"{server.address}/file", tmp_path / "a", sha256=SHA256)
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_made_is_told(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MachineError, match="cannot be written"):
        download(f"{server.address}/file", tmp_path / "file" / "a", sha256=SHA256)
