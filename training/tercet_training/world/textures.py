"""Noise, gradients and marks: what backgrounds and styles are made of.

Arrays are f32 in 0..255, (H, W, 3) or (H, W).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Field = NDArray[np.float32]
Colour = tuple[int, int, int]


def noise(rng: np.random.Generator, size: int, *cells: int) -> Field:
    """Smooth noise (size, size) of about unit deviation: one octave for each number of cells across."""
    total = np.zeros((size, size), np.float32)
    for octave, cell in enumerate(cells):
        coarse = Image.fromarray(rng.standard_normal((cell, cell), dtype=np.float32))
        total += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) * 0.7**octave
    return total


def gradient(size: int, *colours: Colour) -> Field:
    """(size, size, 3) from the first colour at the top to the last at the bottom."""
    place = np.linspace(0, len(colours) - 1, size)
    stops = np.arange(len(colours))
    column = np.stack([np.interp(place, stops, [colour[c] for colour in colours]) for c in range(3)], axis=1)
    return np.repeat(column[:, None, :], size, axis=1).astype(np.float32)


def grain(field: Field, amount: Field, tint: Sequence[float] | Field = (1, 1, 1)) -> Field:
    """Add `amount` (H, W) to every channel, weighted by `tint`."""
    return field + amount[..., None] * np.asarray(tint, np.float32)


def shade(rng: np.random.Generator, colour: Colour, spread: float = 20) -> Colour:
    """A colour near `colour`."""
    red, green, blue = (
        min(255, max(0, int(c + d))) for c, d in zip(colour, rng.normal(0, spread, 3), strict=True)
    )
    return red, green, blue


def bright(rng: np.random.Generator) -> Colour:
    """Any saturated colour: clutter may have the colour of the thing."""
    red, green, blue = rng.permutation(
        [rng.integers(220, 256), rng.integers(20, 230), rng.integers(20, 60)]
    ).tolist()
    return red, green, blue


def to_image(field: Field, enlarged: int = 1) -> Image.Image:
    """Clip to an RGB picture, `enlarged` times as large as the field."""
    image = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
    return image if enlarged == 1 else image.resize((image.width * enlarged, image.height * enlarged))


def scatter(
    rng: np.random.Generator,
    size: int,
    count: int,
    mark: Callable[[float, float, float], None],
    *,
    top: float = 0.0,
    bottom: float = 1.0,
) -> None:
    """Call mark(x, y, nearness) `count` times from far (0, at the top) to near (1): x, y in pixels."""
    for y in np.sort(rng.uniform(top, bottom, count)):
        nearness = (y - top) / max(bottom - top, 1e-6)
        mark(float(rng.uniform(0, size)), float(y * size), float(nearness))


def disc(draw: ImageDraw.ImageDraw, x: float, y: float, width: float, height: float, fill: Colour) -> None:
    """A filled ellipse around (x, y) with the given half axes in pixels."""
    draw.ellipse((x - width, y - height, x + width, y + height), fill=fill)
