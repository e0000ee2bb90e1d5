"""The cache of frozen activations: what it computes, finds again, loses and never loses."""

import errno
import os
import platform
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.features
import platformdirs
import pytest
import torch
from torch import nn

from mnet_cli.data import loader as loaders
from mnet_cli.data.augment import Augmentation
from mnet_cli.data.image_files import FileImage
from mnet_cli.data.loader import ViewDataset
from mnet_cli.data.preprocess import Preprocess
from mnet_cli.data.validate import check_images
from mnet_cli.errors import DataError, MachineError, UsageError
from mnet_cli.features import boundary as features_boundary
from mnet_cli.features import extract, store
from mnet_cli.features.boundary import facts_of_machine, find_boundary
from mnet_cli.features.cache import cache_folders, clear_cache
from mnet_cli.features.extract import FeatureRequest, cached_features
from mnet_cli.features.store import open_rows, record_type, write_shard
from mnet_cli.models.registry import build_model
from mnet_cli.system import machine
from mnet_cli.system.machine import allow_open_files

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


def dataset(files, augmentation=CROPS, seed=3, preprocess=SMALL):
    labels = np.zeros(len(files), np.int64)
    files = [*map(FileImage, files)]
    return ViewDataset(files, labels, check_images(files).sha256, preprocess, augmentation, seed)


def look_up(views, where=None, passes=(1, 2), workers=0, on_progress=None):
    [found] = cached_features(
        [FeatureRequest(where or boundary(), views, passes)], workers, CPU, on_progress
    )
    return found


def features(files, where=None, passes=(1, 2), workers=0, **arguments):
    return look_up(dataset(files, **arguments), where, passes, workers)


def everything(found):
    return [found.take(view, np.arange(found.index.shape[1])) for view in range(len(found.index))]


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_the_activations_of_the_views(files, workers):
    where, views = boundary(), dataset(files)
    found = look_up(views, where, (1, 2), workers)
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
    assert halves.rows.shard(0)["row"].dtype == np.float16
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
        {"where": replace(boundary(), network={"title": "another part"})},
        {"preprocess": replace(SMALL, resize=40)},
        {"preprocess": replace(SMALL, mean=(0.4, 0.5, 0.5))},
        {"preprocess": replace(SMALL, background=(0, 0, 0))},
    ],
)
def test_whatever_changes_the_rows_makes_them_new(files, other):
    features(files)
    passes = other.get("passes", (1, 2))
    assert features(files, **other).fresh == len(passes) * len(files)


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (platform, "machine", "another"),
        (torch.backends.cpu, "get_cpu_capability", "ANOTHER"),
        (PIL.features, "version", "0.0"),
        (features_boundary, "version", "0.0"),  # of simplejpeg among others
    ],
)
def test_another_processor_or_libjpeg_has_a_store_of_its_own(
    owner, name, value, files, monkeypatch
):
    here = features(files, passes=[1])
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda *what: value)
        there = features(files, boundary(), passes=[1])
    assert (here.fresh, there.fresh) == (len(files), len(files))
    assert here.folder != there.folder
    assert features(files, boundary(), passes=[1]).fresh == 0


def test_a_gpu_is_part_of_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU, {device}")
    assert facts_of_machine(torch.device("cuda", 1))["processor"][-1] == "a GPU, cuda:1"
    assert len(facts_of_machine(CPU)["processor"]) == 2


def test_what_was_computed_before_an_interruption_is_not_computed_again(files, monkeypatch):
    where = boundary()
    monkeypatch.setattr(extract, "SHARD", 8 * (where.row_bytes + 32))

    def interrupt(done, total):
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look_up(dataset(files), where, [1], on_progress=interrupt)
    assert features(files, passes=[1]).fresh == len(files) - 16


def test_an_image_that_became_unreadable_stops_it_and_the_rest_is_kept(files):
    views = dataset(files)
    files[-1].write_text("no image")
    with pytest.raises(DataError, match="not an image"):
        look_up(views, passes=[1])
    rest = features(files[:16], passes=[1])
    assert rest.fresh == 0


def test_an_image_that_is_another_one_by_now_is_refused_and_not_kept(files):
    views = dataset(files)
    before = files[0].read_bytes()
    files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(DataError, match="changed since it was checked"):
        look_up(views, passes=[1])
    files[0].write_bytes(before)
    assert features(files, passes=[1]).fresh > 0


def shard_names(found):
    return sorted(path.name for path in found.folder.glob("*.npy"))


def shard_of(found):
    [path] = found.folder.glob("*.npy")
    return path


def test_a_shard_is_computed_again_after_a_change_of_any_byte_of_its_header(files):
    where, views = boundary(), dataset(files[:2])
    path = shard_of(look_up(views, where, [1]))
    content = path.read_bytes()
    for at in range(128):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        assert not len(open_rows(path.parent, FeatureRequest(where, views, [1]).record).keys), at
        assert not path.exists()
    assert look_up(views, where, [1]).fresh == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        lambda content: b"PK\x03\x04" + content,
        lambda content: b"nothing of the kind" * 100,
    ],
)
def test_a_damaged_shard_is_computed_again(files, damage):
    found = features(files)
    path = shard_of(found)
    path.write_bytes(damage(path.read_bytes()))
    again = features(files)
    assert again.fresh == found.fresh
    assert all(map(np.array_equal, everything(found), everything(again)))
    assert features(files).fresh == 0


def test_a_shard_of_rows_of_another_shape_is_not_used(files):
    found, where = features(files), boundary()
    record = record_type((7,), where.dtype)
    shard = np.zeros(len(found.rows.keys), record)
    shard["key"] = found.rows.keys
    shard_of(found).unlink()
    write_shard(found.folder, shard)
    assert features(files).fresh == found.fresh


def test_a_pickle_in_a_shard_is_not_run(files, tmp_path):
    marker = tmp_path / "marker"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    found = features(files)
    np.save(shard_of(found), np.asarray([Payload()], dtype=object), allow_pickle=True)
    assert features(files).fresh == found.fresh
    assert not marker.exists()


def test_many_small_shards_keep_no_files_open(files):
    where = boundary()
    for count in range(2, 14):
        features(files[:count], where, passes=[1])
    found = features(files[:13], where, passes=[1])
    assert len(shard_names(found)) == 12
    open_files = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.exists()]
    assert not [path for path in open_files if path.suffix == ".npy"]


LIMITED = """
import os, resource, sys
from pathlib import Path
import numpy as np
from mnet_cli.features import store

folder, hard = Path(sys.argv[1]), int(sys.argv[2]) or resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
store.MAPPED = 1
os.fsync = lambda file: None  # a test need not wait for the disk
record = store.record_type((4,), "float32")
for number in range(310):
    shard = np.zeros(2, record)
    shard["key"] = np.frombuffer(np.arange(16 * number, 16 * number + 16, dtype="<u4"), "V32")
    shard["row"] = number
    store.write_shard(folder, shard)
rows = store.open_rows(folder, record)
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= hard
order = np.random.default_rng(0).permutation(620)
for some in (order[:310], order[310:], order):
    numbers = [int.from_bytes(rows.keys[at].tobytes()[:4], "little") // 16 for at in some]
    assert rows.take(some)[:, 0].tolist() == numbers
left = [Path("/dev/null").open() for _ in range(90)]  # what else has to be open
open_shards = sum(path.resolve().suffix == ".npy" for path in Path("/dev/fd").iterdir())
print(open_shards)
"""


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="open files are not listed here")
@pytest.mark.parametrize("hard", [0, 256])
def test_more_shards_than_files_may_be_open_are_read(hard, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(hard)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 310 if not hard else 100 < int(done.stdout) < 256


def test_a_shard_that_was_closed_and_has_gone_is_the_machines_fault(files, monkeypatch):
    where = boundary()
    monkeypatch.setattr(extract, "SHARD", 1)
    monkeypatch.setattr(store, "MAPPED", 1)
    monkeypatch.setattr(store, "allow_open_files", lambda count: 3)
    found = features(files, where, passes=[1])
    assert np.array_equal(everything(found)[0], everything(features(files, where, passes=[1]))[0])
    clear_cache()
    with pytest.raises(MachineError, match=r"\.npy: cannot be opened again \(No such file"):
        everything(found)


def test_the_limit_on_open_files_is_raised_only_as_needed(monkeypatch):
    limits, refuses = [256, 1000], False

    def set_limits(kind, wanted):
        if refuses:
            raise ValueError("not allowed to raise maximum limit")
        limits[:] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    monkeypatch.setattr(machine, "_open_files", lambda: 20)
    assert allow_open_files(136) == 136
    assert limits == [256, 1000]
    assert allow_open_files(200) == 200
    assert limits == [320, 1000]
    assert allow_open_files(100) == 100
    assert limits == [320, 1000]
    assert allow_open_files(2000) == 880
    assert limits == [1000, 1000]
    limits[:], refuses = [256, resource.RLIM_INFINITY], True
    assert allow_open_files(200) == 136
    limits[:] = [110, 110]
    assert allow_open_files(200) == 1
    limits[:] = [resource.RLIM_INFINITY] * 2
    assert allow_open_files(200) == 200


def test_without_limits_as_on_windows_everything_may_be_open(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert allow_open_files(5000) == 5000


def test_clearing_while_it_is_computed_costs_only_time(files, monkeypatch):
    where = boundary()
    monkeypatch.setattr(extract, "SHARD", 8 * (where.row_bytes + 32))
    cleared = []

    def clear_once(done, total):
        if done == 16 and not cleared:
            cleared.append(clear_cache())

    found = look_up(dataset(files), where, [1], on_progress=clear_once)
    assert cleared[0] > 0
    assert np.array_equal(
        found.take(0, np.arange(24)), features(files, where, [1]).take(0, np.arange(24))
    )


def test_leftovers_of_a_killed_process_go_and_those_of_a_living_one_stay(files, host_in_names):
    folder = features(files).folder
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = host_in_names()
    stays = {f".about.json.{os.getppid()}-{host}.tmp", f".about.json.{dead.pid}-elsewhere.tmp"}
    for name in (f".about.json.{dead.pid}-{host}.tmp", *stays):
        (folder / name).touch()
    features(files)
    assert {path.name for path in folder.glob(".*")} == stays


def test_stores_that_were_used_longest_ago_make_room_for_new_ones(files, monkeypatch):
    first = features(files, passes=[1])
    expected = everything(first)
    second = features(files, passes=[1], where=boundary(seed=1))
    os.utime(first.folder, (1, 1))
    size = sum(folder.size for folder in cache_folders())
    monkeypatch.setenv("MNET_CACHE_GB", str(1.2 * size / 1e9))
    features(files, passes=[1], where=boundary(seed=2))
    assert not first.folder.exists()
    assert second.folder.exists()
    # What was read goes on being there.
    assert all(map(np.array_equal, everything(first), expected))


def test_one_pool_of_workers_computes_all_that_is_wanted(files, monkeypatch):
    pools = []

    class Counted(loaders.DataLoader):
        def __init__(self, *arguments, **options):
            pools.append(options["num_workers"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(loaders, "DataLoader", Counted)
    where, done = boundary(stages=5), []
    wanted = [
        FeatureRequest(where, dataset(files[:17]), (1, 2)),
        FeatureRequest(where.exact(), dataset(files[17:], Augmentation()), (1,)),
    ]
    both = cached_features(wanted, 2, CPU, lambda *step: done.append(step))
    assert pools == [2]
    assert done[-1] == (2 * 17 + 7, 2 * 17 + 7)
    assert [one.fresh for one in both] == [34, 7]
    expected = [everything(one) for one in both]
    names = [shard_names(one) for one in both]
    clear_cache()
    for one, rows, shards in zip(wanted, expected, names, strict=True):
        alone = look_up(one.views, one.boundary, one.numbers)
        assert all(map(np.array_equal, everything(alone), rows))
        assert shard_names(alone) == shards


def test_all_that_one_run_wants_is_kept_together(files, monkeypatch):
    where = boundary(stages=5)
    wanted = [
        FeatureRequest(where, dataset(files), [1]),
        FeatureRequest(where.exact(), dataset(files), [1]),
    ]
    size = sum(one.keys.size * one.record.itemsize for one in wanted)
    monkeypatch.setenv("MNET_CACHE_GB", str(1.2 * size / 1e9))
    for _ in range(2):
        found = cached_features(wanted, 0, CPU)
    assert [one.fresh for one in found] == [0, 0]


def test_a_store_that_has_grown_with_other_seeds_is_emptied_when_room_is_needed(files, monkeypatch):
    size = len(files) * FeatureRequest(boundary(), dataset(files), [1]).record.itemsize
    monkeypatch.setenv("MNET_CACHE_GB", str(2.5 * size / 1e9))
    for seed in range(5):
        assert features(files, passes=[1], seed=seed).fresh == len(files)
    assert features(files, passes=[1], seed=4).fresh == 0
    assert sum(folder.size for folder in cache_folders()) < 2.5 * size


def test_features_larger_than_the_cache_are_refused_and_cost_no_other_store(files, monkeypatch):
    first = features(files, passes=[1])
    monkeypatch.setenv("MNET_CACHE_GB", "0.00001")
    with pytest.raises(MachineError, match="MNET_CACHE_GB"):
        features(files, passes=[1], where=boundary(seed=1))
    assert first.folder.exists()


@pytest.mark.parametrize("size", ["much", "nan", "inf", "0", "-1", ""])
def test_a_cap_that_is_no_number_is_refused(files, monkeypatch, size):
    monkeypatch.setenv("MNET_CACHE_GB", size)
    with pytest.raises(UsageError, match="MNET_CACHE_GB"):
        features(files)


def test_an_unwritable_cache_folder_is_the_machines_fault(files, monkeypatch):
    views = dataset(files)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/no-folder")
    with pytest.raises(MachineError, match="cached_views=0"):
        look_up(views, passes=[1])


def test_the_cache_lists_its_stores_and_is_cleared(files):
    assert cache_folders() == []
    assert clear_cache() == 0
    found = features(files)
    [folder] = cache_folders()
    assert folder.path == found.folder
    assert folder.path.is_relative_to(platformdirs.user_cache_path("mnet"))
    assert folder.about["network"]["title"] == "a part"
    assert folder.size > found.fresh * boundary().row_bytes
    broken = folder.path / "about.json"
    broken.write_text("[" * 100_000)
    assert cache_folders()[0].about == {}
    assert clear_cache() > found.fresh * boundary().row_bytes
    assert cache_folders() == []
    assert features(files).fresh == found.fresh


def test_a_cache_folder_that_is_no_folder_is_the_machines_fault(monkeypatch, tmp_path):
    (tmp_path / "mnet").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MachineError, match="cannot be listed"):
        cache_folders()


def test_clearing_passes_over_what_has_gone_and_names_what_cannot_be_removed(files, monkeypatch):
    def gone(path):
        raise FileNotFoundError(path)

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    features(files, passes=[1])
    monkeypatch.setattr(shutil, "rmtree", gone)
    assert clear_cache() == 0
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(MachineError, match=r"cannot be removed.*Permission denied"):
        clear_cache()


def test_files_that_are_deleted_as_soon_as_they_are_written_end_it(files, monkeypatch):
    compute = extract._compute

    def vanish(requests, *arguments):
        compute(requests, *arguments)
        clear_cache()

    monkeypatch.setattr(extract, "_compute", vanish)
    with pytest.raises(MachineError, match="deleted as soon as they are written"):
        features(files, passes=[1])


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_a_shard_that_the_system_does_not_open_is_not_taken_for_damaged(number, files, monkeypatch):
    found = features(files, passes=[1])
    paths = shard_names(found)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "open_memmap", refuse)
        with pytest.raises(MachineError, match="ulimit"):
            features(files, passes=[1])
    assert shard_names(features(files, passes=[1])) == paths


def test_a_shard_that_cannot_be_read_is_computed_again(files, monkeypatch):
    features(files, passes=[1])
    real, calls = np.lib.format.open_memmap, []

    def fail_once(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments, **options)

    monkeypatch.setattr(np.lib.format, "open_memmap", fail_once)
    assert features(files, passes=[1]).fresh == len(files)
