import numpy as np
import pytest

from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import DataError
from mnet_cli.evaluate import evaluate, score

NAMES = ("blue", "green", "red")
PLAIN = Preprocess(32, 32, "bilinear", (0.0,) * 3, (1.0,) * 3, (255,) * 3)


def by_colour(images):
    """A classifier that knows the channel means of the classes: blue is 2, green 1, red 0."""
    return (20 * images.mean((2, 3)))[:, [2, 1, 0]]


def test_right_classifier_scores_all(photos):
    paths = sorted((photos / "val").rglob("*.jpg"))
    labels = [NAMES.index(path.parent.name) for path in paths]
    result = evaluate(by_colour, PLAIN, paths, labels, NAMES, batch_size=5)
    assert result.top1 == result.top3 == result.macro_f1 == 1.0
    assert result.confusion.tolist() == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert result.wrong() == []


def test_wrong_files_come_most_confident_first(tmp_path):
    logits = np.array([[2.0, 0, 0], [0, 3.0, 0], [1.0, 0, 0]], np.float32)
    paths = [tmp_path / name for name in "abc"]
    result = score(logits, np.array([0, 0, 2]), NAMES, paths)
    assert [row["path"].name for row in result.wrong()] == ["b", "c"]
    assert result.wrong()[0]["predicted"] == "green"
    assert result.top1 == pytest.approx(1 / 3)
    assert 0 < result.interval[0] < 1 / 3 < result.interval[1] < 1


def test_batch_size_does_not_change_the_scores(photos):
    paths = sorted((photos / "train").rglob("*.jpg"))
    labels = [index % 3 for index in range(len(paths))]
    one, many = (
        evaluate(by_colour, PLAIN, paths, labels, NAMES, batch_size=size).figures()
        for size in (1, 64)
    )
    assert one == pytest.approx(many, abs=1e-6)


def test_unreadable_image_is_an_error(photos, tmp_path):
    with pytest.raises(DataError, match="gone"):
        evaluate(by_colour, PLAIN, [tmp_path / "gone.jpg"], [0], NAMES)
