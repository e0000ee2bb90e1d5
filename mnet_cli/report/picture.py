"""One prediction as a picture: the photograph, its title above, the likeliest classes below."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mnet_cli.system.atomic import atomic_write
from mnet_cli.system.text import printable

SIDE = 512  # pixels of the photograph's longer side, enlarged or reduced
MARGIN = 20
TITLE_SIZE, ROW_SIZE, ROW_STEP = 22, 15, 26  # font sizes and line distance in pixels
PAPER, INK, SOFT, TRACK, BAR = "#ffffff", "#1d2329", "#626c76", "#eceef1", "#2f6fb5"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_prediction(
    image: Image.Image, title: str, rows: Sequence[tuple[str, float]]
) -> Image.Image:
    """Lay out a photograph with what the model said about it.

    Args:
        image: The photograph, any mode that converts to RGB.
        title: The line above it, such as `class: tulips  prob: 0.98`.
        rows: (class name, probability in 0..1), the likeliest first; may be empty.

    Returns:
        An RGB image, 552 pixels wide. Text that does not fit ends in three dots.
        Pillow's own font has no accents and no other scripts: accents are left out, other
        scripts show as boxes.
    """
    scale = SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    photograph = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    photograph_top = MARGIN + TITLE_SIZE + MARGIN // 2 + 8
    rows_top = photograph_top + photograph.height + MARGIN
    height = rows_top + len(rows) * ROW_STEP + (MARGIN // 2 if rows else 0)
    picture = Image.new("RGB", (SIDE + 2 * MARGIN, height), PAPER)
    draw = ImageDraw.Draw(picture)
    title_font = ImageFont.load_default(TITLE_SIZE)
    draw.text((MARGIN, MARGIN), _fitted(title, title_font, SIDE), INK, title_font)
    picture.paste(photograph, ((picture.width - photograph.width) // 2, photograph_top))
    for index, (name, probability) in enumerate(rows):
        _draw_row(draw, rows_top + index * ROW_STEP, name, probability)
    return picture


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write `picture` to `path` as PNG, whatever the name ends in.

    Raises:
        MachineError: The file cannot be written.
    """
    with atomic_write(path) as file:
        picture.save(file, "PNG")


def _draw_row(draw: ImageDraw.ImageDraw, top: int, name: str, probability: float) -> None:
    """One class: name, bar and number on a line."""
    font = ImageFont.load_default(ROW_SIZE)
    bar_left, bar_right = MARGIN + 180, MARGIN + SIDE - 60
    middle = top + ROW_SIZE // 2
    draw.text((MARGIN, middle), _fitted(name, font, 168), INK, font, anchor="lm")
    draw.rectangle((bar_left, middle - 5, bar_right, middle + 4), TRACK)
    filled = round(min(max(probability, 0.0), 1.0) * (bar_right - bar_left))
    if filled:
        draw.rectangle((bar_left, middle - 5, bar_left + filled, middle + 4), BAR)
    draw.text((MARGIN + SIDE, middle), f"{probability:.3f}", SOFT, font, anchor="rm")


def _fitted(text: str, font: Font, width: int) -> str:
    """`text` on one line without accents, cut to at most `width` pixels."""
    letters = unicodedata.normalize("NFKD", printable(text))
    text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    text = text[:width]  # no letter is narrower than a pixel, and measuring is slow
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
