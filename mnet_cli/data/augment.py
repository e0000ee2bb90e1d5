"""Random views for training, built from the evaluation's `Preprocess`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from mnet_cli.data.preprocess import Preprocess, eval_array, to_normalized

POLICIES = {  # what follows the random crop and flip, by its name in torchvision.transforms.v2
    "crop_flip": (),
    "randaugment": ("RandAugment",),
    "trivialaugment": ("TrivialAugmentWide",),
}

View = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """What chance may change about an image.

    Attributes:
        policy: `none` (evaluation's own view), or a random crop and horizontal flip
            (`crop_flip`), followed by RandAugment (arXiv 1909.13719) or TrivialAugment
            (arXiv 2103.10158).
        crop_scale_min: Smallest share of the image's area that a crop may cover, (0, 1].
        random_erasing: Probability of erasing a rectangle (arXiv 1708.04896), [0, 1].
    """

    policy: str = "none"
    crop_scale_min: float = 1.0
    random_erasing: float = 0.0


def build_view(preprocess: Preprocess, augmentation: Augmentation) -> View:
    """Build the function that turns an RGB image into a view (3, S, S), float32.

    Randomness comes from torch's global generator: seed it before each call.

    Args:
        preprocess: Says the size, the interpolation and the normalisation.
        augmentation: What chance may change.
    """
    if augmentation.policy == "none":
        return partial(_evaluation_view, preprocess)
    # A second and a half to import, which a run with all features in the cache can spare.
    from torchvision.transforms import InterpolationMode, v2

    change = v2.Compose(
        [
            v2.RandomResizedCrop(
                preprocess.image_size,
                scale=(augmentation.crop_scale_min, 1.0),
                interpolation=InterpolationMode(preprocess.interpolation),
            ),
            v2.RandomHorizontalFlip(),
            *(getattr(v2, name)() for name in POLICIES[augmentation.policy]),
        ]
    )
    erase = v2.RandomErasing(augmentation.random_erasing)
    return partial(_random_view, preprocess, change, erase)


def _evaluation_view(preprocess: Preprocess, image: Image.Image) -> Tensor:
    return torch.from_numpy(eval_array(image, preprocess))


def _random_view(
    preprocess: Preprocess,
    change: Callable[[Image.Image], Image.Image],
    erase: Callable[[Tensor], Tensor],
    image: Image.Image,
) -> Tensor:
    """Change the pixels at 8 bits, make numbers of them last; erased is the mean colour, 0."""
    return erase(torch.from_numpy(to_normalized(change(image), preprocess)))
