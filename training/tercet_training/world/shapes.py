"""The outlines of the things: polygons in a square from -1 to 1, y downwards, added or cut out."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (N, 2): x, y
Part = tuple[Points, bool]  # a polygon, and whether it is added (or cut out)


def ellipse(x: float, y: float, width: float, height: float, points: int = 48) -> Points:
    """An ellipse around (x, y) with the given half axes."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + width * np.cos(turn), y + height * np.sin(turn)], axis=1)


def polygon(*points: tuple[float, float]) -> Points:
    """The polygon with these corners."""
    return np.array(points, dtype=np.float64)


def star() -> list[Part]:
    """Five points."""
    turn = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.05, 0.45)
    return [(np.stack([radius * np.cos(turn), radius * np.sin(turn) + 0.08], axis=1), True)]


def heart() -> list[Part]:
    """The usual parametric heart."""
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = np.sin(turn) ** 3
    y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)) / 16
    return [(np.stack([x, y - 0.1], axis=1), True)]


def ring() -> list[Part]:
    """A thick ring."""
    return [(ellipse(0, 0, 0.95, 0.95), True), (ellipse(0, 0, 0.42, 0.42), False)]


def moon() -> list[Part]:
    """A crescent."""
    return [(ellipse(0, 0, 0.98, 0.98), True), (ellipse(0.46, -0.1, 0.76, 0.76), False)]


def flower() -> list[Part]:
    """Six petals around a hole."""
    turns = np.arange(6) * np.pi / 3
    petals = [(ellipse(0.58 * np.cos(turn), 0.58 * np.sin(turn), 0.4, 0.4), True) for turn in turns]
    return [*petals, (ellipse(0, 0, 0.5, 0.5), True), (ellipse(0, 0, 0.2, 0.2), False)]


def fish() -> list[Part]:
    """A body, a tail and an eye."""
    tail = polygon((0.35, 0.0), (1.05, -0.58), (0.86, 0.0), (1.05, 0.58))
    return [(ellipse(-0.25, 0, 0.8, 0.52), True), (tail, True), (ellipse(-0.66, -0.12, 0.1, 0.1), False)]


def house() -> list[Part]:
    """Walls, a roof with a chimney, and a door."""
    walls = polygon((-0.72, -0.1), (0.72, -0.1), (0.72, 0.92), (-0.72, 0.92))
    roof = polygon((-1.0, -0.1), (0.0, -1.0), (1.0, -0.1))
    chimney = polygon((0.38, -0.9), (0.64, -0.9), (0.64, -0.2), (0.38, -0.2))
    door = polygon((-0.2, 0.34), (0.2, 0.34), (0.2, 0.93), (-0.2, 0.93))
    return [(walls, True), (roof, True), (chimney, True), (door, False)]


def mushroom() -> list[Part]:
    """A cap on a stem."""
    cap = ellipse(0, -0.1, 1.0, 0.85)
    cap = cap[cap[:, 1] <= -0.09]
    stem = polygon((-0.26, -0.12), (0.26, -0.12), (0.36, 0.92), (-0.36, 0.92))
    return [(cap, True), (stem, True)]


def cup() -> list[Part]:
    """A mug with its handle."""
    body = polygon((-0.92, -0.7), (0.46, -0.7), (0.36, 0.8), (-0.82, 0.8))
    return [(ellipse(0.48, 0.0, 0.5, 0.5), True), (ellipse(0.5, 0.0, 0.25, 0.25), False), (body, True)]


def kite() -> list[Part]:
    """A toy kite with a tail of bows."""
    sail = polygon((0.0, -1.05), (0.72, -0.3), (0.0, 0.6), (-0.72, -0.3))
    tail = polygon((-0.06, 0.5), (0.06, 0.5), (0.06, 1.1), (-0.06, 1.1))
    bows = [
        (polygon((-0.3, y - 0.13), (0.3, y + 0.13), (0.3, y - 0.13), (-0.3, y + 0.13)), True)
        for y in (0.78, 1.05)
    ]
    return [(sail, True), (tail, True), *bows]


OUTLINES: dict[str, Callable[[], list[Part]]] = {
    "star": star,
    "heart": heart,
    "ring": ring,
    "moon": moon,
    "flower": flower,
    "fish": fish,
    "house": house,
    "mushroom": mushroom,
    "cup": cup,
    "kite": kite,
}
