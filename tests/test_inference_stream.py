import threading

import numpy as np
from PIL import Image

from mnet_cli.data.image_files import FileImage
from mnet_cli.data.images import read_image
from mnet_cli.data.preprocess import Preprocess, eval_array
from mnet_cli.errors import DataError
from mnet_cli.inference.stream import outputs_of
from mnet_cli.system.machine import cores

SMALL = Preprocess(32, 36, "bilinear", (0.5,) * 3, (0.5,) * 3, (255,) * 3)


def sums(images):
    return images.sum(axis=(2, 3))


def test_outputs_keep_order_and_bad_files_are_reported_in_place(photos, tmp_path):
    paths = [*map(FileImage, sorted((photos / "val").rglob("*.jpg")))]
    (tmp_path / "bad.jpg").write_text("no image")
    paths.insert(3, FileImage(tmp_path / "bad.jpg"))
    found = list(outputs_of(iter(paths), SMALL, sums, 4))
    assert [path for path, _ in found] == paths
    assert isinstance(found[3][1], DataError)
    for path, output in [*found[:3], *found[4:]]:
        assert np.array_equal(output, sums(eval_array(read_image(path), SMALL)[None])[0])


def test_without_parallel_the_caller_alone_forwards_whole_batches_of_the_same(photos, tmp_path):
    paths = [*map(FileImage, sorted((photos / "val").rglob("*.jpg")))]
    (tmp_path / "bad.jpg").write_text("no image")
    paths.insert(3, FileImage(tmp_path / "bad.jpg"))
    calls = []

    def forward(images):
        calls.append((threading.get_ident(), len(images)))
        return sums(images)

    found = list(outputs_of(iter(paths), SMALL, forward, 5, parallel=False))
    expected = list(outputs_of(iter(paths), SMALL, sums, 5))
    assert [path for path, _ in found] == paths
    for (_, output), (_, other) in zip(found, expected, strict=True):
        assert type(output) is type(other)
        assert isinstance(output, DataError) or np.array_equal(output, other)
    assert {thread for thread, _ in calls} == {threading.get_ident()}
    assert [images for _, images in calls] == [4, 5, 3]  # 13 files, one of them bad


def test_a_batch_of_bad_files_alone_never_reaches_the_network(tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    found = list(outputs_of([FileImage(bad)] * 2, SMALL, None, 2))
    assert [type(output) for _, output in found] == [DataError, DataError]


def test_no_more_than_two_batches_a_core_are_read_ahead(photos):
    path = FileImage(next((photos / "val").rglob("*.jpg")))
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


def test_fast_decoding_is_near_the_exact_path_and_only_on_request(tmp_path):
    path = tmp_path / "large.jpg"
    grain = Image.effect_noise((600, 500), 20)
    Image.merge("RGB", [Image.linear_gradient("L").resize((600, 500)), grain, grain]).save(path)

    def pixels(**arguments):
        [(_, output)] = outputs_of([FileImage(path)], SMALL, lambda images: images, 1, **arguments)
        return output

    exact, fast = pixels(), pixels(fast_decode=True)
    assert np.array_equal(exact, eval_array(read_image(FileImage(path)), SMALL))
    assert 0 < abs(fast - exact).mean() * 255 * SMALL.std[0] < 2
