"""Splits that are fair to each class, never leak, and come out the same again."""

import csv
import os
from pathlib import Path

import pytest

from mnet_cli.data import split
from mnet_cli.data.sources import open_checked
from mnet_cli.data.split import assign, split_folder
from mnet_cli.errors import DataError


def images(root: Path, **count: int) -> Path:
    """Files of different bytes in one folder a class; nothing here decodes them."""
    for name, number in count.items():
        (root / name).mkdir(parents=True)
        for k in range(number):
            (root / name / f"{k}.jpg").write_bytes(f"{name} {k}".encode())
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def hashes_of(count: int, salt: str = "") -> list[str]:
    return [f"{salt}{k:04d}" for k in range(count)]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.99])
def test_each_class_gives_its_share_and_keeps_one_on_each_side(fraction):
    hashes = hashes_of(40, "a") + hashes_of(7, "b") + hashes_of(2, "c")
    labels = [0] * 40 + [1] * 7 + [2] * 2
    is_val = assign(hashes, labels, fraction, seed=0)
    for label, total in ((0, 40), (1, 7), (2, 2)):
        chosen = sum(v for v, its in zip(is_val, labels, strict=True) if its == label)
        assert chosen == max(1, min(total - 1, round(total * fraction)))


def test_the_order_of_files_has_no_influence():
    hashes, labels = hashes_of(30), [k % 3 for k in range(30)]
    forward = dict(zip(hashes, assign(hashes, labels, 0.3, 5), strict=True))
    backward = dict(zip(hashes[::-1], assign(hashes[::-1], labels[::-1], 0.3, 5), strict=True))
    assert forward == backward


def test_another_seed_gives_another_split():
    hashes, labels = hashes_of(60), [k % 2 for k in range(60)]
    assert assign(hashes, labels, 0.5, 0) == assign(hashes, labels, 0.5, 0)
    assert assign(hashes, labels, 0.5, 0) != assign(hashes, labels, 0.5, 1)


def test_the_same_bytes_land_on_one_side_within_and_across_classes():
    unique = hashes_of(20)
    hashes = unique * 3 + hashes_of(20, "b") + unique[:5]
    labels = [0] * 60 + [1] * 25
    for seed in range(20):
        sides: dict[str, set[bool]] = {}
        for content, is_val in zip(hashes, assign(hashes, labels, 0.3, seed), strict=True):
            sides.setdefault(content, set()).add(is_val)
        assert all(len(side) == 1 for side in sides.values())
        assert sum(sides[content] == {True} for content in unique) == round(20 * 0.3)
        assert all(sides[content] == {False} for content in unique[:5])


@pytest.mark.parametrize(
    ("hashes", "labels"),
    [
        (["a", "b", "c"], ["daisy", "roses", "roses"]),  # one image
        (["a", "a", "b", "c"], ["daisy", "daisy", "roses", "roses"]),  # one image twice
        (["a", "b", "a", "b", "c", "d"], ["daisy"] * 2 + ["roses"] * 4),  # none of its own
    ],
)
def test_a_class_that_cannot_be_on_both_sides_is_refused_by_name(hashes, labels):
    with pytest.raises(DataError, match=r"^class daisy: "):
        assign(hashes, labels, 0.5, 0)


def test_a_folder_becomes_train_and_val_with_a_manifest(tmp_path):
    source = images(tmp_path / "photos", daisy=10, roses=5)
    before = tree(source)
    steps = []
    counts = split_folder(
        source, tmp_path / "out", val_fraction=0.2, on_progress=lambda *step: steps.append(step)
    )
    assert counts == split.SplitCounts({"daisy": 8, "roses": 4}, {"daisy": 2, "roses": 1}, False)
    assert steps == [(k, 30) for k in range(1, 31)]
    assert tree(source) == before

    found = open_checked(str(tmp_path / "out"))
    assert {name: len(its.names) for name, its in found.items()} == {"train": 12, "val": 3}
    made = tree(tmp_path / "out")
    with (tmp_path / "out" / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "class", "split", "sha256"]
    assert {row["path"] for row in rows} == made.keys() - {"split.csv"}
    for row in rows:
        side, name, file_name = row["path"].split("/")
        assert (side, name) == (row["split"], row["class"])
        assert made[row["path"]] == before[f"{name}/{file_name}"]
        assert len(row["sha256"]) == 64
    assert not [p for p in tmp_path.iterdir() if p.name not in ("photos", "out")]


def test_files_are_linked_unless_copies_are_asked_for(tmp_path):
    source = images(tmp_path / "photos", a=4, b=4)
    split_folder(source, tmp_path / "linked")
    split_folder(source, tmp_path / "copied", copy=True)
    linked = {p.stat().st_ino for p in (tmp_path / "linked").rglob("*.jpg")}
    copied = {p.stat().st_ino for p in (tmp_path / "copied").rglob("*.jpg")}
    originals = {p.stat().st_ino for p in source.rglob("*.jpg")}
    assert linked == originals
    assert not copied & originals
    assert tree(tmp_path / "linked") == tree(tmp_path / "copied")


def test_a_file_system_without_hard_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(18, "Invalid cross-device link")

    source = images(tmp_path / "photos", a=4, b=4)
    monkeypatch.setattr(os, "link", refuse)
    split_folder(source, tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 8


def test_splitting_again_changes_nothing(tmp_path):
    source = images(tmp_path / "photos", a=6, b=6)
    first = split_folder(source, tmp_path / "out", seed=3)
    stamp = (tmp_path / "out" / "split.csv").stat().st_mtime_ns
    again = split_folder(source, tmp_path / "out", seed=3)
    assert (first.already_split, again.already_split) == (False, True)
    assert (again.train, again.val) == (first.train, first.val)
    assert (tmp_path / "out" / "split.csv").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("arguments", [{"seed": 1}, {"val_fraction": 0.5}])
def test_other_arguments_over_a_split_are_refused_and_change_nothing(tmp_path, arguments):
    source = images(tmp_path / "photos", a=20, b=20)
    split_folder(source, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(DataError, match="contains another split"):
        split_folder(source, tmp_path / "out", **arguments)
    assert tree(tmp_path / "out") == before


def test_a_split_with_images_gone_is_not_called_complete(tmp_path):
    source = images(tmp_path / "photos", a=4, b=4)
    split_folder(source, tmp_path / "out")
    next((tmp_path / "out" / "val").rglob("*.jpg")).unlink()
    with pytest.raises(DataError, match=r"1 images of its split\.csv are missing"):
        split_folder(source, tmp_path / "out")


def test_a_folder_of_something_else_is_never_touched(tmp_path):
    source = images(tmp_path / "photos", a=4, b=4)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("three years")
    with pytest.raises(DataError, match="is not empty and has no"):
        split_folder(source, tmp_path / "out")
    assert tree(tmp_path / "out") == {"thesis.txt": b"three years"}


def test_an_empty_folder_may_be_filled(tmp_path):
    source = images(tmp_path / "photos", a=4, b=4)
    (tmp_path / "out").mkdir()
    split_folder(source, tmp_path / "out")
    assert (tmp_path / "out" / "split.csv").is_file()


def test_a_destination_inside_the_source_is_refused(tmp_path):
    source = images(tmp_path / "photos", a=4, b=4)
    for inside in (source, source / "split"):
        with pytest.raises(DataError, match="is inside the source folder"):
            split_folder(source, inside)
    assert sorted(p.name for p in source.iterdir()) == ["a", "b"]


def test_a_source_that_is_split_already_is_refused(tmp_path):
    images(tmp_path / "photos" / "train", a=2, b=2)
    images(tmp_path / "photos" / "val", a=2, b=2)
    with pytest.raises(DataError, match="already split into train and val"):
        split_folder(tmp_path / "photos", tmp_path / "out")


def test_subfolders_become_part_of_the_name_without_collisions(tmp_path):
    source = images(tmp_path / "photos", a=3, b=3)
    for name in ("x/y/0.jpg", "x__y__0.jpg", "X__Y__0.JPG"):
        (source / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (source / "a" / name).write_bytes(name.encode())
    split_folder(source, tmp_path / "out")
    made = {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.parent.name == "a"}
    assert len({name.casefold() for name in made}) == 6
    assert {"0.jpg", "1.jpg", "2.jpg"} < made.keys()
    assert made["x__y__0-3.jpg"] == b"x/y/0.jpg"


def test_a_stop_halfway_leaves_nothing_and_the_next_try_succeeds(tmp_path):
    source = images(tmp_path / "photos", a=4, b=4)

    def stop(done, _total):
        if done == 12:  # while files are being placed
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        split_folder(source, tmp_path / "out", on_progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]
    assert not split_folder(source, tmp_path / "out").already_split


@pytest.mark.skipif(os.name != "posix", reason="needs names that are any bytes")
def test_names_of_any_bytes_survive_in_a_valid_manifest(tmp_path):
    source = images(tmp_path / "photos", a=3, b=3)
    for name in (os.fsdecode(b"\xff.jpg"), "two\nlines.jpg", 'a,"b.jpg'):
        (source / "a" / name).write_bytes(os.fsencode(name))
    split_folder(source, tmp_path / "out")
    with (tmp_path / "out" / "split.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 10
    assert split_folder(source, tmp_path / "out").already_split
