"""The report page, read back with an HTML parser as a browser would."""

import base64
import io
import math
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mnet_cli.data.image_files import FileImage
from mnet_cli.errors import MachineError
from mnet_cli.inference.evaluate import Evaluation, score
from mnet_cli.inference.metrics import Predictions
from mnet_cli.report.html import WrongImage, write_report

VOID = {"meta", "br", "img", "line", "polyline"}
CONFUSION = np.array([[8, 2], [1, 9]])
HOSTILE = '<script>alert("1")</script> & \x1b[31m\n\u202e'
HOSTILE_SHOWN = '<script>alert("1")</script> & \\x1b[31m\\n\\u202e'


@dataclass
class Page(HTMLParser):
    """Elements with their attributes, the text inside each, and unbalanced tags."""

    elements: list = field(default_factory=list)
    open_tags: list = field(default_factory=list)
    unbalanced: list = field(default_factory=list)

    def __post_init__(self):
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag, attrs):
        self.elements.append({"tag": tag, "text": "", **dict(attrs)})
        if tag not in VOID:
            self.open_tags.append((tag, self.elements[-1]))

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "text": "", **dict(attrs)})

    def handle_endtag(self, tag):
        if not self.open_tags or self.open_tags[-1][0] != tag:
            self.unbalanced.append(tag)
        else:
            self.open_tags.pop()

    def handle_data(self, data):
        for _, element in self.open_tags:
            element["text"] += data

    def all(self, tag, css=None):
        return [
            element
            for element in self.elements
            if element["tag"] == tag and (css is None or css in element.get("class", "").split())
        ]

    def texts(self, tag, css=None):
        return [element["text"].strip() for element in self.all(tag, css)]


def epoch_rows(count):
    return [
        {
            "epoch": epoch,
            "train_loss": 2 / epoch,
            "val_loss": 2.5 / epoch,
            "top1": 1 - 0.5 / epoch,
            "macro_f1": 0.9 - 0.5 / epoch,
            "lr": 1e-3,
            "images_per_second": 61.25,
            "seconds": 12.5,
        }
        for epoch in range(1, count + 1)
    ]


def evaluation_of(confusion, class_names) -> Evaluation:
    """An evaluation with these counts, rows true."""
    cells = np.argwhere(confusion).repeat(confusion[confusion > 0], axis=0)
    labels, classes = cells.T
    zeros = np.zeros(len(labels))
    predictions = Predictions(classes, (classes != labels).astype(np.int32), zeros, zeros)
    return score([predictions], labels, class_names, [Path("a.jpg")] * len(labels))


def report(folder, *, class_names=("daisy", "roses"), confusion=CONFUSION, **changes):
    """Write a report with `changes` to a small default and parse it."""
    content = {
        "title": "v2_flowers",
        "facts": [("Model", "mobilenet_v2")],
        "epochs": epoch_rows(3),
        "evaluation": evaluation_of(confusion, class_names),
    } | changes
    write_report(folder / "report.html", **content)
    page = Page()
    page.feed((folder / "report.html").read_text(encoding="utf-8"))
    page.close()
    assert not page.unbalanced
    assert not page.open_tags
    return page


def many_classes(count):
    """Names and a confusion in which every class is taken once for the next one."""
    confusion = 3 * np.eye(count, dtype=np.int64) + np.roll(np.eye(count, dtype=np.int64), 1, 1)
    return {"class_names": [f"class {n}" for n in range(count)], "confusion": confusion}


def wrong_image(file, probability=0.9):
    return WrongImage(f"val/{file.name}", FileImage(file), "daisy", "roses", probability)


def test_headline_shows_top1_with_its_interval_and_macro_f1(tmp_path):
    page = report(tmp_path, best_epoch=2)
    headline = page.texts("div", "headline")[0]
    # 17 of 20, and its Wilson interval; F1 of 16/19 and 18/21.
    assert "85.0%" in headline
    assert "64.0\u201394.8%, 17 of 20 images" in headline
    assert f"{100 * (16 / 19 + 18 / 21) / 2:.1f}%" in headline
    assert page.texts("h1") == ["v2_flowers"]


def test_classes_without_validation_images_are_named(tmp_path):
    names, confusion = ["daisy", "roses", "tulips"], np.array([[8, 2, 0], [1, 8, 1], [0, 0, 0]])
    page = report(tmp_path, class_names=names, confusion=confusion)
    assert "mean over 2 of 3 classes" in page.texts("div", "headline")[0]
    assert "No validation images of 'tulips': left out of macro F1." in page.texts("p", "soft")
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    report(tmp_path)
    assert "No validation images" in content
    assert "No validation images" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_needs_nothing_from_outside_and_runs_nothing(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    page = report(tmp_path, wrong=[wrong_image(tmp_path / "a.png")])
    tags = {element["tag"] for element in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "base", "a"}
    addresses = [
        value
        for element in page.elements
        for name, value in element.items()
        if name in ("src", "href", "srcset", "action", "xlink:href")
    ]
    assert len(addresses) == 1
    assert addresses[0].startswith("data:image/jpeg;base64,")
    style = page.texts("style")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_hostile_text_stays_text_wherever_it_stands(tmp_path):
    wrong = WrongImage(HOSTILE, FileImage(tmp_path / "none.jpg"), HOSTILE, HOSTILE, 0.5)
    page = report(
        tmp_path,
        title=HOSTILE,
        facts=[(HOSTILE, HOSTILE)],
        class_names=[HOSTILE, "roses"],
        wrong=[wrong],
        next_commands=[HOSTILE],
        recipe=HOSTILE,
        environment=[(HOSTILE, HOSTILE)],
    )
    assert not page.all("script")
    assert page.texts("h1") == [HOSTILE_SHOWN]
    assert page.texts("span", "path") == [HOSTILE_SHOWN]
    assert page.all("span", "path")[0]["title"] == HOSTILE_SHOWN
    assert page.texts("td")[0] == HOSTILE_SHOWN
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "\x1b" not in content
    assert "\u202e" not in content


@given(st.text(min_size=1))
@settings(max_examples=30, deadline=None)
def test_any_class_name_comes_through_as_one_line_of_text(tmp_path_factory, name):
    page = report(tmp_path_factory.mktemp("any"), class_names=[name, "roses"])
    # Rows of the matrix and of the class table name the class: once each, the same way.
    first, _, second, _ = [e["text"] for e in page.all("th", "name") if e.get("scope") == "row"]
    assert first == second
    assert first.isprintable()
    if name.isprintable():
        assert first == name


def test_a_file_name_that_is_not_utf8_leaves_a_valid_page(tmp_path):
    page = report(tmp_path, wrong=[wrong_image(Path("ros\udcff.jpg"))])
    assert page.texts("span", "path") == ["val/ros\\udcff.jpg"]


def test_recipe_keeps_its_lines(tmp_path):
    page = report(tmp_path, recipe="model:\n  arch: mobilenet_v2\n", next_commands=["a", "b"])
    assert page.texts("pre") == ["a\nb", "model:\n  arch: mobilenet_v2"]


@pytest.mark.parametrize("count", [1, 2, 20, 300])
def test_curves_have_a_point_an_epoch_in_both_charts(tmp_path, count):
    page = report(tmp_path, epochs=epoch_rows(count), best_epoch=count)
    lines = page.all("polyline")
    assert len(lines) == 4
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
        assert len(points) == count
        assert [x for x, _ in points] == sorted(x for x, _ in points)
        assert all(0 <= x <= 480 and 0 <= y <= 250 for x, y in points)
    assert len(page.all("line", "best")) == 2
    assert page.texts("text").count(f"best: epoch {count}") == 2


def test_curves_go_down_where_values_do(tmp_path):
    page = report(tmp_path, epochs=epoch_rows(5))
    loss, score = page.all("polyline")[0], page.all("polyline")[2]
    heights = [[float(p.split(",")[1]) for p in line["points"].split()] for line in (loss, score)]
    assert heights[0] == sorted(heights[0])  # SVG counts down from the top
    assert heights[1] == sorted(heights[1], reverse=True)
    assert not page.all("line", "best")


def test_ticks_are_round_numbers_around_the_data(tmp_path):
    rows = epoch_rows(4)
    for row, top1, f1 in zip(rows, (0.62, 0.7, 0.78, 0.88), (0.61, 0.7, 0.77, 0.87), strict=True):
        row |= {"top1": top1, "macro_f1": f1}
    labels = report(tmp_path, epochs=rows).texts("text")
    scores = labels[labels.index("epoch") + 1 :]  # behind the loss's chart
    assert scores == ["0.6", "0.7", "0.8", "0.9", "1", "2", "3", "4", "epoch"]


def test_missing_and_non_finite_values_break_the_line(tmp_path):
    rows = epoch_rows(6)
    rows[2]["train_loss"] = math.nan
    rows[3]["train_loss"] = math.inf
    del rows[5]["train_loss"]
    page = report(tmp_path, epochs=rows)
    train = [line["points"].split() for line in page.all("polyline", "s0")][:2]
    assert [len(points) for points in train] == [2, 1]
    assert len([dot for dot in page.texts("circle", "s0") if dot.startswith("train")]) == 3


@pytest.mark.parametrize("value", [0.0, 5.0, 1e-12, 3e30, math.nan])
def test_curves_of_a_constant_are_drawn(tmp_path, value):
    rows = [row | dict.fromkeys(("train_loss", "val_loss"), value) for row in epoch_rows(3)]
    page = report(tmp_path, epochs=rows)
    assert len(page.all("figure", "chart")) == 2


def test_without_epochs_there_are_no_curves(tmp_path):
    page = report(tmp_path, epochs=[])
    assert not page.all("polyline")
    assert "Learning curves" not in page.texts("h2")


def test_matrix_holds_counts_with_rows_true(tmp_path):
    page = report(tmp_path)
    hits, misses = page.texts("td", "hit"), page.texts("td", "miss")
    assert hits == ["8", "9"]
    assert misses == ["2", "1"]
    assert page.all("td", "miss")[0]["style"] == "--share: 0.200"


def test_thirty_classes_have_a_matrix_and_more_have_pairs(tmp_path):
    page = report(tmp_path, **many_classes(30))
    assert len(page.all("td", "hit")) == 30
    confusion = many_classes(31)["confusion"]
    confusion[7, 3] = 5
    page = report(tmp_path, **many_classes(31) | {"confusion": confusion})
    assert not page.all("td", "hit")
    assert page.texts("td", "name")[:2] == ["class 7", "class 3"]
    assert len(page.texts("td", "name")) == 2 * 20


def test_a_thousand_classes_are_listed_weakest_first(tmp_path):
    content = many_classes(1000)
    content["confusion"][617, 617] = 0
    page = report(tmp_path, **content)
    names = [e["text"] for e in page.all("th", "name") if e.get("scope") == "row"]
    assert len(names) == 1000
    assert names[0] == "class 617"
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_class_table_shows_the_scores(tmp_path):
    rows = report(tmp_path).texts("tr")
    cells = f"{8 / 9:.3f}0.800{16 / 19:.3f}10"
    assert [row for row in rows if row == f"daisy{cells}"]


def test_thumbnails_are_small_jpegs_of_the_images(tmp_path):
    Image.new("RGB", (900, 600), (200, 30, 40)).save(tmp_path / "red.png")
    page = report(tmp_path, wrong=[wrong_image(tmp_path / "red.png")])
    content = base64.b64decode(page.all("img")[0]["src"].partition(",")[2])
    thumbnail = Image.open(io.BytesIO(content))
    assert thumbnail.format == "JPEG"
    assert thumbnail.size == (320, 213)
    np.testing.assert_allclose(thumbnail.getpixel((100, 100)), (200, 30, 40), atol=4)


def test_an_image_that_is_gone_or_broken_shows_no_picture(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    wrong = [wrong_image(tmp_path / name) for name in ("gone.jpg", "broken.jpg")]
    page = report(tmp_path, wrong=wrong)
    assert not page.all("img")
    assert page.texts("div", "frame") == ["no picture", "no picture"]


def test_the_24_most_confident_mistakes_are_shown_in_order(tmp_path):
    probabilities = np.random.default_rng(0).permutation(np.arange(1, 41) / 50).tolist()
    wrong = [wrong_image(tmp_path / f"{p:.2f}.jpg", p) for p in probabilities]
    shown = report(tmp_path, wrong=wrong).texts("span", "path")
    assert shown == [f"val/{n / 50:.2f}.jpg" for n in range(40, 16, -1)]


def test_the_same_result_gives_the_same_bytes(tmp_path):
    report(tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first


def test_a_folder_that_is_missing_is_a_machine_error(tmp_path):
    with pytest.raises(MachineError):
        report(tmp_path / "missing")
