import errno
import hashlib
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import PIL
import platformdirs
import pytest
import simplejpeg
from PIL import Image

from mnet_cli.data import images
from mnet_cli.data import validate as check
from mnet_cli.data.image_files import FileImage
from mnet_cli.data.validate import same_bytes


def check_images(paths, on_progress=None):
    return check.check_images([*map(FileImage, paths)], on_progress)


@pytest.fixture
def files(photos, tmp_path):
    good = sorted((photos / "val").rglob("*.jpg"))[:2]
    twin, bad, gone = tmp_path / "twin.jpg", tmp_path / "bad.jpg", tmp_path / "gone.jpg"
    twin.write_bytes(good[0].read_bytes())
    bad.write_text("no image")
    return [*good, twin, bad, gone]


def test_faults_are_found_and_good_images_pass(files):
    checked = check_images(files)
    assert list(checked.faults) == [3, 4]
    assert "not an image" in checked.faults[3]
    assert "cannot be read" in checked.faults[4]
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in files[:4]]
    assert [row.tobytes() for row in checked.sha256] == [*digests, bytes(32)]


def test_same_bytes_are_grouped(files):
    assert same_bytes(check_images(files).sha256) == [[0, 2]]


def test_unchanged_files_are_not_decoded_again(files, monkeypatch):
    first = check_images(files)
    monkeypatch.setattr(check, "decode_image", None)  # any use would raise
    again = check_images(files[:4])
    assert np.array_equal(again.sha256, first.sha256[:4])
    assert again.faults == {3: first.faults[3]}


def test_changed_file_is_checked_again(files):
    assert 2 not in check_images(files).faults
    files[2].write_text("broken meanwhile")
    assert 2 in check_images(files).faults


def test_another_decoder_decides_anew(tmp_path, monkeypatch):
    path = tmp_path / "a.webp"
    Image.new("RGB", (80, 80)).save(path)
    with monkeypatch.context() as patch:
        patch.setattr(images, "FORMATS", ("JPEG", "PNG"))
        assert "not an image" in check_images([path]).faults[0]
    assert 0 in check_images([path]).faults
    monkeypatch.setattr(check, "DECODER", f"{check.DECODER}, later")
    assert check_images([path]).faults == {}


def test_the_decoder_is_known_by_the_versions_of_its_parts():
    assert f"Pillow {PIL.__version__}" in images.DECODER
    assert f"simplejpeg {simplejpeg.__version__}" in images.DECODER
    assert f"rules {images.RULES}" in images.DECODER


def test_the_memory_of_an_earlier_version_is_passed_over(files):
    path = platformdirs.user_cache_path("mnet", ensure_exists=True) / "checked-images.sqlite"
    with closing(sqlite3.connect(path)) as memory, memory:
        memory.execute("CREATE TABLE stamped (path TEXT PRIMARY KEY, size INTEGER)")
        memory.execute("INSERT INTO stamped VALUES ('a.jpg', 3)")
    first = check_images(files)
    assert list(first.faults) == [3, 4]
    assert np.array_equal(check_images(files).sha256, first.sha256)


def test_nothing_is_written_beside_the_images(files, tmp_path):
    before = sorted(tmp_path.iterdir())
    check_images(files)
    assert sorted(tmp_path.iterdir()) == before


def test_progress_reaches_the_total(files):
    seen = []
    check_images(files, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)


def test_unwritable_cache_folder_costs_only_the_memory(files, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/no-folder")
    assert list(check_images(files).faults) == [3, 4]


@pytest.mark.parametrize("values", ["sha256 = 'text'", "sha256 = zeroblob(32)", "fault = NULL"])
def test_what_a_stranger_put_into_the_memory_is_not_believed(files, values):
    first = check_images(files)
    path = platformdirs.user_cache_path("mnet") / "checked-images.sqlite"
    with closing(sqlite3.connect(path)) as memory, memory:
        memory.execute(f"UPDATE outcomes SET {values} WHERE fault = ''")
    again = check_images(files)
    assert np.array_equal(again.sha256, first.sha256)
    assert again.faults == first.faults


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_checked_again(tmp_path):
    path, other = tmp_path / "a.bmp", tmp_path / "b.bmp"
    Image.new("RGB", (8, 8), "red").save(path)
    Image.new("RGB", (8, 8), "blue").save(other)
    shutil.copystat(path, other)
    first = check_images([path]).sha256
    shutil.copy2(other, path)
    assert not np.array_equal(check_images([path]).sha256, first)


def test_a_read_that_failed_once_is_tried_again(photos, monkeypatch):
    path = next(photos.rglob("*.jpg"))
    real = Path.read_bytes

    def fails(self):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fails)
    assert check_images([path]).faults == {0: "cannot be read (Input/output error)"}
    monkeypatch.setattr(Path, "read_bytes", real)
    assert check_images([path]).faults == {}
