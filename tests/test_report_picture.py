"""Prediction pictures: what is drawn where, and names that no font holds."""

import pytest
from PIL import Image

from mnet_cli.errors import MachineError
from mnet_cli.report.picture import BAR, draw_prediction, save_picture

ORANGE = (230, 120, 20)


def photograph(width, height):
    return Image.new("RGB", (width, height), ORANGE)


def bar_widths(picture):
    """Pixels in the colour of bars on each line that has any."""
    bar = tuple(bytes.fromhex(BAR[1:]))
    widths = [
        sum(picture.getpixel((x, y)) == bar for x in range(picture.width))
        for y in range(picture.height)
    ]
    return [width for width in widths if width]


def orange_box(picture):
    """The bounding box of the photograph within the picture."""
    same = Image.new("L", picture.size)
    same.putdata([255 * (pixel == ORANGE) for pixel in picture.get_flattened_data()])
    return same.getbbox()


@pytest.mark.parametrize("size", [(640, 480), (90, 160), (1, 1), (2000, 1)])
def test_the_photograph_fills_its_frame_in_proportion(size):
    left, top, right, bottom = orange_box(draw_prediction(photograph(*size), "class: x", []))
    assert max(right - left, bottom - top) == 512
    scale = 512 / max(size)
    assert (right - left) == max(1, round(size[0] * scale))
    assert (bottom - top) == max(1, round(size[1] * scale))


def test_bars_are_as_long_as_probabilities_say():
    picture = draw_prediction(photograph(64, 48), "class: a", [("a", 0.75), ("b", 0.25)])
    widths = bar_widths(picture)
    assert len(set(widths)) == 2
    assert max(widths) / min(widths) == pytest.approx(3, rel=0.02)


def test_each_row_adds_height_below_and_none_draws_no_bar():
    heights = [
        draw_prediction(photograph(64, 48), "class: a", [("a", 0.0)] * count).height
        for count in (1, 2, 3)
    ]
    assert heights[0] < heights[1] < heights[2]
    assert not bar_widths(draw_prediction(photograph(64, 48), "class: a", [("a", 0.0)]))


def test_the_title_is_drawn_above_the_photograph():
    box = (0, 0, 552, 50)
    titled = draw_prediction(photograph(64, 48), "class: tulips  prob: 0.98", []).crop(box)
    blank = draw_prediction(photograph(64, 48), "", []).crop(box)
    assert titled.tobytes() != blank.tobytes()


def test_an_accent_is_left_out_rather_than_boxed():
    accented = draw_prediction(photograph(8, 8), "Löwenzahn", [("é", 0.5)])
    plain = draw_prediction(photograph(8, 8), "Lowenzahn", [("e", 0.5)])
    assert accented.tobytes() == plain.tobytes()


@pytest.mark.parametrize("name", ["チューリップ", "\udcff", "a\nb\x1b[31m", "🌷", "", "w" * 5000])
def test_any_name_can_be_drawn_within_the_picture(name):
    picture = draw_prediction(photograph(8, 8), name, [(name, 0.5)])
    edge = picture.crop((picture.width - 18, 0, picture.width, picture.height))
    assert edge.getcolors() == [(18 * picture.height, (255, 255, 255))]


def test_control_codes_are_spelled_out_on_one_line():
    coded = draw_prediction(photograph(8, 8), "a\nb\x1b", [("\t", 0.5)])
    spelled = draw_prediction(photograph(8, 8), "a\\nb\\x1b", [("\\t", 0.5)])
    assert coded.tobytes() == spelled.tobytes()


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "1", "P"])
def test_any_mode_of_photograph_is_drawn(mode):
    assert draw_prediction(Image.new(mode, (8, 8)), "class: a", []).mode == "RGB"


def test_a_saved_picture_is_png_whatever_the_name(tmp_path):
    picture = draw_prediction(photograph(8, 8), "class: a", [("a", 1.0)])
    save_picture(picture, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as read:
        assert read.format == "PNG"
        assert read.tobytes() == picture.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.jpg"]


def test_a_folder_that_is_missing_is_a_machine_error(tmp_path):
    with pytest.raises(MachineError):
        save_picture(photograph(8, 8), tmp_path / "missing" / "out.png")
