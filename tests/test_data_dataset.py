import shutil
from pathlib import Path

import pytest

from mnet_cli.data.dataset import open_dataset, take_split
from mnet_cli.errors import DataError, MnetError


@pytest.fixture
def copy(photos, tmp_path):
    return shutil.copytree(photos, tmp_path / "copy")


def files(data):
    """The files and labels of each split."""
    return {
        split: [(image.name, label) for image, label in zip(samples, samples.labels, strict=True)]
        for split, samples in data.splits.items()
    }


def test_split_folders_are_taken_as_they_are(photos):
    data = open_dataset(str(photos))
    assert data.class_names == ("blue", "green", "red")
    assert {split: len(s) for split, s in data.splits.items()} == {"train": 24, "val": 12}
    assert all(Path(image.where).is_file() for image in data.files("val"))
    assert data.splits["val"].labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_one_folder_of_classes_is_divided_the_same_way_each_time(photos):
    first, second = (
        open_dataset(str(photos / "train"), val_fraction=0.25, seed=1) for _ in range(2)
    )
    assert files(first) == files(second)
    assert {split: len(s) for split, s in first.splits.items()} == {"train": 18, "val": 6}
    digests = [{row.tobytes() for row in samples.sha256} for samples in first.splits.values()]
    assert not digests[0] & digests[1]
    assert files(open_dataset(str(photos / "train"), val_fraction=0.25, seed=2)) != files(first)


def test_fraction_for_a_split_data_set_is_refused(photos):
    with pytest.raises(DataError, match="already split"):
        open_dataset(str(photos), val_fraction=0.2)


def test_bad_images_stop_it_or_are_skipped_and_named(copy):
    (copy / "train" / "red" / "0.jpg").write_text("no image")
    with pytest.raises(DataError, match="1 bad image") as caught:
        open_dataset(str(copy))
    assert any("0.jpg" in detail for detail in caught.value.details)
    data = open_dataset(str(copy), skip_bad=True)
    assert [path for path, _ in data.skipped] == ["train/red/0.jpg"]
    assert len(data.splits["train"]) == 23


def test_same_image_in_two_splits_or_classes_is_noted(copy):
    shutil.copy(copy / "train" / "red" / "1.jpg", copy / "val" / "red" / "twin.jpg")
    shutil.copy(copy / "train" / "red" / "2.jpg", copy / "train" / "blue" / "twin.jpg")
    notes = open_dataset(str(copy)).notes
    assert any("two splits" in note and "val/red/twin.jpg" in note for note in notes)
    assert any("two classes" in note and "train/blue/twin.jpg" in note for note in notes)


def test_labels_follow_the_names_a_model_has(photos):
    names = ("red", "extra", "green", "blue")
    data = open_dataset(str(photos), class_names=names)
    assert data.class_names == names
    assert set(data.splits["val"].labels) == {0, 2, 3}
    with pytest.raises(MnetError, match="red"):
        open_dataset(str(photos), class_names=("green", "blue"))


def test_manifest_lists_every_image_once(photos):
    rows = list(open_dataset(str(photos)).manifest())
    assert len(rows) == 36
    assert rows[0].keys() == {"path", "class", "split", "sha256"}
    assert all((photos / row["path"]).is_file() for row in rows)


def test_an_earlier_split_is_taken_by_content_and_a_damaged_one_refused(photos, tmp_path):
    divided = open_dataset(str(photos / "train"), val_fraction=0.25)
    rows = [f"{row['sha256']},{row['split']}" for row in divided.manifest()]
    manifest = tmp_path / "split.csv"
    manifest.write_text("\n".join(["sha256,split", *rows]))
    whole = open_dataset(str(photos / "train"))
    assert files(take_split(whole, manifest)) == files(divided)
    manifest.write_text("sha256,split\n" + "\n".join(row.replace(",", "0,") for row in rows))
    with pytest.raises(DataError, match="lists no image"):
        take_split(whole, manifest)
    for damage in (b"nothing,else\n1,2\n", b"\xff\xfe\x00"):
        manifest.write_bytes(damage)
        with pytest.raises(DataError, match=r"is not the split|lists no image"):
            take_split(whole, manifest)
