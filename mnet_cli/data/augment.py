"""Random views for training, built from the evaluation's `Preprocess`."""

from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from mnet_cli.data.preprocess import Preprocess, eval_array

POLICIES: dict[str, tuple[type[v2.Transform], ...]] = {
    "crop_flip": (),
    "randaugment": (v2.RandAugment,),
    "trivialaugment": (v2.TrivialAugmentWide,),
}

View = Callable[[Image.Image], torch.Tensor]


def train_view(
    preprocess: Preprocess, policy: str, *, crop_scale_min: float, random_erasing: float
) -> View:
    """Build the function that turns an RGB image into a random view (3, S, S), float32.

    Randomness comes from torch's global generator: seed it before each call.

    Args:
        preprocess: Says the size, the interpolation and the normalisation.
        policy: `none` (evaluation's own view), or a random crop and horizontal flip
            (`crop_flip`), followed by RandAugment (arXiv 1909.13719) or TrivialAugment
            (arXiv 2103.10158).
        crop_scale_min: Smallest share of the image's area that a crop may cover, (0, 1].
        random_erasing: Probability of erasing a rectangle (arXiv 1708.04896), [0, 1].
    """
    if policy == "none":
        return partial(_eval_view, preprocess=preprocess)
    view: View = v2.Compose(
        [
            v2.RandomResizedCrop(
                preprocess.image_size,
                scale=(crop_scale_min, 1.0),
                interpolation=InterpolationMode(preprocess.interpolation),
            ),
            v2.RandomHorizontalFlip(),
            *(transform() for transform in POLICIES[policy]),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocess.mean, preprocess.std),
            v2.RandomErasing(random_erasing),
        ]
    )
    return view


def _eval_view(image: Image.Image, preprocess: Preprocess) -> torch.Tensor:
    return torch.from_numpy(eval_array(image, preprocess))
