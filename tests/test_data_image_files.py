import io

import numpy as np
import pytest
from PIL import Image

from mnet_cli.data.image_files import image_of
from mnet_cli.data.images import read_image
from mnet_cli.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def test_paths_bytes_pillow_images_and_arrays_give_the_same_pixels(tmp_path):
    image = Image.fromarray(PIXELS)
    image.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for value in (tmp_path / "a.png", str(tmp_path / "a.png"), content, image, PIXELS):
        assert np.array_equal(np.asarray(read_image(image_of(value))), PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_a_pillow_image_of_any_mode_is_decoded(mode):
    assert read_image(image_of(Image.new(mode, (8, 8)))).mode == "RGB"


def test_the_orientation_of_a_pillow_image_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "JPEG", exif=exif)
    assert read_image(image_of(Image.open(content))).size == (6, 9)


@pytest.mark.parametrize("shape", [(6,), (6, 9, 4), (6, 9, 3, 1), (0, 9, 3)])
def test_an_array_of_another_shape_is_refused(shape):
    with pytest.raises(DataError, match=r"photo: the array"):
        image_of(np.zeros(shape, np.uint8), "photo")


def test_other_types_are_refused():
    with pytest.raises(DataError, match="dtype float64"):
        image_of(PIXELS / 255)
    with pytest.raises(TypeError, match="int"):
        image_of(3)
