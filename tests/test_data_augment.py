"""Random views: torchvision's own where nothing is decoded smaller, and near them where it is."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mnet_cli.data.augment import Augmentation, build_view
from mnet_cli.data.images import Photograph
from mnet_cli.data.preprocess import Preprocess, to_normalized

SMALL = Preprocess(32, 36, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), (255,) * 3)


def jpeg(width: int, height: int) -> bytes:
    """A picture with structure of every size and some grain, as photographs have."""
    noise = np.random.default_rng(0)
    layers = [
        np.asarray(
            Image.fromarray(noise.integers(0, 255, (side, side, 3), np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            ),
            float,
        )
        for side in (3, 9, 27, 81)
    ]
    pixels = np.average(layers, axis=0, weights=(8, 4, 2, 1)) + noise.normal(0, 4, layers[0].shape)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


@pytest.mark.parametrize("erasing", [0.0, 1.0])
@pytest.mark.parametrize("policy", ["crop_flip", "randaugment", "trivialaugment"])
def test_views_are_torchvisions_to_the_last_bit(policy, erasing):
    content = jpeg(60, 47)
    names = {"crop_flip": [], "randaugment": [v2.RandAugment()]}
    expected = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.2, 1.0)),
            v2.RandomHorizontalFlip(),
            *names.get(policy, [v2.TrivialAugmentWide()]),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(SMALL.mean, SMALL.std),
            v2.RandomErasing(erasing),
        ]
    )
    view = build_view(SMALL, Augmentation(policy, 0.2, erasing))
    for seed in range(20):
        torch.manual_seed(seed)
        wanted = expected(Photograph(content, "a").decode())
        torch.manual_seed(seed)
        assert torch.equal(view(Photograph(content, "a"), 1), wanted)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (401, 611)])
def test_a_large_jpeg_is_decoded_smaller_for_the_same_crops(width, height, monkeypatch):
    content = jpeg(width, height)
    view = build_view(SMALL, Augmentation("crop_flip", 0.08))
    times = []
    decode = Photograph.decode
    monkeypatch.setattr(Photograph, "decode", lambda self, n=1: times.append(n) or decode(self, n))

    def views():
        for seed in range(20):
            torch.manual_seed(seed)
            yield view(Photograph(content, "a"), 1).numpy()

    small = list(views())
    assert {2, 4} & set(times)
    monkeypatch.setattr(Photograph, "decode", lambda self, n=1: decode(self))
    exact = list(views())
    levels = [abs(a - b).mean() * 255 * 0.25 for a, b in zip(small, exact, strict=True)]
    assert 0 < np.mean(levels) < 2


def test_views_of_a_large_png_are_torchvisions():
    file = io.BytesIO()
    Image.open(io.BytesIO(jpeg(640, 480))).save(file, "PNG")
    crop = v2.RandomResizedCrop(32, scale=(0.2, 1.0))
    view = build_view(SMALL, Augmentation("crop_flip", 0.2))
    for seed in range(5):
        torch.manual_seed(seed)
        cropped = v2.RandomHorizontalFlip()(crop(Photograph(file.getvalue(), "a").decode()))
        torch.manual_seed(seed)
        found = view(Photograph(file.getvalue(), "a"), 1)
        assert np.array_equal(found.numpy(), to_normalized(cropped, SMALL))


def test_without_augmentation_the_whole_image_is_decoded():
    content = jpeg(640, 480)
    view = build_view(SMALL, Augmentation())
    assert torch.equal(view(Photograph(content, "a"), 1), view(Photograph(content, "b"), 2))
    whole = Photograph(content, "a")
    view(whole, 1)
    assert whole.decode().size == (640, 480)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_flip_gives_the_whole_image_and_its_mirror_image_in_turn(number):
    content = jpeg(60, 47)
    plain = build_view(SMALL, Augmentation())(Photograph(content, "a"), 1)
    found = build_view(SMALL, Augmentation("flip"))(Photograph(content, "a"), number)
    assert torch.equal(found, plain if number % 2 else plain.flip(2))
    assert not torch.equal(plain, plain.flip(2))
