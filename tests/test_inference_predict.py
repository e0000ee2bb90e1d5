import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mnet_cli.data.image_files import FileImage
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import UsageError
from mnet_cli.inference.predict import Prediction, find_images, predict, refuse_unmatched

NAMES = ("blue", "green", "red")
PLAIN = Preprocess(32, 32, "bilinear", (0.0,) * 3, (1.0,) * 3, (255,) * 3)


def by_colour(images):
    return (20 * images.mean((2, 3)))[:, [2, 1, 0]]


def test_answers_come_in_the_order_of_the_paths(photos, tmp_path):
    paths = sorted((photos / "val").rglob("*.jpg"), key=lambda path: path.name)
    (tmp_path / "bad.jpg").write_text("no image")
    paths.insert(1, tmp_path / "bad.jpg")
    answers = list(predict(by_colour, PLAIN, map(FileImage, paths), batch_size=4))
    assert [answer.name for answer in answers] == [*map(str, paths)]
    assert [answer.error is not None for answer in answers] == [p.name == "bad.jpg" for p in paths]
    for answer in answers:
        if not answer.error:
            assert answer.answer(NAMES, 0.0) == Path(answer.name).parent.name
            assert answer.probabilities.sum() == pytest.approx(1)


def test_ranking_and_rejection():
    answer = Prediction("image.jpg", np.array([0.2, 0.3, 0.5]))
    assert answer.ranked(NAMES, 2) == [("red", 0.5), ("green", 0.3)]
    assert answer.answer(NAMES, 0.5) == "red"
    assert answer.answer(NAMES, 0.6) == "unknown"


def paths(patterns):
    return [image.path for image in find_images(patterns)]


def test_files_folders_and_globs_are_found(photos):
    red = photos / "val" / "red"
    wanted = [red / f"{number}.jpg" for number in range(4)]
    assert paths([str(red)]) == wanted
    assert paths([str(red / "*.jpg")]) == wanted
    assert paths([str(wanted[2]), str(wanted[0])]) == [wanted[2], wanted[0]]
    assert len(list(find_images([str(photos / "val" / "*")]))) == 12


def below(folder) -> list[str]:
    return [str(found.relative_to(folder)) for found in paths([str(folder)])]


def test_linked_folders_are_followed_once(photos, tmp_path):
    (tmp_path / "real").mkdir()
    for name, target in {
        "a": photos / "val",  # comes after what really lies here
        "b": photos / "val" / "red",  # found under a
        "c": tmp_path,  # up, and so a loop
        "real/d": tmp_path / "real",
        "e": tmp_path / "nowhere",
        "f": "f",
    }.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "real" / "1.jpg").symlink_to(photos / "val" / "red" / "1.jpg")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "2.jpg").touch()
    (tmp_path / "3.JPG").touch()
    found = below(tmp_path)
    assert found[:2] == ["3.JPG", "real/1.jpg"]
    assert sorted(found[2:]) == sorted(
        f"a/{name}/{number}.jpg" for name in ("blue", "green", "red") for number in range(4)
    )


def test_images_come_in_the_order_of_their_folders(tmp_path):
    for name in ("b/y/2.jpg", "b/1.jpg", "a/3.jpg", "4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert below(tmp_path) == ["4.jpg", "a/3.jpg", "b/1.jpg", "b/y/2.jpg"]


def test_a_folder_that_cannot_be_read_gives_an_error_in_its_place(photos, tmp_path, monkeypatch):
    shutil.copytree(photos / "val", tmp_path / "val")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("green"):  # chmod does not stop root
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = list(find_images([str(tmp_path / "val")]))
    error = found.pop(4)
    assert error.where == str(tmp_path / "val" / "green")
    assert error.found == "cannot be read (Permission denied)"
    assert [image.path for image in found] == [
        tmp_path / "val" / c / f"{n}.jpg" for c in ("blue", "red") for n in range(4)
    ]


def test_what_gives_no_image_gives_an_error_in_its_place(photos, tmp_path):
    good, dead = str(photos / "val" / "red" / "0.jpg"), str(tmp_path / "*.jpg")
    found = find_images([good, dead, str(tmp_path), "nul\0.jpg", good])
    answers = list(predict(by_colour, PLAIN, found))
    assert [answer.name for answer in answers] == [
        good, dead, str(tmp_path), "nul\0.jpg", good,
    ]  # fmt: skip
    assert [answer.error and answer.error.found for answer in answers] == [
        None, "no file matches", "no images in this folder",
        "a NUL character, which no file name can have", None,
    ]  # fmt: skip


def test_a_pattern_without_a_match_can_be_refused_at_once(photos, tmp_path):
    refuse_unmatched([str(photos / "val" / "*"), str(tmp_path / "missing.jpg")])
    with pytest.raises(UsageError, match="no file matches"):
        refuse_unmatched([str(photos / "val" / "*"), str(tmp_path / "*.jpg")])


def test_paths_are_drawn_as_they_are_needed():
    def endless():
        while True:
            yield "missing.jpg"
            yield "missing*.jpg"

    answers = predict(by_colour, PLAIN, find_images(endless()))
    assert [next(answers).error is not None for _ in range(100)] == [True] * 100
