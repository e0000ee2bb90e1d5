"""Folds: stratified, groups stay whole, and the order of files does not matter."""

import hashlib

import numpy as np
import pytest

from mnet_cli.data.folds import assign_folds, same_contents


def digests(names) -> np.ndarray:
    found = [hashlib.sha256(str(name).encode()).digest() for name in names]
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, 32)


@pytest.fixture
def images():
    """Labels, digests and groups of 97 images; some are the same photograph."""
    numbers = np.arange(97)
    labels = numbers % 4
    sha256 = digests(np.where(numbers >= 90, numbers - 80, numbers))  # 90 … 96 are 10 … 16 again
    labels[90:] = labels[10:17]
    return labels, sha256, same_contents(sha256)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_fold_has_its_share_of_each_class_and_groups_stay_whole(images, count):
    labels, sha256, groups = images
    folds = assign_folds(labels, sha256, groups, count, 0)
    assert set(folds) == set(range(count))
    for group in range(groups.max() + 1):
        assert len(set(folds[groups == group])) == 1
    for label in range(4):
        sizes = np.bincount(folds[labels == label], minlength=count)
        assert sizes.max() - sizes.min() <= 3  # one, and up to two pairs of the same photograph
    assert np.ptp(np.bincount(folds)) <= 4


def test_the_order_of_images_does_not_matter_and_the_seed_does(images):
    labels, sha256, groups = images
    folds = assign_folds(labels, sha256, groups, 5, 0)
    order = np.random.default_rng(1).permutation(len(labels))
    again = assign_folds(labels[order], sha256[order], same_contents(sha256[order]), 5, 0)
    assert (again == folds[order]).all()
    assert (assign_folds(labels, sha256, groups, 5, 1) != folds).any()


def test_a_large_group_is_not_divided():
    labels = np.repeat([0, 1], 30)
    groups = np.concatenate([np.zeros(20, int), np.arange(1, 41)])
    folds = assign_folds(labels, digests(range(60)), groups, 5, 0)
    assert len(set(folds[:20])) == 1
    assert np.ptp(np.bincount(folds[20:])) <= 2
