"""A drawn photograph: a cluttered backdrop, flowers, and what a camera adds."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mnet_cli.data.sample.flowers import (
    BLADE,
    BROWN,
    GREEN,
    GREY,
    PAINTERS,
    PETAL_COLOURS,
    Colour,
    Points,
    Pose,
    paint_petal,
    paint_stem,
    rotation,
    shade,
)

CLASS_NAMES = tuple(PETAL_COLOURS)

_BACKDROPS: tuple[tuple[Colour, ...], ...] = (
    ((40, 70, 28), (92, 128, 52), (120, 150, 76)),  # meadow
    ((22, 34, 18), (44, 60, 30), (30, 30, 24)),  # shade
    ((150, 186, 222), (196, 214, 232), (108, 150, 84)),  # sky over a field
    ((110, 88, 62), (74, 58, 40), (140, 122, 96)),  # soil
    ((168, 164, 158), (120, 118, 116), (206, 200, 192)),  # stone
    ((196, 206, 150), (150, 170, 96), (226, 222, 190)),  # sunlit grass
)
_CLUTTER = (*(colour for colours in PETAL_COLOURS.values() for colour in colours), GREY, BROWN)


def draw_flower(class_name: str, seed: int, size: int, *, clear: bool = False) -> Image.Image:
    """Draw one picture of a flower; the same arguments give the same pixels.

    Args:
        class_name: One of `CLASS_NAMES`.
        seed: Any integer from 0.
        size: Side of the square picture in pixels.
        clear: One whole flower in the middle in good light, instead of any snapshot.

    Returns:
        An RGB image of `size` x `size` pixels.
    """
    rng = np.random.default_rng([seed, CLASS_NAMES.index(class_name)])
    scene = _scene(class_name, rng, 2 * size, clear)
    return _develop(scene.reduce(2), rng, clear)


def _scene(class_name: str, rng: np.random.Generator, side: int, clear: bool) -> Image.Image:
    """Backdrop and flowers, twice as large as the picture for smooth edges."""
    image = _backdrop(rng, side)
    colours = PETAL_COLOURS[class_name]
    colour = colours[rng.integers(len(colours))]
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(0 if clear else rng.choice([0, 0, 0, 1, 2, 4])):
        pose = _pose(class_name, rng, side * rng.uniform(0.1, 0.22), rng.uniform(0, side, 2))
        _paint_plant(draw, class_name, rng, pose, colour)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.BoxBlur(side * 0.008))
        draw = ImageDraw.Draw(image, "RGBA")
    radius = side * (0.3 if clear else rng.uniform(0.2, 0.46))
    centre = side * (np.array([0.5, 0.45]) if clear else rng.normal(0.5, 0.12, 2))
    _paint_plant(draw, class_name, rng, _pose(class_name, rng, radius, centre), colour)
    for _ in range(0 if clear else rng.choice([0, 0, 1, 3])):  # in front of the flower
        _paint_blade(draw, rng, side, 0.05)
    return image


def _backdrop(rng: np.random.Generator, side: int) -> Image.Image:
    """A soft gradient of one scene's colours with clutter on it, out of focus."""
    half = side // 2
    colours = np.array(_BACKDROPS[rng.integers(len(_BACKDROPS))], dtype=float)
    patches = colours[rng.integers(0, 3, (4, 4))] * rng.uniform(0.75, 1.2, (4, 4, 1))
    image = Image.fromarray(patches.clip(0, 255).astype(np.uint8)).resize(
        (half, half), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.integers(2, 16)):  # stones and far flowers
        (x, y), radius = rng.uniform(0, half, 2), half * rng.uniform(0.02, 0.12)
        tone = shade(_CLUTTER[rng.integers(len(_CLUTTER))], rng.uniform(0.6, 1.0), 190)
        draw.ellipse((x - radius, y - 0.8 * radius, x + radius, y + 0.8 * radius), fill=tone)
    for _ in range(rng.integers(0, 26)):
        _paint_blade(draw, rng, half, 0.12)
    blur = half * rng.choice([0.003, 0.01, 0.02, 0.03])
    blurred = image.filter(ImageFilter.GaussianBlur(float(blur)))
    return blurred.resize((side, side), Image.Resampling.BILINEAR)


def _paint_blade(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, side: int, widest: float
) -> None:
    """Paint a leaf or a blade of grass anywhere in the picture."""
    pose = Pose(np.eye(2) * side, rng.uniform(0, side, 2) * (1, 1.2), rng.uniform(0, 2 * np.pi))
    angle, span = rng.normal(-np.pi / 2, 0.7), (0.0, rng.uniform(0.2, 0.8))
    tone = shade(GREEN, rng.uniform(0.5, 1.5))
    paint_petal(draw, pose, BLADE, angle, span, rng.uniform(0.01, widest), tone)


def _pose(class_name: str, rng: np.random.Generator, radius: float, centre: Points) -> Pose:
    """A random rotation and tilt; a tulip, seen from the side, stays roughly upright."""
    if class_name == "tulips":
        matrix = rotation(rng.normal(0, 0.22)) * (rng.uniform(0.85, 1.15), 1.0)
    else:
        tilt = np.diag([1.0, rng.uniform(0.6, 1.0)])
        matrix = rotation(rng.normal(0, 0.5)) @ tilt @ rotation(rng.uniform(0, 2 * np.pi))
    return Pose(matrix * radius, centre, rng.uniform(0, 2 * np.pi))


def _paint_plant(
    draw: ImageDraw.ImageDraw, class_name: str, rng: np.random.Generator, pose: Pose, colour: Colour
) -> None:
    """Paint one flower on the stem that carries it."""
    if class_name == "tulips":  # the stem joins the cup at its bottom
        bottom = Pose(pose.matrix, pose.place(np.array([0.0, 0.75])), pose.light)
        paint_stem(draw, bottom, rng, 0.13, int(rng.integers(0, 3)))
    elif rng.random() < 0.6:
        paint_stem(draw, pose, rng, 0.09, int(rng.integers(0, 2)))
    PAINTERS[class_name](draw, pose, rng, colour)


def _develop(image: Image.Image, rng: np.random.Generator, clear: bool) -> Image.Image:
    """Add what a camera adds: blur, uneven light, a colour cast and noise."""
    strength = 0.3 if clear else 1.0
    if not clear:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.choice([0.0, 0.4, 0.8, 1.3]))))
    corners = Image.fromarray((1 + strength * rng.uniform(-0.35, 0.35, (2, 2))).astype(np.float32))
    light = np.asarray(corners.resize(image.size, Image.Resampling.BILINEAR))[..., None]
    cast = 1 + strength * (rng.uniform(-0.2, 0.15) + rng.uniform(-0.08, 0.08, 3))
    grain = strength * rng.uniform(0, 9) * rng.standard_normal(light.shape, dtype=np.float32)
    pixels = np.asarray(image) * (light * cast.astype(np.float32)) + grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
