import numpy as np
import pytest

from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import DataError, UsageError
from mnet_cli.predict import Prediction, find_images, predict

NAMES = ("blue", "green", "red")
PLAIN = Preprocess(32, 32, "bilinear", (0.0,) * 3, (1.0,) * 3, (255,) * 3)


def by_colour(images):
    return (20 * images.mean((2, 3)))[:, [2, 1, 0]]


def test_answers_come_in_the_order_of_the_paths(photos, tmp_path):
    paths = sorted((photos / "val").rglob("*.jpg"), key=lambda path: path.name)
    (tmp_path / "bad.jpg").write_text("no image")
    paths.insert(1, tmp_path / "bad.jpg")
    answers = list(predict(by_colour, PLAIN, paths, batch_size=4))
    assert [answer.path for answer in answers] == paths
    assert [answer.error is not None for answer in answers] == [p.name == "bad.jpg" for p in paths]
    for answer in answers:
        if not answer.error:
            assert answer.answer(NAMES, 0.0) == answer.path.parent.name
            assert answer.probabilities.sum() == pytest.approx(1)


def test_ranking_and_rejection(tmp_path):
    answer = Prediction(tmp_path, np.array([0.2, 0.3, 0.5]))
    assert answer.ranked(NAMES, 2) == [("red", 0.5), ("green", 0.3)]
    assert answer.answer(NAMES, 0.5) == "red"
    assert answer.answer(NAMES, 0.6) == "unknown"


def test_files_folders_and_globs_are_found(photos):
    red = photos / "val" / "red"
    wanted = [red / f"{number}.jpg" for number in range(4)]
    assert list(find_images([str(red)])) == wanted
    assert list(find_images([str(red / "*.jpg")])) == wanted
    assert list(find_images([str(wanted[2]), str(wanted[0])])) == [wanted[2], wanted[0]]
    assert len(list(find_images([str(photos / "val" / "*")]))) == 12


def test_what_matches_nothing_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no file matches"):
        list(find_images([str(tmp_path / "*.jpg")]))
    with pytest.raises(DataError, match="no images"):
        list(find_images([str(tmp_path)]))
