import tracemalloc

import numpy as np
import pytest

from mnet_cli.data.image_files import FileImage
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import DataError, RefusedError
from mnet_cli.inference.evaluate import evaluate, score, summarize_logits

NAMES = ("blue", "green", "red")
PLAIN = Preprocess(32, 32, "bilinear", (0.0,) * 3, (1.0,) * 3, (255,) * 3)


def by_colour(images):
    """A classifier that knows the channel means of the classes: blue is 2, green 1, red 0."""
    return (20 * images.mean((2, 3)))[:, [2, 1, 0]]


def test_right_classifier_scores_all(photos):
    paths = [*map(FileImage, sorted((photos / "val").rglob("*.jpg")))]
    labels = [NAMES.index(image.path.parent.name) for image in paths]
    result = evaluate(by_colour, PLAIN, paths, labels, NAMES, batch_size=5)
    assert result.top1 == result.top3 == result.macro_f1 == 1.0
    assert result.confusion.tolist() == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert result.wrong() == []


def test_wrong_files_come_most_confident_first(tmp_path):
    logits = np.array([[2.0, 0, 0], [0, 3.0, 0], [1.0, 0, 0]], np.float32)
    paths = [FileImage(tmp_path / name) for name in "abc"]
    labels = np.array([0, 0, 2])
    result = score([summarize_logits(logits, labels)], labels, NAMES, paths)
    assert [row["image"].path.name for row in result.wrong()] == ["b", "c"]
    assert result.wrong()[0]["predicted"] == "green"
    assert result.top1 == pytest.approx(1 / 3)
    assert 0 < result.interval[0] < 1 / 3 < result.interval[1] < 1


def test_batch_size_does_not_change_the_scores(photos):
    paths = [*map(FileImage, sorted((photos / "train").rglob("*.jpg")))]
    labels = [index % 3 for index in range(len(paths))]
    one, many = (
        evaluate(by_colour, PLAIN, paths, labels, NAMES, batch_size=size).figures()
        for size in (1, 64)
    )
    assert one == pytest.approx(many, abs=1e-6)


def test_unreadable_image_is_an_error(photos, tmp_path):
    with pytest.raises(DataError, match="gone"):
        evaluate(by_colour, PLAIN, [FileImage(tmp_path / "gone.jpg")], [0], NAMES)


def test_scores_are_those_of_the_whole_array_to_the_last_bit():
    noise = np.random.default_rng(0)
    for images, classes in ((1, 2), (37, 5), (100, 70), (30, 2000)):
        logits = (3 * noise.normal(size=(images, classes))).astype(np.float32)
        labels = noise.integers(0, classes, images)
        starts = range(0, images, 8)
        blocks = (summarize_logits(logits[at : at + 8], labels[at : at + 8]) for at in starts)
        names = [str(label) for label in range(classes)]
        found = score(blocks, labels, names, [None] * images)
        shifted = logits.astype(np.float64) - logits.max(1, keepdims=True).astype(np.float64)
        log_softmax = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        probabilities = np.exp(log_softmax)
        rows = np.arange(images)
        assert found.loss == -log_softmax[rows, labels].mean()
        assert found.top1 == (logits.argmax(1) == labels).mean()
        wrong = [(row["prob"], row["true_prob"]) for row in found.wrong()]
        expected = [
            (probabilities[row].max(), probabilities[row, labels[row]])
            for row in np.flatnonzero(logits.argmax(1) != labels)
        ]
        assert wrong == sorted(expected, key=lambda pair: -pair[0])


def test_memory_does_not_grow_by_a_number_for_every_image_and_class(photos, monkeypatch):
    monkeypatch.setattr("mnet_cli.system.threads.cores", lambda: 2)
    paths = [*map(FileImage, sorted((photos / "train").rglob("*.jpg")))] * 25
    names = [str(label) for label in range(5000)]
    labels = np.arange(len(paths))
    logits = np.random.default_rng(0).normal(size=(64, len(names))).astype(np.float32)
    tracemalloc.start()
    try:
        evaluate(lambda images: logits[: len(images)].copy(), PLAIN, paths, labels, names)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(paths) * len(names) * 4 / 2


def test_a_logit_that_is_not_finite_is_refused(photos):
    paths = [*map(FileImage, sorted((photos / "val").rglob("*.jpg")))]

    def broken(images):
        return np.full((len(images), 3), np.nan, np.float32)

    with pytest.raises(RefusedError, match="not finite"):
        evaluate(broken, PLAIN, paths, np.zeros(len(paths), np.int64), NAMES)
