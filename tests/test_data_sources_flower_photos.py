"""The flower photos arrive whole, and no archive writes anywhere it should not."""

import gzip
import hashlib
import io
import random
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mnet_cli.data.sources import open_checked
from mnet_cli.data.sources.flower_photos import extract_archive, fetch_flower_photos
from mnet_cli.errors import DataError, MachineError

PHOTOS = {
    f"flower_photos/{name}/{k}.jpg": random.Random(f"{name}{k}").randbytes(3000)
    for name in ("daisy", "roses")
    for k in range(3)
} | {"flower_photos/LICENSE.txt": b"CC-BY"}


def member(name: str, content: bytes = b"x", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def pack(path: Path, members=(), files=PHOTOS) -> Path:
    """A .tgz of one folder with `files`, then `members`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        folder = tarfile.TarInfo("flower_photos")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in files.items():
            info, data = member(name, content)
            tar.addfile(info, io.BytesIO(data))
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def extract(archive: Path, max_bytes=100_000, max_members=100) -> Path:
    return extract_archive(
        archive, archive.parent / "out", max_bytes=max_bytes, max_members=max_members
    )


def refuse(archive: Path, reason: str, **limits) -> None:
    """The archive is refused in one line, and nothing but the archive is left anywhere."""
    before = set(archive.parent.parent.rglob("*"))
    with pytest.raises(DataError, match=reason) as caught:
        extract(archive, **limits)
    assert str(caught.value).isprintable()
    assert set(archive.parent.parent.rglob("*")) == before


@contextmanager
def serving(content: bytes, status: int = 200):
    """A server of this machine alone that answers every request with `content`."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/flower_photos.tgz", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_photos_are_fetched_unpacked_and_left_alone_the_next_time(tmp_path):
    content = pack(tmp_path / "made" / "a.tgz").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    progress = []
    with serving(content) as (url, requests):
        for _ in range(2):
            photos = fetch_flower_photos(
                tmp_path / "data",
                url=url,
                sha256=digest,
                size=len(content),
                on_progress=lambda *step: progress.append(step),
            )
    assert photos == tmp_path / "data" / "flower_photos"
    assert len(requests) == 1
    assert progress[-1] == (len(content), len(content))
    assert open_checked(str(photos))["all"].class_names == ("daisy", "roses")
    assert (photos / "roses" / "1.jpg").read_bytes() == PHOTOS["flower_photos/roses/1.jpg"]
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["flower_photos"]


def test_an_archive_of_another_hash_is_not_unpacked(tmp_path):
    content = pack(tmp_path / "made" / "a.tgz").read_bytes()
    with serving(content) as (url, _), pytest.raises(MachineError):
        fetch_flower_photos(tmp_path / "data", url=url, sha256="0" * 64, size=len(content))
    assert not (tmp_path / "data" / "flower_photos").exists()


def test_a_server_without_the_archive_is_an_error_of_the_network(tmp_path):
    with serving(b"gone", 404) as (url, _), pytest.raises(MachineError):
        fetch_flower_photos(tmp_path / "data", url=url, sha256="0" * 64, size=4)
    assert not (tmp_path / "data" / "flower_photos").exists()


def test_an_archive_that_is_no_archive_is_refused_after_its_download(tmp_path):
    content = b"<html>not today</html>"
    digest = hashlib.sha256(content).hexdigest()
    with serving(content) as (url, _), pytest.raises(DataError, match="damaged"):
        fetch_flower_photos(tmp_path / "data", url=url, sha256=digest, size=len(content))
    assert not (tmp_path / "data" / "flower_photos").exists()


def test_the_destination_stands_for_the_archives_one_folder(tmp_path):
    out = extract(pack(tmp_path / "a.tgz"))
    made = {
        f"flower_photos/{p.relative_to(out).as_posix()}": p.read_bytes()
        for p in out.rglob("*")
        if p.is_file()
    }
    assert made == PHOTOS


def test_names_that_begin_with_dot_slash_and_hidden_files_do_no_harm(tmp_path):
    extra = [
        member("./flower_photos/tulips/1.jpg"),
        member("._flower_photos"),
        member("flower_photos/daisy/._1.jpg"),
    ]
    out = extract(pack(tmp_path / "a.tgz", extra))
    assert (out / "tulips" / "1.jpg").read_bytes() == b"x"
    assert not list(out.parent.rglob("._*"))


@pytest.mark.parametrize(
    "name",
    [
        "../evil.jpg",
        "flower_photos/../../evil.jpg",
        "flower_photos/daisy/../../../evil.jpg",
        "/tmp/evil.jpg",
        "//tmp/evil.jpg",
        "flower_photos\\..\\evil.jpg",
        "C:/evil.jpg",
        "flower_photos/a.jpg:stream",
        "flower_photos/" + "d/" * 40 + "deep.jpg",
        "flower_photos/" + "n" * 300 + ".jpg",
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    refuse(pack(tmp_path / "in" / "a.tgz", [member(name)]), "has a name that leads elsewhere")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
)
def test_links_and_devices_are_refused(tmp_path, kind):
    link = member("flower_photos/link", b"", type=kind, linkname="../../target")
    through = member("flower_photos/link/evil.jpg")
    refuse(pack(tmp_path / "in" / "a.tgz", [link, through]), "neither a plain file nor a folder")


@pytest.mark.parametrize("name", ["other/1.jpg", "loose.jpg", "flower_photos"])
def test_anything_beside_the_one_folder_is_refused(tmp_path, name):
    refuse(pack(tmp_path / "in" / "a.tgz", [member(name)]), "beside its one folder")


@pytest.mark.parametrize("name", ["daisy/1.jpg", "daisy", "daisy/1.jpg/2.jpg"])
def test_a_name_that_stands_for_two_things_is_refused(tmp_path, name):
    refuse(pack(tmp_path / "in" / "a.tgz", [member(f"flower_photos/{name}")]), "there twice")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    bomb = member("flower_photos/bomb.jpg", bytes(5_000_000))
    archive = pack(tmp_path / "in" / "a.tgz", [bomb])
    assert archive.stat().st_size < 100_000
    refuse(archive, "unpacks to more than it may")


def test_an_archive_of_too_many_members_is_refused(tmp_path):
    extra = [member(f"flower_photos/empty/{k}", b"") for k in range(101)]
    refuse(pack(tmp_path / "in" / "a.tgz", extra), "unpacks to more than it may")


def test_a_bomb_in_an_extended_header_is_refused(tmp_path):
    bomb = member("flower_photos/1.jpg", pax_headers={"comment": "x" * 5_000_000})
    refuse(pack(tmp_path / "in" / "a.tgz", [bomb]), "unpacks to more than it may")


def test_limits_are_met_to_the_byte(tmp_path):
    archive = pack(tmp_path / "in" / "a.tgz")
    total = sum(map(len, PHOTOS.values()))
    refuse(archive, "unpacks to more", max_bytes=total - 1)
    refuse(archive, "unpacks to more", max_members=len(PHOTOS))
    extract(archive, max_bytes=total, max_members=len(PHOTOS) + 1)


def test_a_cut_archive_is_refused(tmp_path):
    whole = pack(tmp_path / "whole.tgz").read_bytes()
    archive = tmp_path / "in" / "a.tgz"
    archive.parent.mkdir()
    for length in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        archive.write_bytes(whole[:length])
        refuse(archive, "damaged|holds no files")


def test_a_damaged_header_between_files_is_not_taken_for_the_end(tmp_path):
    tar = bytearray(gzip.decompress(pack(tmp_path / "whole.tgz").read_bytes()))
    tar[tar.index(b"flower_photos/roses/1.jpg")] ^= 1
    archive = tmp_path / "in" / "a.tgz"
    archive.parent.mkdir()
    archive.write_bytes(gzip.compress(tar))
    refuse(archive, "a header is damaged")


def test_a_hundred_flipped_bytes_end_in_an_error_or_the_same_names(tmp_path):
    whole = gzip.decompress(pack(tmp_path / "whole.tgz").read_bytes())
    rng = random.Random(0)
    refused = 0
    for k in range(100):
        tar = bytearray(whole)
        header = rng.choice([p for p in range(0, len(tar), 512) if tar[p : p + 6] == b"flower"])
        tar[header + rng.randrange(512)] = rng.randrange(256)
        archive = tmp_path / f"in{k}" / "a.tgz"
        archive.parent.mkdir()
        archive.write_bytes(gzip.compress(tar, 1))
        try:
            extract(archive)
        except DataError:
            refused += 1
            assert [p.name for p in archive.parent.iterdir()] == ["a.tgz"]
    assert refused > 50


def test_a_missing_archive_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a file"):
        extract(tmp_path / "no.tgz")


def test_an_empty_archive_is_refused(tmp_path):
    refuse(pack(tmp_path / "in" / "a.tgz", files={}), "holds no files")


def test_a_destination_in_use_is_never_touched(tmp_path):
    archive = pack(tmp_path / "a.tgz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("three years")
    with pytest.raises(DataError, match="exists"):
        extract(archive)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]
