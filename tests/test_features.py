"""The cache of frozen activations: what it computes, finds again, loses and never loses."""

import os
import shutil

import numpy as np
import platformdirs
import pytest
import torch
from torch import nn

from mnet_cli.data.augment import Augmentation
from mnet_cli.data.check import check_images
from mnet_cli.data.loaders import ViewDataset
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.errors import DataError, MachineError, UsageError
from mnet_cli.features import extract
from mnet_cli.features.boundary import find_boundary
from mnet_cli.features.cache import cache_folders, clear_cache
from mnet_cli.features.extract import cached_features
from mnet_cli.models.registry import build_model

CPU = torch.device("cpu")
SMALL = Preprocess(32, 36, "bilinear", (0.5,) * 3, (0.5,) * 3, (255,) * 3)
CROPS = Augmentation("crop_flip", 0.2)


def boundary(stages=None, seed=0, width=0.35):
    """The frozen part of a small network: up to the pool, or its first stages."""
    torch.manual_seed(seed)
    model = build_model("mobilenet_v2", 3, width_mult=width).eval()
    layers = model.features[:stages] if stages else [*model.features, model.pool, nn.Flatten(1)]
    return find_boundary(nn.Sequential(*layers), "a part", SMALL.image_size, CPU)


@pytest.fixture
def files(photos, tmp_path):
    folder = shutil.copytree(photos / "train", tmp_path / "photos")
    return sorted(folder.rglob("*.jpg"))


def dataset(files, augmentation=CROPS, seed=3):
    labels = np.zeros(len(files), np.int64)
    return ViewDataset(files, labels, check_images(files).sha256, SMALL, augmentation, seed)


def features(files, where=None, passes=(1, 2), workers=0, **arguments):
    return cached_features(where or boundary(), dataset(files, **arguments), passes, workers, CPU)


def everything(found):
    return [found.take(view, np.arange(found.index.shape[1])) for view in range(len(found.index))]


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_the_activations_of_the_views(files, workers):
    where, views = boundary(), dataset(files)
    found = cached_features(where, views, [1, 2], workers, CPU)
    assert found.fresh == 2 * len(files)
    for view, number in enumerate((1, 2)):
        images = np.stack([views[(number, index)][0].numpy() for index in range(len(files))])
        assert np.array_equal(found.take(view, np.arange(len(files))), where.forward(images))


def test_a_second_time_nothing_is_computed_and_nothing_differs(files):
    first, second = features(files), features(files)
    assert second.fresh == 0
    assert all(map(np.array_equal, everything(first), everything(second)))


def test_feature_maps_are_kept_in_half_precision_unless_they_must_be_exact(files):
    where = boundary(stages=5)
    halves, exact = features(files, where), features(files, where.exact())
    assert halves.rows.shards[0].dtype == np.float16
    for half, whole in zip(everything(halves), everything(exact), strict=True):
        assert half.dtype == whole.dtype == np.float32
        assert half.shape[1:] == where.shape
        assert np.array_equal(half, whole.astype(np.float16))
    assert where.row_bytes * 2 == where.exact().row_bytes


def test_a_changed_image_is_one_row_to_compute_and_a_moved_one_none(files):
    features(files, passes=[1])
    shutil.copy(files[-1], files[0])  # another content under an old name
    files[1] = files[1].rename(files[1].with_name("elsewhere.jpg"))
    files[2].write_bytes(files[2].read_bytes() + b"changed")
    assert features(files, passes=[1]).fresh == 1


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"passes": (3,)},
        {"augmentation": Augmentation("crop_flip", 0.3)},
        {"augmentation": Augmentation()},
        {"where": boundary(seed=1)},
        {"where": boundary(width=0.5)},
        {"where": boundary(stages=5)},
        {"where": boundary().exact() if boundary().dtype == "float16" else boundary(stages=6)},
    ],
)
def test_whatever_changes_the_rows_makes_them_new(files, other):
    features(files)
    passes = other.get("passes", (1, 2))
    assert features(files, **other).fresh == len(passes) * len(files)


def test_what_was_computed_before_an_interruption_is_not_computed_again(files, monkeypatch):
    where = boundary()
    monkeypatch.setattr(extract, "SHARD", 8 * where.row_bytes)

    def interrupt(done, total):
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_features(where, dataset(files), [1], 0, CPU, interrupt)
    assert features(files, passes=[1]).fresh == len(files) - 16


def test_an_image_that_became_unreadable_stops_it_and_the_rest_is_kept(files):
    views = dataset(files)
    files[-1].write_text("no image")
    with pytest.raises(DataError, match="not an image"):
        cached_features(boundary(), views, [1], 0, CPU)
    rest = features(files[:16], passes=[1])
    assert rest.fresh == 0


def test_rows_without_their_keys_are_not_there_yet(files):
    found = features(files)
    for path in found.folder.glob("*.keys.npy"):
        path.unlink()
    assert features(files).fresh == found.fresh


@pytest.mark.parametrize("kind", ["rows", "keys"])
@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00", b"nothing of the kind" * 100])
def test_a_damaged_shard_is_computed_again(files, kind, damage):
    found = features(files)
    for path in found.folder.glob(f"*.{kind}.npy"):
        path.write_bytes(damage)
    again = features(files)
    assert again.fresh == found.fresh
    assert all(map(np.array_equal, everything(features(files)), everything(again)))


def test_a_pickle_in_a_shard_is_not_run(files, tmp_path):
    marker = tmp_path / "marker"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    found = features(files)
    for path in found.folder.glob("*.npy"):
        np.save(path, np.asarray([Payload()], dtype=object), allow_pickle=True)
    assert features(files).fresh == found.fresh
    assert not marker.exists()


def test_stores_that_were_used_longest_ago_make_room_for_new_ones(files, monkeypatch):
    first = features(files, passes=[1])
    second = features(files, passes=[1], where=boundary(seed=1))
    os.utime(first.folder, (1, 1))
    size = sum(folder.size for folder in cache_folders())
    monkeypatch.setenv("MNET_CACHE_GB", str(1.2 * size / 1e9))
    features(files, passes=[1], where=boundary(seed=2))
    assert not first.folder.exists()
    assert second.folder.exists()
    assert everything(first)  # what is mapped can be read on


def test_features_larger_than_the_cache_are_refused_and_cost_no_other_store(files, monkeypatch):
    first = features(files, passes=[1])
    monkeypatch.setenv("MNET_CACHE_GB", "0.00001")
    with pytest.raises(MachineError, match="MNET_CACHE_GB"):
        features(files, passes=[1], where=boundary(seed=1))
    assert first.folder.exists()


@pytest.mark.parametrize("size", ["much", "nan", "inf"])
def test_a_cap_that_is_no_number_is_refused(files, monkeypatch, size):
    monkeypatch.setenv("MNET_CACHE_GB", size)
    with pytest.raises(UsageError, match="MNET_CACHE_GB"):
        features(files)


def test_an_unwritable_cache_folder_is_the_machines_fault(files, monkeypatch):
    views = dataset(files)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/no-folder")
    with pytest.raises(MachineError, match="cached_views=0"):
        cached_features(boundary(), views, [1], 0, CPU)


def test_the_cache_lists_its_stores_and_is_cleared(files):
    assert cache_folders() == []
    assert clear_cache() == 0
    found = features(files)
    [folder] = cache_folders()
    assert folder.path == found.folder
    assert folder.path.is_relative_to(platformdirs.user_cache_path("mnet"))
    assert folder.about["network"]["title"] == "a part"
    assert folder.size > found.fresh * boundary().row_bytes
    assert clear_cache() == folder.size
    assert cache_folders() == []
    assert features(files).fresh == found.fresh
