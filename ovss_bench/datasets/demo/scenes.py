"""Scenes drawn from a seed: irregular pieces of patterned cloth on textured grounds, with exact index maps.

They replace photographs in the embedded demo, in the training of the demo encoders, and in the miniature data sets of the
tests. All random numbers are from `numpy.random.RandomState`, whose streams are stable, so the same seed gives the same scene
on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The first six of each are combined to the 36 classes of `dataset=demo`; the others occur in training only.
PATTERNS = ("plain", "striped", "checked", "dotted", "zigzag", "speckled", "latticed", "marbled")
COLOURS = {
    "red": (205, 45, 40),
    "orange": (235, 130, 30),
    "yellow": (235, 210, 50),
    "green": (45, 140, 60),
    "blue": (45, 75, 190),
    "purple": (130, 55, 160),
    "pink": (240, 130, 175),
    "brown": (115, 70, 40),
    "teal": (25, 145, 150),
    "black": (30, 30, 35),
}
GROUNDS = ("sand", "grass", "water", "snow", "asphalt")


@dataclass(frozen=True)
class Cloth:
    """One kind of cloth: indices into `PATTERNS` and `COLOURS`."""

    pattern: int
    colour: int

    @property
    def name(self) -> str:
        return f"{PATTERNS[self.pattern]} {list(COLOURS)[self.colour]} cloth"

    @property
    def seen(self) -> bool:
        """Whether the pair occurs in the training of the demo CLIP. One in six does not, one per row and column of the 36."""
        return (self.pattern + self.colour) % 6 != 1


ALL_CLOTHS = tuple(Cloth(p, c) for p in range(len(PATTERNS)) for c in range(len(COLOURS)))
DEMO_CLOTHS = tuple(Cloth(p, c) for p in range(6) for c in range(6))


def draw_scene(
    rng: np.random.RandomState,
    height: int,
    width: int,
    cloths: list[Cloth],
    ground: int,
    radius: tuple[float, float] = (22, 42),
) -> tuple[np.ndarray, np.ndarray]:
    """Draws `cloths` in order, later ones on top, on a ground of `GROUNDS`.

    Returns the image (height, width, 3) uint8 RGB and an index map (height, width) uint8: 0 the ground, i the i-th cloth
    of the list counted from 1. `radius` is the range of the mean radius of a piece in pixels.
    """
    image = _ground(rng, height, width, ground)
    index = np.zeros((height, width), np.uint8)
    for i, cloth in enumerate(cloths, 1):
        piece = _outline(rng, height, width, radius)
        (y0, *_, y1), (x0, *_, x1) = np.flatnonzero(piece.any(1))[[0, -1]], np.flatnonzero(piece.any(0))[[0, -1]]
        box = slice(y0, y1 + 1), slice(x0, x1 + 1)
        image[box][piece[box]] = _cloth(rng, y1 + 1 - y0, x1 + 1 - x0, cloth)[piece[box]]
        index[piece] = i
    image += rng.standard_normal((height, width, 3)) * rng.uniform(1, 5)
    image *= rng.uniform(0.85, 1.12)
    return np.round(image.clip(0, 255)).astype(np.uint8), index


def void_border(index: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels with a 4-neighbour of another index: unlabelled outlines as in VOC."""
    framed = np.pad(index, 1, "edge")
    vertical = (index != framed[:-2, 1:-1]) | (index != framed[2:, 1:-1])
    return vertical | (index != framed[1:-1, :-2]) | (index != framed[1:-1, 2:])


def _smooth_noise(rng: np.random.RandomState, height: int, width: int, cell_y: float, cell_x: float) -> np.ndarray:
    """(height, width) in [-1, 1]: a random grid with cells of cell_y x cell_x pixels, bilinearly enlarged."""

    y, x = np.arange(height)[:, None] / cell_y, np.arange(width)[:, None] / cell_x
    rows, columns = (np.maximum(0, 1 - np.abs(each - np.arange(int(each[-1, 0]) + 2))) for each in (y, x))
    return rows @ rng.uniform(-1, 1, (rows.shape[1], columns.shape[1])) @ columns.T


def _ground(rng: np.random.RandomState, height: int, width: int, ground: int) -> np.ndarray:
    base, fine, soft, cell = {
        "sand": ((205, 180, 130), 10, 14, (2.0, 2.0)),
        "grass": ((95, 135, 55), 45, 15, (5.0, 1.5)),
        "water": ((70, 130, 165), 30, 12, (2.5, 11.0)),
        "snow": ((236, 240, 246), 3, 12, (3.0, 3.0)),
        "asphalt": ((95, 95, 98), 28, 8, (1.2, 1.2)),
    }[GROUNDS[ground]]
    shade = fine * _smooth_noise(rng, height, width, *cell) + soft * _smooth_noise(rng, height, width, 30, 30)
    return np.array(base, float) + rng.uniform(-8, 8, 3) + shade[..., None]


def _outline(rng: np.random.RandomState, height: int, width: int, radius: tuple[float, float]) -> np.ndarray:
    """(height, width) bool: the inside of a closed curve whose radius is a short random Fourier series of the angle."""
    y, x = np.mgrid[0:height, 0:width] - (rng.uniform(0.1, 0.9, 2) * (height, width))[:, None, None]
    angle, distance = np.arctan2(y, x), np.hypot(y, x)
    limit = np.ones_like(angle)
    for k in range(2, 6):
        limit += rng.uniform(0, 0.7 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    return distance < rng.uniform(*radius) * limit


def _cloth(rng: np.random.RandomState, height: int, width: int, cloth: Cloth) -> np.ndarray:
    colour = np.array(list(COLOURS.values())[cloth.colour], float) + rng.uniform(-18, 18, 3)
    light = cloth.colour == list(COLOURS).index("black") or rng.uniform() < 0.6
    second = colour + (np.full(3, 250.0 if light else 15.0) - colour) * rng.uniform(0.65, 0.95)
    amount = _pattern(rng, height, width, PATTERNS[cloth.pattern])[..., None]
    folds = 1 + 0.12 * _smooth_noise(rng, height, width, 18, 18)
    return (colour * (1 - amount) + second * amount) * folds[..., None]


def _pattern(rng: np.random.RandomState, height: int, width: int, pattern: str) -> np.ndarray:
    """(height, width) in [0, 1]: how much of the second colour each pixel has."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(7, 11)
    y, x = (np.mgrid[0:height, 0:width] + rng.uniform(0, 50, 2)[:, None, None]) / period
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)

    def triangle(t: np.ndarray) -> np.ndarray:
        return np.abs(2 * (t % 1) - 1)

    def edge(signed: np.ndarray) -> np.ndarray:
        return (0.5 + signed * period / 2).clip(0, 1)

    if pattern == "plain":
        return np.zeros((height, width))
    if pattern == "striped":
        return edge(triangle(u) - 0.5)
    if pattern == "checked":
        return edge(4 * (triangle(u / 2 + 0.25) - 0.5) * (triangle(v / 2 + 0.25) - 0.5) * 2)
    if pattern == "dotted":
        return edge(0.31 - np.hypot(u % 1 - 0.5, v % 1 - 0.5))
    if pattern == "zigzag":
        return edge(triangle(u + 0.9 * triangle(v / 1.8)) - 0.5)
    if pattern == "speckled":
        return ((_smooth_noise(rng, height, width, 1.6, 1.6) - 0.42) * 6).clip(0, 1)
    if pattern == "latticed":
        return edge(np.maximum(triangle(u), triangle(v)) - 0.76)
    return edge(0.5 * np.sin(7 * _smooth_noise(rng, height, width, 9, 9)))
