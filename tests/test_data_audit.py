import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mnet_cli.cli import run
from mnet_cli.data.audit import SERIOUS, examine
from mnet_cli.errors import DataError


def picture(seed: int, size=(96, 80)) -> Image.Image:
    """A picture of smooth blobs, which looks like no other."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def healthy(tmp_path):
    """A data set in which nothing is to be found."""
    seeds = iter(range(1000))
    for split, count in (("train", 4), ("val", 2)):
        for name in ("daisy", "roses"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(next(seeds)).save(folder / f"{number}.jpg")
    return tmp_path / "data"


def kinds(root) -> dict[str, list[tuple[str, ...]]]:
    found: dict[str, list[tuple[str, ...]]] = {}
    for finding in examine(str(root)).findings:
        found.setdefault(finding.kind, []).append(finding.paths)
    return found


def test_nothing_is_found_where_nothing_is_wrong(healthy, capsys):
    before = {path: path.stat().st_mtime_ns for path in healthy.rglob("*")}
    assert kinds(healthy) == {}
    assert run(["data", "check", str(healthy), "--strict"]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in healthy.rglob("*")} == before


def test_every_kind_is_found(healthy):
    train, val = healthy / "train", healthy / "val"
    (train / "daisy" / "cut.jpg").write_bytes((train / "daisy" / "0.jpg").read_bytes()[:900])
    (train / "daisy" / "text.png").write_text("<html>")
    picture(50).save(train / "daisy" / "really.jpg", format="PNG")
    picture(51, (20, 30)).save(train / "roses" / "small.png")
    frames = [picture(60), picture(61)]
    frames[0].save(train / "roses" / "moves.gif", save_all=True, append_images=frames[1:])
    shutil.copy(train / "roses" / "0.jpg", train / "roses" / "copy.jpg")
    shutil.copy(train / "roses" / "1.jpg", train / "daisy" / "rose.jpg")
    (train / "roses" / "phone.heic").touch()
    shutil.copy(train / "roses" / "2.jpg", val / "roses" / "leak.jpg")
    with Image.open(train / "daisy" / "1.jpg") as image:
        image.resize((140, 118)).save(val / "daisy" / "near.png")
    (train / "tulips").mkdir()
    picture(70).save(train / "tulips" / "0.jpg")
    found = kinds(healthy)
    assert sorted(found["unreadable"]) == [("train/daisy/cut.jpg",), ("train/daisy/text.png",)]
    assert found["extension of another format"] == [("train/daisy/really.jpg",)]
    assert found["tiny"] == [("train/roses/small.png",)]
    assert found["animated, first frame used"] == [("train/roses/moves.gif",)]
    assert found["same bytes"] == [("train/roses/0.jpg", "train/roses/copy.jpg")]
    assert found["same bytes in two classes"] == [("train/daisy/rose.jpg", "train/roses/1.jpg")]
    assert found["same bytes in two splits"] == [("train/roses/2.jpg", "val/roses/leak.jpg")]
    assert found["near duplicates in two splits"] == [("train/daisy/1.jpg", "val/daisy/near.png")]
    assert found["class missing in a split"] == [()]
    assert found["ignored"] == [()]
    assert found.keys() <= SERIOUS.keys()


def test_a_class_that_outweighs_another_is_found(tmp_path):
    for name, count in (("daisy", 23), ("roses", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            picture(number + 100 * count).save(tmp_path / name / f"{number}.png")
    assert list(kinds(tmp_path)) == ["imbalance"]


def test_a_class_that_only_val_has_and_one_class_alone_are_serious(healthy, tmp_path):
    (healthy / "val" / "tulips").mkdir()
    picture(70).save(healthy / "val" / "tulips" / "0.jpg")
    assert [f.detail for f in examine(str(healthy)).serious] == ["train has no tulips"]
    (tmp_path / "one" / "daisy").mkdir(parents=True)
    picture(71).save(tmp_path / "one" / "daisy" / "0.jpg")
    assert [f.kind for f in examine(str(tmp_path / "one")).serious] == ["only one class"]


def test_a_huge_image_is_found(healthy):
    Image.new("L", (8000, 7000)).save(healthy / "train" / "daisy" / "huge.png")
    assert kinds(healthy)["huge"] == [("train/daisy/huge.png",)]


def test_exit_codes_follow_how_serious_it_is(healthy, capsys):
    picture(51, (20, 30)).save(healthy / "train" / "roses" / "small.png")
    assert run(["data", "check", str(healthy)]) == 0
    assert run(["data", "check", str(healthy), "--strict"]) == 3
    (healthy / "train" / "roses" / "empty.jpg").touch()
    capsys.readouterr()
    assert run(["data", "check", str(healthy), "--json"]) == 3
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [finding["kind"] for finding in document["findings"]] == ["unreadable", "tiny"]
    assert document["images"]["train"] == {"daisy": 4, "roses": 6}
    assert "1 finding, unreadable first" in captured.err


def test_names_cannot_forge_lines(healthy, capsys):
    (healthy / "train" / "roses" / "a\n\x1b[31mnothing found.jpg").touch()
    assert run(["data", "check", str(healthy)]) == 3
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert not any(line.startswith("nothing found") for line in printed.splitlines())


def test_near_duplicates_are_reported_as_one_group(healthy, capsys):
    scene = picture(80)
    for number in range(8):
        scene.resize((96 + number, 80)).save(healthy / "train" / "roses" / f"frame{number}.png")
    scene.resize((60 + 64, 100)).save(healthy / "train" / "daisy" / "frame.png")
    assert run(["data", "check", str(healthy), "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["findings"]
    frames = [f"train/roses/frame{number}.png" for number in range(8)]
    assert found["kind"] == "near duplicates in two classes"
    assert found["paths"] == ["train/daisy/frame.png", *frames]
    assert found["detail"].startswith("9 images, neighbours differ in at most ")
    assert found["detail"].endswith(" of 64 bits")
    assert run(["data", "check", str(healthy)]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "frame" in line]
    assert "frame1.png = … 5 more … = train/roses/frame7.png: 9 images" in line
    assert "frame2.png" not in line


def test_two_splits_come_before_two_classes_in_a_group(healthy):
    scene = picture(80)
    for number, place in enumerate(("train/roses", "train/daisy", "val/daisy")):
        scene.resize((96 + number, 80)).save(healthy / place / "frame.png")
    assert list(kinds(healthy)) == ["near duplicates in two splits"]


def test_classes_and_splits_without_images_are_findings(healthy, capsys):
    (healthy / "train" / "tulips").mkdir()
    (healthy / "train" / "tulips" / "phone.heic").touch()
    shutil.rmtree(healthy / "val" / "roses")
    (healthy / "val" / "roses").mkdir()
    (healthy / "test").mkdir()
    assert run(["data", "check", str(healthy), "--json"]) == 3
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [(f["serious"], f["kind"], f["detail"]) for f in document["findings"]] == [
        (True, "class without images", "train/tulips has no usable image"),
        (True, "class without images", "val/roses has no usable image"),
        (True, "split without classes", "test has no class folders"),
        (False, "class missing in a split", "val has no tulips"),
        (False, "ignored", "tulips/phone.heic: unsupported format .heic"),
    ]
    assert document["images"]["train"] == {"daisy": 4, "roses": 4, "tulips": 0}
    assert "3 findings, class without images first" in captured.err


def test_a_data_set_whose_classes_are_all_empty_is_examined(tmp_path):
    for name in ("daisy", "roses"):
        (tmp_path / name).mkdir()
    assert [f.detail for f in examine(str(tmp_path)).findings] == [
        "daisy has no usable image",
        "roses has no usable image",
    ]


def test_class_names_that_training_refuses_are_a_finding(healthy):
    (healthy / "train" / "Daisy").mkdir()
    picture(70).save(healthy / "train" / "Daisy" / "0.jpg")
    [found] = [f for f in examine(str(healthy)).serious if f.kind == "unusable class names"]
    assert "'Daisy' and 'daisy' differ only by case" in found.detail


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "empty splits", "no val"])
def test_what_is_no_data_set_is_an_error(kind, tmp_path, capsys):
    root = tmp_path / "data"
    folders = {"empty": ["."], "empty splits": ["train", "val"], "no val": ["train/daisy"]}
    for folder in folders.get(kind, []):
        (root / folder).mkdir(parents=True)
    if kind == "file":
        root.touch()
    assert run(["data", "check", str(root), "--json"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mnet: error: ")
    with pytest.raises(DataError):
        examine(str(root))
