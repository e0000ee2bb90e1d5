import pytest

from mnet_cli.data import check
from mnet_cli.data.check import check_images, same_bytes


@pytest.fixture
def files(photos, tmp_path):
    good = sorted((photos / "val").rglob("*.jpg"))[:2]
    twin, bad, gone = tmp_path / "twin.jpg", tmp_path / "bad.jpg", tmp_path / "gone.jpg"
    twin.write_bytes(good[0].read_bytes())
    bad.write_text("no image")
    return [*good, twin, bad, gone]


def test_faults_are_found_and_good_images_pass(files):
    checked = check_images(files)
    assert [bool(image.fault) for image in checked] == [False, False, False, True, True]
    assert "not an image" in checked[3].fault
    assert "cannot be read" in checked[4].fault
    assert len(checked[0].sha256) == 64


def test_same_bytes_are_grouped(files):
    assert same_bytes([image.sha256 for image in check_images(files)]) == [[0, 2]]


def test_unchanged_files_are_not_decoded_again(files, monkeypatch):
    first = check_images(files)
    monkeypatch.setattr(check, "decode_image", None)  # any use would raise
    assert check_images(files[:4]) == first[:4]


def test_changed_file_is_checked_again(files):
    assert not check_images(files)[2].fault
    files[2].write_text("broken meanwhile")
    assert check_images(files)[2].fault


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
    assert [bool(image.fault) for image in check_images(files)] == [False] * 3 + [True] * 2
