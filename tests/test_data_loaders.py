from collections import Counter

import numpy as np
import pytest
import torch

from mnet_cli.data.augment import train_view
from mnet_cli.data.loaders import (
    EpochBatches,
    TrainImages,
    eval_batches,
    loaded,
    seed_of,
    train_loader,
)
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import DataError

SMALL = Preprocess(32, 36, "bilinear", (0.5,) * 3, (0.5,) * 3, (255,) * 3)


def views(photos, workers: int, epoch: int, policy: str = "crop_flip"):
    paths = sorted((photos / "train").rglob("*.jpg"))
    labels = [index % 3 for index in range(len(paths))]
    view = train_view(SMALL, policy, crop_scale_min=0.2, random_erasing=0.5)
    batches = EpochBatches(labels, 5, seed=3)
    batches.epoch = epoch
    images = TrainImages(paths, labels, view, SMALL.background, seed=3)
    return list(loaded(train_loader(images, batches, workers, torch.device("cpu"))))


@pytest.mark.parametrize("policy", ["crop_flip", "trivialaugment", "randaugment"])
def test_batches_are_the_same_for_any_number_of_workers(photos, policy):
    alone, many = views(photos, 0, 1, policy), views(photos, 2, 1, policy)
    for (images, labels), (others, other_labels) in zip(alone, many, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_another_epoch_gives_other_views_in_another_order(photos):
    first, second = views(photos, 0, 1), views(photos, 0, 2)
    assert not torch.equal(first[0][0], second[0][0])
    assert [b[1].tolist() for b in first] != [b[1].tolist() for b in second]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 10, 11, 14, 16])
def test_every_sample_comes_once_and_no_batch_of_one(count):
    batches = EpochBatches([0] * count, 5, seed=0)
    sizes = [len(batch) for batch in batches]
    assert len(batches) == len(sizes)
    assert sorted(index for batch in batches for _, index in batch) == list(range(count))
    assert min(sizes) > 1 or count == 1


def test_balanced_order_draws_every_class_about_equally():
    labels = [0] * 900 + [1] * 100
    batches = EpochBatches(labels, 32, seed=0, balanced=True)
    drawn = Counter(labels[index] for batch in batches for _, index in batch)
    assert 400 < drawn[1] < 600
    assert sum(drawn.values()) == 1000


def test_seeds_depend_on_every_part():
    seeds = {seed_of(a, b, c) for a in range(4) for b in range(4) for c in range(4)}
    assert len(seeds) == 64


def test_without_augmentation_training_sees_what_evaluation_sees(photos):
    path = next((photos / "train").rglob("*.jpg"))
    view = train_view(SMALL, "none", crop_scale_min=1, random_erasing=0)
    image, label = TrainImages([path], [2], view, SMALL.background, 0)[(1, 0)]
    [[(_, array)]] = list(eval_batches([path], SMALL, 4))
    assert np.array_equal(image.numpy(), array)
    assert label == 2


def test_eval_batches_keep_order_and_report_bad_files_in_place(photos, tmp_path):
    paths = sorted((photos / "val").rglob("*.jpg"))
    (tmp_path / "bad.jpg").write_text("no image")
    paths.insert(3, tmp_path / "bad.jpg")
    batches = list(eval_batches(iter(paths), SMALL, 4))
    assert [path for batch in batches for path, _ in batch] == paths
    assert isinstance(batches[0][3][1], DataError)
    assert [len(batch) for batch in batches] == [4, 4, 4, 1]


def test_eval_batches_read_ahead_by_two_batches_at_most(photos):
    path = next((photos / "val").rglob("*.jpg"))
    drawn = 0

    def endless():
        nonlocal drawn
        while True:
            drawn += 1
            yield path

    batches = eval_batches(endless(), SMALL, 3)
    next(batches)
    next(batches)
    assert drawn <= 9
    batches.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_went_bad_is_the_same_error_for_any_number_of_workers(
    photos, tmp_path, workers
):
    view = train_view(SMALL, "none", crop_scale_min=1, random_erasing=0)
    paths = [*sorted((photos / "val").rglob("*.jpg"))[:3], tmp_path / "gone.jpg"]
    images = TrainImages(paths, [0, 1, 0, 1], view, SMALL.background, seed=0)
    loader = train_loader(images, EpochBatches([0, 1, 0, 1], 2, 0), workers, torch.device("cpu"))
    with pytest.raises(DataError, match=r"gone\.jpg: cannot be read"):
        list(loaded(loader))
