"""Random views for training, built from the evaluation's `Preprocess`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from mnet_cli.data.images import Photograph, times_smaller
from mnet_cli.data.preprocess import RESAMPLING, Preprocess, eval_array, to_normalized
from mnet_cli.recipe.rules import DIFFERENT_VIEWS

if TYPE_CHECKING:
    from torchvision.transforms import v2

POLICIES = {  # what follows the random crop and flip, by its name in torchvision.transforms.v2
    "crop_flip": (),
    "randaugment": ("RandAugment",),
    "trivialaugment": ("TrivialAugmentWide",),
}

PIXELS = 2  # raised with every change that gives a view other pixels

View = Callable[[Photograph, int], Tensor]
"""Takes a photograph, and which view of it is wanted, counted from 1."""


@dataclass(frozen=True)
class Augmentation:
    """What chance may change about an image.

    Attributes:
        policy: `none` (evaluation's own view), that view and its mirror image in turn (`flip`),
            or a random crop and horizontal flip (`crop_flip`), perhaps followed by RandAugment
            (arXiv 1909.13719) or TrivialAugment (arXiv 2103.10158).
        crop_scale_min: Smallest share of the image's area that a crop may cover, (0, 1].
        random_erasing: Probability of erasing a rectangle (arXiv 1708.04896), [0, 1].
    """

    policy: str = "none"
    crop_scale_min: float = 1.0
    random_erasing: float = 0.0

    @property
    def most_views(self) -> int | None:
        """How many views of an image differ; None for any number."""
        return DIFFERENT_VIEWS.get(self.policy)


def build_view(preprocess: Preprocess, augmentation: Augmentation) -> View:
    """Build the function that turns a photograph into a view (3, S, S), float32.

    Randomness comes from torch's global generator: seed it before each call. A random crop
    of a JPEG that is much larger than S is decoded at a half or a quarter of its size.

    Args:
        preprocess: Says the size, the interpolation and the normalisation.
        augmentation: What chance may change.
    """
    if augmentation.most_views:
        return partial(_evaluation_view, preprocess, augmentation.policy == "flip")
    # A second and a half to import, which a run with all features in the cache can spare.
    from torchvision.transforms import InterpolationMode, v2

    crop = v2.RandomResizedCrop(
        preprocess.image_size,
        scale=(augmentation.crop_scale_min, 1.0),
        interpolation=InterpolationMode(preprocess.interpolation),
    )
    changes = [getattr(v2, name)() for name in POLICIES[augmentation.policy]]
    erase = [v2.RandomErasing(augmentation.random_erasing)] if augmentation.random_erasing else []
    return partial(_random_view, preprocess, crop, changes, erase)


def _evaluation_view(
    preprocess: Preprocess, flips: bool, photograph: Photograph, number: int
) -> Tensor:
    """Evaluation's view; where `flips`, every second view is its mirror image."""
    view = torch.from_numpy(eval_array(photograph.decode(), preprocess))
    return view.flip(2) if flips and number % 2 == 0 else view


def _random_view(
    preprocess: Preprocess,
    crop: "v2.RandomResizedCrop",
    changes: Sequence[Callable[[Image.Image], Image.Image]],
    erase: Sequence[Callable[[Tensor], Tensor]],
    photograph: Photograph,
    number: int,
) -> Tensor:
    """Change the pixels at 8 bits, make numbers of them last; erased is the mean colour, 0."""
    width, height = photograph.size
    # The crop is drawn from the size alone, so that it can say how small to decode.
    box = crop.make_params([torch.empty(1).expand(3, height, width)])
    surplus = min(box["height"], box["width"]) / preprocess.image_size
    image = photograph.decode(times_smaller(surplus))
    if image.size == photograph.size:
        image = crop.transform(image, box)
    else:
        side, resampling = preprocess.image_size, RESAMPLING[preprocess.interpolation]
        image = image.resize((side, side), resampling, _edges(box, photograph.size, image.size))
    if torch.rand(1) < 0.5:  # the library's flip leaves its image to the garbage collector
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for change in changes:
        image = change(image)
    view = torch.from_numpy(to_normalized(image, preprocess))
    for change_view in erase:
        view = change_view(view)
    return view


def _edges(
    box: Mapping[str, int], size: tuple[int, int], smaller: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a box, moved to a smaller copy of its image."""
    horizontal, vertical = smaller[0] / size[0], smaller[1] / size[1]
    return (
        box["left"] * horizontal,
        box["top"] * vertical,
        (box["left"] + box["width"]) * horizontal,
        (box["top"] + box["height"]) * vertical,
    )
