"""Files that an earlier mnet wrote, which every later one must read."""

import shutil
from pathlib import Path

import numpy as np

from mnet_cli.data.image_files import FileImage
from mnet_cli.features.store import open_rows, record_type
from mnet_cli.inference.classifier import open_classifier
from mnet_cli.inference.predict import predict

GOLDEN = Path(__file__).parent / "golden"


def test_a_checkpoint_of_format_1_answers_as_when_it_was_written():
    classifier = open_classifier(GOLDEN / "checkpoint-1.pt", "cpu")
    [answer] = predict(
        classifier.classify, classifier.preprocess, [FileImage(GOLDEN / "image.png")]
    )
    assert classifier.class_names == ("blue", "green", "red")
    assert np.allclose(answer.probabilities, np.load(GOLDEN / "probabilities.npy"), atol=1e-4)


def test_a_cache_of_format_1_gives_its_rows(tmp_path):
    folder = shutil.copytree(GOLDEN / "cache-1", tmp_path / "cache")  # damaged shards are removed
    rows = open_rows(folder, record_type((4,), "float32"))
    keys = np.frombuffer(bytes(range(64)), "V32")
    places = rows.find(keys)
    assert (places >= 0).all()
    assert np.array_equal(rows.take(places), np.arange(8, dtype=np.float32).reshape(2, 4))
