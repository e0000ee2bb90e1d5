"""`mnet data pack`."""

import io
import json
import tarfile

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from mnet_cli.cli import run
from mnet_cli.data.sources import open_checked, open_source
from mnet_cli.errors import DataError


def content_of(root):
    """For each split and name the class and the bytes."""
    return {
        (split, image.name): (source.class_names[label], image.read())
        for split, source in open_checked(str(root)).items()
        for image, label in zip(source, source.labels, strict=True)
    }


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_packed_set_holds_the_same_images(photos, tmp_path, kind, capsys):
    packed = tmp_path / "packed"
    command = ["data", "pack", str(photos), str(packed), "--format", kind, "--shard-mb", "0.005"]
    assert run([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == {"train": 24, "val": 12}
    assert document["shards"] == document["fresh"] > 3
    assert content_of(packed) == content_of(photos)
    before = files_of(packed)
    assert run(command) == 0
    assert "already packed" in capsys.readouterr().out
    assert files_of(packed) == before
    assert run(["data", "check", str(packed)]) == 0


def test_a_set_that_is_packed_from_shards_is_the_same(photos, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(["data", "pack", str(photos), str(one), "--format", "parquet"]) == 0
    assert run(["data", "pack", str(one), str(two)]) == 0
    assert content_of(two) == content_of(photos)


def test_a_set_without_splits_is_packed_into_one_folder(photos, tmp_path):
    packed = tmp_path / "packed"
    assert run(["data", "pack", str(photos / "train"), str(packed)]) == 0
    assert content_of(packed) == content_of(photos / "train")
    assert (packed / "classes.txt").read_text().split() == list(
        open_source(str(photos / "train"))["all"].class_names
    )


def test_parquet_shards_are_those_of_hugging_face(photos, tmp_path):
    assert run(["data", "pack", str(photos), str(tmp_path / "p"), "--format", "parquet"]) == 0
    file = pyarrow.parquet.ParquetFile(tmp_path / "p" / "val" / "shard-00000.parquet")
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"]["_type"] == "ClassLabel"
    row = file.read().to_pylist()[0]
    names = features["label"]["names"]
    assert row["image"]["path"].startswith(f"{names[row['label']]}/")
    assert row["image"]["bytes"] == (photos / "val" / row["image"]["path"]).read_bytes()


def test_a_stopped_call_is_continued(draw_photos, tmp_path, capsys, monkeypatch):
    from mnet_cli.data import pack

    photos = draw_photos(tmp_path / "photos", train=8, val=4)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = ["--shard-mb", "0.003"]
    assert run(["data", "pack", str(photos), str(whole), *options]) == 0
    written = []

    def fail_later(*arguments):
        written.append(arguments)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        return pack.TarWriter(*arguments)

    with monkeypatch.context() as patch:
        patch.setitem(pack.WRITERS, "tar", fail_later)
        assert run(["data", "pack", str(photos), str(stopped), *options]) == 5
    assert not list(stopped.rglob("*.tmp"))
    with pytest.raises(DataError, match="is not packed to its end"):
        open_source(str(stopped))
    capsys.readouterr()
    assert run(["data", "pack", str(photos), str(stopped), *options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fresh"] == document["shards"] - 3
    assert files_of(stopped) == files_of(whole)


def test_shards_that_are_lost_or_changed_are_noticed(photos, tmp_path, capsys):
    packed = tmp_path / "packed"
    command = ["data", "pack", str(photos), str(packed), "--shard-mb", "0.005"]
    assert run(command) == 0
    shard = packed / "train" / "shard-00001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-512] + b"\1" * 512)
    assert run(command) == 3
    assert "has changed since it was packed" in capsys.readouterr().err
    shard.write_bytes(content + b"\0" * 512)
    with pytest.raises(DataError, match=r"manifest.json lists it with"):
        open_source(str(packed))
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        open_source(str(packed))


def test_a_manifest_of_another_program_is_left_alone(photos, tmp_path, capsys):
    packed = tmp_path / "packed"
    assert run(["data", "pack", str(photos), str(packed)]) == 0
    (packed / "manifest.json").write_text('{"name": "flowers", "files": []}')
    assert content_of(packed) == content_of(photos)
    assert run(["data", "pack", str(photos), str(packed)]) == 2
    assert "was written by another program" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("root", ["./packed", "packed/", "packed/."])
def test_a_packed_set_may_be_named_in_any_way(photos, tmp_path, monkeypatch, kind, root):
    monkeypatch.chdir(tmp_path)
    assert run(["data", "pack", str(photos), "packed", "--format", kind]) == 0
    assert list(open_source(root)) == ["train", "val"]
    monkeypatch.chdir("packed")
    assert list(open_source(".")) == ["train", "val"]


def test_images_of_the_same_name_in_two_folders_are_both_packed(photos, tmp_path):
    rows = ["path,label"]
    for number, image in enumerate(sorted((photos / "val").rglob("*.jpg"))):
        path = tmp_path / f"camera{number % 2}" / image.parent.name / f"{number // 2}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.read_bytes())
        rows.append(f"{path.relative_to(tmp_path)},{path.parent.name}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    assert run(["data", "pack", str(tmp_path / "list.csv"), str(tmp_path / "packed")]) == 0
    before, after = content_of(tmp_path / "list.csv"), content_of(tmp_path / "packed")
    assert sorted(before.values()) == sorted(after.values())


def test_images_that_have_changed_are_not_taken_for_packed(draw_photos, tmp_path, capsys):
    photos = draw_photos(tmp_path / "photos", train=2, val=1)
    command = ["data", "pack", str(photos), str(tmp_path / "packed")]
    assert run(command) == 0
    (photos / "train/red/0.jpg").write_bytes((photos / "train/red/1.jpg").read_bytes())
    assert run(command) == 2
    assert "holds another set (listing_sha256 differs)" in capsys.readouterr().err


def test_large_images_are_made_smaller(draw_photos, tmp_path):
    photos = draw_photos(tmp_path / "photos", train=2, val=1)
    large = photos / "train" / "red" / "large.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    picture = Image.fromarray(noise).resize((600, 400), Image.Resampling.BICUBIC)
    picture.save(large, exif=exif, quality=98)
    clear = photos / "train" / "red" / "clear.png"
    Image.new("RGBA", (400, 300), (255, 0, 0, 100)).save(clear)
    packed = tmp_path / "packed"
    assert run(["data", "pack", str(photos), str(packed), "--size", "64"]) == 0
    found, before = content_of(packed), content_of(photos)
    changed = [key for key in before if found[key] != before[key]]
    assert changed == [("train", "train/red/large.jpg")]
    with Image.open(io.BytesIO(found[changed[0]][1])) as smaller:
        assert smaller.size == (64, 96)
        assert not smaller.getexif()
        expected = picture.rotate(-90, expand=True).resize((64, 96), Image.Resampling.BICUBIC)
        difference = np.abs(np.asarray(smaller, float) - np.asarray(expected, float))
    assert difference.mean() < 3


@pytest.mark.parametrize(
    ("prepare", "options", "code", "says"),
    [
        (lambda to: (to / "a").write_text("x"), [], 2, "is not empty and has no manifest.json"),
        (lambda to: None, ["--size", "16"], 2, "greater than or equal to 32"),
        (lambda to: None, ["--format", "zip"], 2, "zip"),
        (lambda to: None, ["--shard-mb", "inf"], 2, "less than or equal to"),
    ],
)
def test_a_wrong_call_changes_nothing(photos, tmp_path, capsys, prepare, options, code, says):
    destination = tmp_path / "packed"
    destination.mkdir()
    prepare(destination)
    before = files_of(tmp_path)
    assert run(["data", "pack", str(photos), str(destination), *options]) == code
    assert says in capsys.readouterr().err
    assert files_of(tmp_path) == before


def test_other_options_for_the_same_folder_are_refused(photos, tmp_path, capsys):
    destination = str(tmp_path / "packed")
    assert run(["data", "pack", str(photos), destination]) == 0
    assert run(["data", "pack", str(photos), destination, "--size", "48"]) == 2
    assert "holds another set (size, quality differ)" in capsys.readouterr().err
    assert run(["data", "pack", str(photos), str(photos / "train" / "p")]) == 2
    assert "is inside the data set" in capsys.readouterr().err
    assert run(["data", "pack", str(photos), "s3://bucket/packed"]) == 2
    assert "cannot be packed to a URL" in capsys.readouterr().err


def test_shards_are_plain_tar_files(photos, tmp_path):
    assert run(["data", "pack", str(photos), str(tmp_path / "p")]) == 0
    with tarfile.open(tmp_path / "p" / "val" / "shard-00000.tar") as tar:
        names = tar.getnames()
        about = json.load(tar.extractfile(names[1]))
    assert names[:2] == ["000000000.jpg", "000000000.json"]
    assert about["path"].startswith(f"{about['label']}/")
