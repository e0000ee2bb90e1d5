import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from mnet_cli.data.preprocess import Preprocess, eval_array

SIZES = [(224, 224), (256, 256), (500, 375), (333, 501), (31, 700), (97, 40), (256, 301), (5, 5)]


def preprocess(**changes) -> Preprocess:
    values = {
        "image_size": 224,
        "resize": 256,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "background": (255, 255, 255),
    }
    return Preprocess(**values | changes)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("resize", "interpolation"), [(256, "bilinear"), (235, "bicubic")])
def test_eval_equals_torchvision_to_the_last_bit(size, resize, interpolation):
    wanted = preprocess(resize=resize, interpolation=interpolation)
    reference = v2.Compose(
        [
            v2.Resize(resize, InterpolationMode(interpolation)),
            v2.CenterCrop(224),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(wanted.mean, wanted.std),
        ]
    )
    image = noise(*size)
    assert np.array_equal(eval_array(image, wanted), reference(image).numpy())


def test_array_is_contiguous_float32_of_the_asked_size():
    array = eval_array(noise(100, 80), preprocess(image_size=64, resize=73))
    assert array.shape == (3, 64, 64)
    assert array.dtype == np.float32
    assert array.flags["C_CONTIGUOUS"]


def test_dict_survives_json():
    original = preprocess(interpolation="bicubic", background=(1, 2, 3))
    assert Preprocess.from_dict(json.loads(json.dumps(original.to_dict())), "a.pt") == original


def test_line_names_what_matters():
    assert "resize 256 bilinear" in str(preprocess())
