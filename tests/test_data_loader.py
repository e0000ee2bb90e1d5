import errno
import os
from collections import Counter

import numpy as np
import pytest
import torch

from mnet_cli.data import loader as loaders
from mnet_cli.data.augment import Augmentation
from mnet_cli.data.image_files import FileImage
from mnet_cli.data.images import read_image
from mnet_cli.data.loader import (
    EpochBatches,
    ViewDataset,
    load_views,
    seed_of,
)
from mnet_cli.data.preprocess import Preprocess, eval_array
from mnet_cli.data.validate import check_images
from mnet_cli.errors import DataError, MachineError

CPU = torch.device("cpu")
SMALL = Preprocess(32, 36, "bilinear", (0.5,) * 3, (0.5,) * 3, (255,) * 3)


def dataset(paths, augmentation, seed=3) -> ViewDataset:
    labels = np.arange(len(paths)) % 3
    images = [*map(FileImage, paths)]
    return ViewDataset(images, labels, check_images(images).sha256, SMALL, augmentation, seed)


def views(photos, workers: int, epoch: int, policy: str = "crop_flip", transform=None):
    paths = sorted((photos / "train").rglob("*.jpg"))
    images = dataset(paths, Augmentation(policy, 0.2, 0.5))
    batches = EpochBatches(images.labels, 5, seed=3)
    return list(load_views(images, batches.keys(epoch), workers, CPU, transform))


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
    batches = EpochBatches(np.zeros(count, int), 5, seed=0)
    keys = list(batches.keys(1))
    sizes = [len(batch) for batch in keys]
    assert len(batches) == len(sizes)
    assert sorted(index for batch in keys for _, index in batch) == list(range(count))
    assert min(sizes) > 1 or count == 1


def test_balanced_order_draws_every_class_about_equally():
    labels = np.repeat([0, 1], [900, 100])
    batches = EpochBatches(labels, 32, seed=0, balanced=True)
    drawn = Counter(labels[index] for batch in batches.keys(1) for _, index in batch)
    assert 400 < drawn[1] < 600
    assert sum(drawn.values()) == 1000


def test_seeds_depend_on_every_part():
    seeds = {seed_of(a, b, c) for a in range(4) for b in range(4) for c in range(4)}
    assert len(seeds) == 64


def test_without_augmentation_training_sees_what_evaluation_sees(photos):
    path = next((photos / "train").rglob("*.jpg"))
    image, label = dataset([path], Augmentation())[(1, 0)]
    assert np.array_equal(image.numpy(), eval_array(read_image(FileImage(path)), SMALL))
    assert label == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_went_bad_is_the_same_error_for_any_number_of_workers(
    photos, tmp_path, workers
):
    paths = [*sorted((photos / "val").rglob("*.jpg"))[:3], tmp_path / "gone.jpg"]
    images = dataset(paths, Augmentation())
    keys = EpochBatches(images.labels, 2, 0).keys(1)
    with pytest.raises(DataError, match=r"gone\.jpg: cannot be read"):
        list(load_views(images, keys, workers, CPU))


def test_a_connection_that_is_closed_before_torch_has_seen_the_worker_die(photos, monkeypatch):
    class Broken:
        def __init__(self, *arguments, **options):
            pass

        def __iter__(self):
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    monkeypatch.setattr(loaders, "DataLoader", Broken)
    images = dataset(sorted((photos / "val").rglob("*.jpg")), Augmentation())
    with pytest.raises(MachineError, match="a process that loads images died"):
        list(load_views(images, [[(1, 0)]], 1, CPU))


def test_a_view_depends_on_the_photograph_and_not_on_its_neighbours(photos):
    paths = sorted((photos / "train").rglob("*.jpg"))[:4]
    augmentation = Augmentation("crop_flip", 0.2)
    all_of_them, last = dataset(paths, augmentation), dataset(paths[3:], augmentation)
    assert torch.equal(all_of_them[(2, 3)][0], last[(2, 0)][0])
    assert not torch.equal(all_of_them[(2, 3)][0], all_of_them[(1, 3)][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform_takes_each_batch_where_it_is_loaded(photos, workers):
    def means(images):
        return images.mean(axis=(1, 2, 3))

    plain, changed = views(photos, workers, 1), views(photos, workers, 1, transform=means)
    for (images, labels), (found, others) in zip(plain, changed, strict=True):
        assert np.array_equal(found.numpy(), means(images.numpy()))
        assert torch.equal(labels, others)
