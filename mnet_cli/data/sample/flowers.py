"""Five kinds of flowers, each painted as polygons around its own origin at radius 1.

The classes share their colours, so that a model has to look at the shape.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.ImageDraw import ImageDraw

Points = NDArray[np.float64]
Colour = tuple[int, ...]
Painter = Callable[[ImageDraw, "Pose", np.random.Generator, Colour], None]

WHITE, CREAM, YELLOW, ORANGE = (246, 243, 236), (248, 236, 190), (247, 206, 38), (240, 132, 30)
RED, PINK, MAROON, PURPLE = (204, 30, 42), (236, 128, 162), (128, 26, 38), (150, 84, 176)
GOLD, BROWN, GREEN, GREY = (232, 168, 24), (70, 42, 22), (78, 124, 48), (148, 144, 138)

PETAL_COLOURS: dict[str, tuple[Colour, ...]] = {  # a colour that stands twice is as likely
    "daisy": (WHITE, WHITE, WHITE, PINK, YELLOW, PURPLE, ORANGE, RED),
    "dandelion": (YELLOW, YELLOW, YELLOW, GOLD, WHITE, WHITE, CREAM),
    "roses": (RED, RED, PINK, PINK, WHITE, CREAM, YELLOW, ORANGE, PURPLE),
    "sunflowers": (YELLOW, YELLOW, YELLOW, GOLD, ORANGE, CREAM, MAROON, RED),
    "tulips": (RED, RED, YELLOW, PINK, PURPLE, WHITE, ORANGE, MAROON),
}

_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
_LAYERS = ((1.0, 0.8), (0.74, 1.0), (0.3, 1.09))  # width and shade, from a petal's edge inwards


@dataclass(frozen=True)
class Pose:
    """Where a flower of radius 1 around the origin stands in the picture.

    Attributes:
        matrix: Radius, rotation and foreshortening, shape (2, 2); x right, y down.
        centre: The flower's origin in pixels, shape (2,).
        light: Direction in radians from which its petals are lit.
    """

    matrix: Points
    centre: Points
    light: float

    @property
    def radius(self) -> float:
        """The flower's larger radius in pixels."""
        return float(np.linalg.norm(self.matrix, 2))

    def place(self, points: Points) -> Points:
        """Points of shape (..., 2) around the origin as pixels of the picture."""
        placed: Points = points @ self.matrix.T + self.centre
        return placed


def rotation(angle: float) -> Points:
    """The matrix, shape (2, 2), that turns column vectors by `angle` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def shade(colour: Colour, factor: float, alpha: int = 255) -> Colour:
    """`colour` made darker or lighter, with an opacity of `alpha` (0 to 255)."""
    red, green, blue = colour[:3]
    return (
        min(255, int(red * factor)),
        min(255, int(green * factor)),
        min(255, int(blue * factor)),
        alpha,
    )


def _on_circle(angles: NDArray[Any]) -> Points:
    """Points of the unit circle, shape (..., 2)."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _outlines(rise: float, fall: float) -> Points:
    """The nested outlines of a petal from (0, 0) to (1, 0), shape (layers, points, 2).

    The half width is proportional to x^rise · (1 - x)^fall: a small `fall` gives a blunt tip,
    one near 1 a pointed tip.
    """
    x = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, 11))
    half = x**rise * (1 - x) ** fall
    half *= 0.5 / half.max()
    outline = np.concatenate([np.stack([x, half], 1), np.stack([x, -half], 1)[-2:0:-1]])
    return np.stack([outline * (0.9 + 0.1 * width, width) for width, _ in _LAYERS])


STRAP, POINTED, OVATE, BLADE = (
    _outlines(0.7, 0.22),
    _outlines(0.55, 0.95),
    _outlines(0.5, 0.62),
    _outlines(0.7, 1.0),
)


def paint_petal(
    draw: ImageDraw,
    pose: Pose,
    outlines: Points,
    angle: float,
    span: tuple[float, float],
    width: float,
    colour: Colour,
    base: Sequence[float] = (0.0, 0.0),
) -> None:
    """Paint one petal or leaf, darker at its edge.

    Args:
        draw: The picture.
        pose: Where the flower stands.
        outlines: One of `STRAP`, `POINTED`, `OVATE`, `BLADE`.
        angle: Where the petal points, in radians.
        span: Distances from `base` at which it begins and ends.
        width: Its largest width.
        colour: Its colour in neutral light.
        base: The point from which petals radiate.
    """
    lit = 0.88 + 0.16 * math.cos(angle - pose.light)
    petal = outlines * (span[1] - span[0], width) + (span[0], 0.0)
    placed = pose.place(petal @ rotation(angle).T + base)
    for points, (_, factor) in zip(placed, _LAYERS, strict=True):
        draw.polygon(points.ravel().tolist(), fill=shade(colour, lit * factor))


def paint_stem(
    draw: ImageDraw, pose: Pose, rng: np.random.Generator, width: float, leaves: int
) -> None:
    """Paint a bent stem from the flower's origin downwards, with 0 to 2 leaves beside it."""
    down = np.array([rng.uniform(-0.9, 0.9), 4.5])
    bend = np.array([rng.uniform(-0.4, 0.4), 2.0])
    t = np.linspace(0, 1, 12)[:, None]
    curve = (2 * t * (1 - t) * bend + t**2 * down) * pose.radius + pose.centre
    colour = shade(GREEN, rng.uniform(0.8, 1.25))
    thick = max(2, round(width * pose.radius))
    draw.line(curve.ravel().tolist(), fill=shade(colour, 0.75), width=thick)
    lit_side = curve - (thick / 5, 0.0)
    draw.line(lit_side.ravel().tolist(), fill=shade(colour, 1.1), width=max(1, thick // 2))
    upright = Pose(np.eye(2) * pose.radius, curve[rng.integers(3, 6)], pose.light)
    for side in (-1, 1)[:leaves]:
        angle = -np.pi / 2 + side * rng.uniform(0.25, 0.8)
        paint_petal(draw, upright, BLADE, angle, (0, rng.uniform(1.0, 2.0)), 0.34, colour)


def _disc(
    draw: ImageDraw,
    pose: Pose,
    rng: np.random.Generator,
    radius: float,
    colour: Colour,
    grains: int,
) -> None:
    """Paint a flower's middle: a dome with grains on the golden spiral."""
    circle = pose.place(
        _on_circle(np.linspace(0, 2 * np.pi, 24, endpoint=False))
        * np.array([1.06, 1.0, 0.8, 0.45])[:, None, None]
        * radius
    )
    for points, factor in zip(circle, (0.5, 0.75, 0.95, 1.1), strict=True):
        draw.polygon(points.ravel().tolist(), fill=shade(colour, factor))
    index = np.arange(grains)
    distance = radius * np.sqrt((index[:, None] + 0.5) / grains)
    spots = pose.place(_on_circle(index * _GOLDEN_ANGLE) * distance).tolist()
    size = max(1.0, pose.radius * radius * 0.7 / math.sqrt(grains))
    for (x, y), factor in zip(spots, rng.uniform(0.6, 1.6, grains).tolist(), strict=True):
        draw.ellipse((x - size, y - size, x + size, y + size), fill=shade(colour, factor))


def paint_daisy(draw: ImageDraw, pose: Pose, rng: np.random.Generator, colour: Colour) -> None:
    """Many thin blunt petals around a small yellow disc."""
    petals = int(rng.integers(15, 30))
    width = rng.uniform(3.2, 4.4) / petals
    for length in (1.0, 0.93)[: rng.integers(1, 3)]:
        first = rng.uniform(0, 2 * np.pi)
        for k in range(petals):
            angle = first + 2 * np.pi * k / petals + rng.normal(0, 0.04)
            reach = length * rng.uniform(0.9, 1.0)
            paint_petal(draw, pose, STRAP, angle, (0.12, reach), width, colour)
    _disc(draw, pose, rng, rng.uniform(0.2, 0.29), shade(GOLD, rng.uniform(0.9, 1.15)), 60)


def paint_sunflower(draw: ImageDraw, pose: Pose, rng: np.random.Generator, colour: Colour) -> None:
    """Pointed petals in two rings around a large dark disc."""
    petals, core = int(rng.integers(16, 26)), rng.uniform(0.46, 0.6)
    for length, factor in ((1.0, 0.82), (0.92, 1.0)):
        first = rng.uniform(0, 2 * np.pi)
        for k in range(petals):
            angle = first + 2 * np.pi * k / petals + rng.normal(0, 0.06)
            span = (core * 0.75, length * rng.uniform(0.88, 1.0))
            paint_petal(draw, pose, POINTED, angle, span, 5.2 / petals, shade(colour, factor))
    _disc(draw, pose, rng, core, shade(BROWN, rng.uniform(0.8, 1.3)), 150)
    if rng.random() < 0.5:
        _disc(draw, pose, rng, core * 0.4, shade((112, 110, 40), rng.uniform(0.7, 1.1)), 40)


def paint_dandelion(draw: ImageDraw, pose: Pose, rng: np.random.Generator, colour: Colour) -> None:
    """A ball of fine radial strokes: yellow rays, or white seeds on a sphere."""
    (_seed_head if colour in (WHITE, CREAM) else _ray_head)(draw, pose, rng, colour)


def _ray_head(draw: ImageDraw, pose: Pose, rng: np.random.Generator, colour: Colour) -> None:
    """Paint a yellow dandelion: many narrow rays, the shorter ones on top."""
    lengths = np.repeat(np.linspace(1.0, 0.14, 10), np.linspace(48, 16, 10).astype(int))
    reach = lengths * rng.uniform(0.82, 1.03, len(lengths))
    angles = np.arange(len(lengths)) * _GOLDEN_ANGLE + rng.normal(0, 0.1, len(lengths))
    along = _on_circle(angles)[:, None, :]  # (rays, 1, 2), and across it at a right angle
    across = along[..., ::-1] * (-1, 1)
    ray = STRAP[0]
    rays = reach[:, None, None] * (0.3 + 0.7 * ray[:, :1]) * along + 0.07 * ray[:, 1:] * across
    lit = rng.uniform(0.74, 1.12, len(lengths)) + 0.1 * np.cos(angles - pose.light)
    tones = (lit * (1.1 - 0.2 * lengths)).tolist()
    for points, tone in zip(pose.place(rays), tones, strict=True):
        draw.polygon(points.ravel().tolist(), fill=shade(colour, tone))


def _seed_head(draw: ImageDraw, pose: Pose, rng: np.random.Generator, colour: Colour) -> None:
    """Paint stalks from the middle to points on a sphere, each with a star of hairs."""
    seeds = int(rng.integers(70, 110))
    height = 1 - (2 * np.arange(seeds) + 1) / seeds  # towards the viewer, from 1 to -1
    turn = np.arange(seeds) * _GOLDEN_ANGLE + rng.uniform(0, 2 * np.pi)
    tips = 0.84 * np.sqrt(1 - height**2)[:, None] * _on_circle(turn)
    angles = rng.uniform(0, np.pi, (seeds, 1)) + np.arange(4) * np.pi / 4
    hairs = 0.16 * _on_circle(angles)
    stars = np.stack([tips[:, None] - hairs, tips[:, None] + hairs], 2)  # (seeds, 4, 2, 2)
    stalks = np.stack([tips * 0.12, tips], 1)[:, None]
    lines = pose.place(np.concatenate([stalks, stars], 1)).reshape(seeds, 5, 4).tolist()

    haze = pose.place(_on_circle(np.linspace(0, 2 * np.pi, 30)))
    draw.polygon(haze.ravel().tolist(), fill=shade(colour, 1.0, 70))
    thin = max(1, round(pose.radius * 0.012))
    for (stalk, *star), front in zip(reversed(lines), reversed(height.tolist()), strict=True):
        draw.line(stalk, fill=shade(colour, 0.7, 190), width=thin)
        tone = shade(colour, 0.86 + 0.14 * front, 210)
        for hair in star:
            draw.line(hair, fill=tone, width=thin)
    _disc(draw, pose, rng, 0.12, (120, 100, 60), 20)


def paint_rose(draw: ImageDraw, pose: Pose, rng: np.random.Generator, colour: Colour) -> None:
    """Overlapping round petals on a spiral that tightens to a closed heart."""
    petals = int(rng.integers(16, 24))
    first, hand = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    for k in range(petals):
        near = 1 - k / petals
        angle = first + hand * 2.2 * k + rng.normal(0, 0.12)
        tone = shade(colour, 0.72 + 0.34 * near + rng.normal(0, 0.03))
        _rose_petal(draw, pose, angle, 0.1 + 0.9 * near**0.85, tone)
    t = np.linspace(0.3, 3.2 * np.pi, 30)
    spiral: Points = _on_circle(hand * t + first) * (0.016 * t[:, None])
    heart = pose.place(spiral)
    thick = max(1, round(pose.radius * 0.03))
    draw.line(heart.ravel().tolist(), fill=shade(colour, 0.4), width=thick)


def _rose_petal(draw: ImageDraw, pose: Pose, angle: float, reach: float, colour: Colour) -> None:
    """Paint a broad petal with a shadow below it and a light rim at its outer edge."""
    sweep = np.linspace(-1.15, 1.15, 16)
    rim = reach * (1 - 0.1 * np.abs(sweep) ** 3 + 0.03 * np.cos(7 * sweep))
    arc = rim[:, None] * _on_circle(sweep + angle)
    lit = 0.94 + 0.12 * math.cos(angle - pose.light)
    shadow, *petal = (1.07, 1.0, 0.94, 0.8)
    tones = [shade(colour, lit * factor) for factor in (1.16, 1.0, 0.9)]
    for scale, tone in zip((shadow, *petal), (shade(colour, 0.3, 120), *tones), strict=True):
        points = pose.place(np.concatenate([arc * scale, arc[::-1] * -0.15]))
        draw.polygon(points.ravel().tolist(), fill=tone)


def paint_tulip(draw: ImageDraw, pose: Pose, rng: np.random.Generator, colour: Colour) -> None:
    """A cup of upright ovate petals, seen from the side."""
    opening = rng.uniform(0.16, 0.42)
    petals = (  # lean, length, width, tone; those at the back first
        (-0.5, 1.66, 0.8, 0.7),
        (0.5, 1.66, 0.8, 0.7),
        (-1.0, 1.7, 0.76, 0.9),
        (1.0, 1.7, 0.76, 0.9),
        (0.0, 1.58, 0.98, 1.04),
    )
    for lean, length, width, tone in petals:
        angle = -np.pi / 2 + lean * opening + rng.normal(0, 0.03)
        reach, base = length * rng.uniform(0.94, 1.04), (lean * 0.16, 0.8)
        paint_petal(draw, pose, OVATE, angle, (0, reach), width, shade(colour, tone), base)


PAINTERS: dict[str, Painter] = {
    "daisy": paint_daisy,
    "dandelion": paint_dandelion,
    "roses": paint_rose,
    "sunflowers": paint_sunflower,
    "tulips": paint_tulip,
}
