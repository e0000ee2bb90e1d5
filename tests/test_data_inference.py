import numpy as np

from mnet_cli.data.images import read_image
from mnet_cli.data.inference import outputs_of
from mnet_cli.data.preprocess import Preprocess, eval_array
from mnet_cli.errors import DataError
from mnet_cli.machine import cores

SMALL = Preprocess(32, 36, "bilinear", (0.5,) * 3, (0.5,) * 3, (255,) * 3)


def sums(images):
    return images.sum(axis=(2, 3))


def test_outputs_keep_order_and_bad_files_are_reported_in_place(photos, tmp_path):
    paths = sorted((photos / "val").rglob("*.jpg"))
    (tmp_path / "bad.jpg").write_text("no image")
    paths.insert(3, tmp_path / "bad.jpg")
    found = list(outputs_of(iter(paths), SMALL, sums, 4))
    assert [path for path, _ in found] == paths
    assert isinstance(found[3][1], DataError)
    for path, output in [*found[:3], *found[4:]]:
        assert np.array_equal(output, sums(eval_array(read_image(path), SMALL)[None])[0])


def test_a_batch_of_bad_files_alone_never_reaches_the_network(tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    found = list(outputs_of([bad, bad], SMALL, None, 2))
    assert [type(output) for _, output in found] == [DataError, DataError]


def test_no_more_than_two_batches_a_core_are_read_ahead(photos):
    path = next((photos / "val").rglob("*.jpg"))
    drawn = 0

    def endless():
        nonlocal drawn
        while True:
            drawn += 1
            yield path

    outputs = outputs_of(endless(), SMALL, sums, 3)
    for _ in range(4):  # into the second batch
        next(outputs)
    assert drawn <= (2 * cores() + 1) * 3
    outputs.close()
