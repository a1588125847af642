"""The ten backgrounds: textured, cluttered, each different every time.

A painter takes a generator and a side in pixels.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tercet_training.world.textures import (
    Colour,
    bright,
    disc,
    gradient,
    grain,
    noise,
    scatter,
    shade,
    to_image,
)

Painter = Callable[[np.random.Generator, int], Image.Image]


def ground(
    rng: np.random.Generator,
    size: int,
    amount: float,
    cells: tuple[int, ...],
    *colours: Colour,
    light: float | NDArray[np.float64] = 0.0,
) -> Image.Image:
    """A gradient with `amount` of noise and `light` on it; computed at half the side, which nobody sees."""
    half = size // 2
    texture = (amount * noise(rng, half, *cells) + light).astype(np.float32)
    return to_image(grain(gradient(half, *colours), texture), 2)


def beach(rng: np.random.Generator, size: int) -> Image.Image:
    """Sky, sea and sand, with shells and parasols."""
    horizon, shore = rng.uniform(0.18, 0.34), rng.uniform(0.4, 0.52)
    half = size // 2
    field = gradient(half, (238, 214, 160), (226, 192, 130))
    rows = np.arange(half)[:, None] / half + 0.012 * noise(rng, half, 6)
    field[rows < shore] = gradient(half, (30, 110, 170), (80, 190, 205))[rows < shore]
    field[np.abs(rows - shore) < 0.012] = 248
    top = int(horizon * half)
    field[:top] = gradient(top, (120, 190, 240), (210, 232, 245))[:, :1]
    image = to_image(grain(field, 9 * noise(rng, half, 6, 40)), 2)
    draw = ImageDraw.Draw(image)

    def parasol(x: float, y: float, near: float) -> None:
        reach = size * (0.05 + 0.04 * near)
        draw.line((x, y, x, y + 1.6 * reach), fill=(120, 90, 60), width=max(1, size // 100))
        draw.pieslice((x - reach, y - reach, x + reach, y + reach), 180, 360, fill=bright(rng))
        draw.pieslice((x - reach / 3, y - reach, x + reach / 3, y + reach), 180, 360, fill=(250, 245, 235))

    def shell(x: float, y: float, near: float) -> None:
        reach = size * (0.008 + 0.014 * near)
        disc(draw, x, y, reach * 1.3, reach, shade(rng, (225, 160, 140), 30))

    scatter(rng, size, int(rng.integers(1, 4)), parasol, top=shore, bottom=0.75)
    scatter(rng, size, int(rng.integers(8, 20)), shell, top=shore + 0.05)
    return image


def forest(rng: np.random.Generator, size: int) -> Image.Image:
    """Trunks between leaves."""
    image = ground(rng, size, 16, (6, 20, 60), (96, 140, 70), (40, 74, 36), (66, 62, 34))
    draw = ImageDraw.Draw(image)

    def leaves(x: float, y: float, near: float) -> None:
        reach = size * rng.uniform(0.02, 0.07)
        disc(draw, x, y, reach, reach * rng.uniform(0.5, 1), shade(rng, (52, 110, 46), 24))

    scatter(rng, size, 30, leaves, bottom=0.6)
    for x in np.sort(rng.uniform(0, size, rng.integers(5, 9))):
        width, lean = size * rng.uniform(0.015, 0.05), size * rng.uniform(-0.04, 0.04)
        bark = shade(rng, (84, 60, 40), 14)
        foot = size * rng.uniform(0.72, 1.0)
        draw.polygon(
            [(x - width, foot), (x + width, foot), (x + lean + width * 0.7, 0), (x + lean - width * 0.7, 0)],
            bark,
        )
        draw.line(
            (x - width * 0.4, foot, x + lean, 0), fill=shade(rng, (60, 42, 28), 8), width=max(1, size // 90)
        )
    scatter(rng, size, 26, leaves, bottom=0.3)
    scatter(rng, size, 26, leaves, top=0.75)
    return image


def city(rng: np.random.Generator, size: int) -> Image.Image:
    """Lit windows and signs at night."""
    image = ground(rng, size, 5, (5, 40), (16, 18, 48), (44, 34, 84), (30, 30, 44))
    draw = ImageDraw.Draw(image)
    street = 0.85 * size
    step = size * 0.035
    for layer in range(2):
        x = -size * rng.uniform(0, 0.1)
        while x < size:
            width = size * rng.uniform(0.1, 0.22)
            roof = size * rng.uniform(0.08, 0.5) + layer * size * 0.15
            draw.rectangle(
                (x, roof, x + width, street), fill=shade(rng, (34, 36, 58) if layer else (48, 48, 78), 7)
            )
            for window_y in np.arange(roof + step / 2, street - step, step):
                for window_x in np.arange(x + step / 2, x + width - step / 2, step):
                    if rng.random() < 0.45:
                        lit = shade(rng, (250, 214, 120), 25)
                        draw.rectangle(
                            (window_x, window_y, window_x + step * 0.45, window_y + step * 0.5), fill=lit
                        )
            if rng.random() < 0.4:
                draw.rectangle((x, roof + width / 2, x + width * 0.25, roof + width * 1.6), fill=bright(rng))
            x += width + size * rng.uniform(0, 0.02)
    for _ in range(14):
        x, y = rng.uniform(0, size), rng.uniform(street, size)
        disc(draw, x, y, size * 0.014, size * 0.009, bright(rng))
    return image


def snow(rng: np.random.Generator, size: int) -> Image.Image:
    """Firs, drifts and falling flakes."""
    image = ground(
        rng, size, 5, (4, 12, 60), (170, 190, 215), (214, 224, 236), (240, 244, 250), (214, 226, 242)
    )
    draw = ImageDraw.Draw(image)

    def fir(x: float, y: float, near: float) -> None:
        reach = size * (0.05 + 0.06 * near)
        needles = shade(rng, (40, 84, 72), 12)
        for tier in range(3):
            top, half = y - reach * (3 - tier), reach * (0.5 + 0.22 * tier)
            draw.polygon(
                [(x, top), (x - half, top + 1.4 * reach), (x + half, top + 1.4 * reach)], fill=needles
            )
            draw.polygon(
                [(x, top), (x - half / 3, top + 0.45 * reach), (x + half / 3, top + 0.45 * reach)],
                fill=(246, 250, 255),
            )

    def flake(x: float, y: float, near: float) -> None:
        disc(draw, x, y, size * 0.008, size * 0.008, (255, 255, 255))

    scatter(rng, size, int(rng.integers(4, 8)), fir, top=0.4, bottom=0.95)
    scatter(rng, size, 70, flake)
    return image


def bricks(rng: np.random.Generator, size: int) -> Image.Image:
    """A brick wall with posters and paint on it."""
    image = ground(rng, size, 6, (20, size // 2), (176, 166, 154), (160, 150, 140))
    draw = ImageDraw.Draw(image)
    height = size * rng.uniform(0.055, 0.075)
    width, gap = height * 2.2, size * 0.008
    base = shade(rng, (164, 82, 60), 12)
    for row in range(int(size / height) + 1):
        for column in range(-1, int(size / width) + 1):
            x, y = (column + 0.5 * (row % 2)) * width, row * height
            draw.rectangle((x + gap, y + gap, x + width - gap, y + height - gap), fill=shade(rng, base, 12))
    for _ in range(rng.integers(1, 4)):
        x, y, reach = rng.uniform(0, size), rng.uniform(0, size), size * rng.uniform(0.06, 0.12)
        draw.rectangle(
            (x - reach, y - reach, x + reach, y + reach * 1.3), fill=shade(rng, (228, 220, 200), 10)
        )
        draw.rectangle((x - reach * 0.7, y - reach * 0.7, x + reach * 0.7, y + reach * 0.2), fill=bright(rng))
    for _ in range(rng.integers(1, 4)):
        points = [
            (float(x), float(y))
            for x, y in rng.uniform(0.0, 1, 2) * size + rng.normal(0, 0.12 * size, (5, 2)).cumsum(0)
        ]
        draw.line(points, fill=bright(rng), width=max(2, size // 50), joint="curve")
    return image


def meadow(rng: np.random.Generator, size: int) -> Image.Image:
    """Grass with flowers under a strip of sky."""
    half = size // 2
    field = grain(gradient(half, (110, 180, 70), (70, 150, 50), (56, 128, 42)), 12 * noise(rng, half, 5, 30))
    sky = grain(gradient(half, (150, 205, 245), (220, 238, 248)), 8 * noise(rng, half, 4, 8))
    ridge = rng.uniform(0.1, 0.24) + 0.02 * noise(rng, half, 5)
    image = to_image(np.where((np.arange(half)[:, None] / half < ridge)[..., None], sky, field), 2)
    draw = ImageDraw.Draw(image)

    def blade(x: float, y: float, near: float) -> None:
        tip = x + rng.normal(0, 0.015) * size
        draw.line(
            (x, y, tip, y - size * (0.02 + 0.05 * near)),
            fill=shade(rng, (74, 158, 48), 24),
            width=max(1, size // 110),
        )

    def bloom(x: float, y: float, near: float) -> None:
        reach = size * (0.006 + 0.012 * near)
        disc(draw, x, y, reach, reach, bright(rng) if rng.random() < 0.6 else (250, 250, 240))

    scatter(rng, size, 150, blade, top=0.25)
    scatter(rng, size, int(rng.integers(15, 40)), bloom, top=0.25)
    return image


def desert(rng: np.random.Generator, size: int) -> Image.Image:
    """Dunes, cacti and rocks under a hot sky."""
    image = ground(
        rng,
        size,
        5,
        (
            4,
            10,
        ),
        (236, 170, 110),
        (250, 222, 170),
    )
    draw = ImageDraw.Draw(image)
    x = np.linspace(0, size, 40)
    if rng.random() < 0.6:
        disc(
            draw,
            rng.uniform(0, size),
            rng.uniform(0.05, 0.2) * size,
            0.06 * size,
            0.06 * size,
            (255, 246, 214),
        )

    def dune(_: float, y: float, near: float) -> None:
        wave = y + size * 0.05 * np.sin(x / size * rng.uniform(3, 9) + rng.uniform(0, 7))
        crest = [(float(a), float(b)) for a, b in zip(x, wave, strict=True)]
        draw.polygon(
            [*crest, (size, size), (0, size)],
            fill=shade(rng, (222 - int(30 * near), 150 - int(20 * near), 78), 9),
        )

    def cactus(x: float, y: float, near: float) -> None:
        tall, thick = size * (0.08 + 0.1 * near), max(2, int(size * (0.012 + 0.014 * near)))
        green = shade(rng, (62, 118, 66), 12)
        draw.line((x, y, x, y - tall), fill=green, width=thick)
        for side in (-1, 1):
            elbow, height = x + side * tall * 0.3, y - tall * rng.uniform(0.3, 0.6)
            draw.line((x, height, elbow, height, elbow, height - tall * 0.3), fill=green, width=thick)

    def rock(x: float, y: float, near: float) -> None:
        reach = size * (0.01 + 0.02 * near)
        disc(draw, x, y, reach * 1.4, reach, shade(rng, (132, 90, 62), 14))

    scatter(rng, size, 7, dune, top=0.34, bottom=1.0)
    scatter(rng, size, int(rng.integers(2, 6)), cactus, top=0.42)
    scatter(rng, size, 9, rock, top=0.45)
    return image


def water(rng: np.random.Generator, size: int) -> Image.Image:
    """Bubbles, weeds and shoals."""
    place = np.linspace(0, 1, size // 2)
    rays = np.maximum(
        0, np.sin(place[None, :] * rng.uniform(14, 22) + place[:, None] * 3 + rng.uniform(0, 7))
    )
    fade = (1 - place[:, None]) ** 2
    image = ground(
        rng, size, 8, (5, 14), (70, 190, 214), (22, 110, 168), (12, 62, 110), light=36 * rays * fade
    )
    draw = ImageDraw.Draw(image)

    def weed(x: float, y: float, near: float) -> None:
        up = np.linspace(0, rng.uniform(0.15, 0.4) * size, 14)
        sway = x + 0.025 * size * np.sin(up / size * 22 + x)
        draw.line(
            [(float(a), float(y - b)) for a, b in zip(sway, up, strict=True)],
            fill=shade(rng, (40, 130, 84), 18),
            width=max(2, size // 50),
        )

    def minnow(x: float, y: float, near: float) -> None:
        reach, colour = size * rng.uniform(0.012, 0.026), bright(rng)
        disc(draw, x, y, reach * 1.6, reach * 0.8, colour)
        draw.polygon(
            [(x + reach, y), (x + 2.4 * reach, y - reach), (x + 2.4 * reach, y + reach)], fill=colour
        )

    def bubble(x: float, y: float, near: float) -> None:
        reach = size * rng.uniform(0.008, 0.026)
        draw.ellipse(
            (x - reach, y - reach, x + reach, y + reach), outline=(205, 238, 246), width=max(1, size // 128)
        )

    scatter(rng, size, int(rng.integers(6, 12)), weed, top=0.95, bottom=1.02)
    scatter(rng, size, int(rng.integers(5, 12)), minnow)
    scatter(rng, size, 24, bubble)
    return image


def tiles(rng: np.random.Generator, size: int) -> Image.Image:
    """Glazed kitchen tiles, some with ornaments."""
    image = ground(rng, size, 4, (size // 2,), (150, 156, 160), (138, 142, 148))
    draw = ImageDraw.Draw(image)
    step, gap = size * rng.uniform(0.11, 0.16), size * 0.006
    glaze = shade(rng, (226, 232, 232), 8)
    accent = bright(rng)
    offset = rng.uniform(0, step, 2)
    for x in np.arange(-offset[0], size, step):
        for y in np.arange(-offset[1], size, step):
            draw.rectangle((x + gap, y + gap, x + step - gap, y + step - gap), fill=shade(rng, glaze, 5))
            centre_x, centre_y, reach, kind = x + step / 2, y + step / 2, step * 0.3, rng.random()
            if kind < 0.15:
                corners = [
                    (centre_x - reach, centre_y),
                    (centre_x, centre_y - reach),
                    (centre_x + reach, centre_y),
                    (centre_x, centre_y + reach),
                ]
                draw.polygon(corners, fill=accent)
            elif kind < 0.3:
                disc(draw, centre_x, centre_y, reach * 0.7, reach * 0.7, shade(rng, accent, 12))
            elif kind < 0.4:
                draw.rectangle(
                    (x + gap, y + gap, x + step - gap, y + step - gap), fill=shade(rng, accent, 10)
                )
            draw.line(
                (x + 2 * gap, y + 2 * gap, x + step / 2, y + 2 * gap),
                fill=(250, 252, 252),
                width=max(1, size // 128),
            )
    return image


def space(rng: np.random.Generator, size: int) -> Image.Image:
    """Stars, nebulae and planets."""
    half = size // 2
    field = gradient(half, (8, 8, 22), (14, 10, 30))
    for _ in range(2):
        field = grain(
            field,
            46 * np.maximum(noise(rng, half, 4, 9) - 0.2, 0).astype(np.float32),
            rng.random(3).astype(np.float32),
        )
    image = to_image(field, 2)
    draw = ImageDraw.Draw(image)

    def spark(x: float, y: float, near: float) -> None:
        reach = size * rng.uniform(0.002, 0.007)
        disc(draw, x, y, reach, reach, shade(rng, (246, 244, 235), 12))

    def planet(x: float, y: float, near: float) -> None:
        reach, colour = size * rng.uniform(0.025, 0.075), bright(rng)
        disc(draw, x, y, reach, reach, colour)
        disc(draw, x - reach * 0.25, y - reach * 0.25, reach * 0.55, reach * 0.5, shade(rng, colour, 30))
        if rng.random() < 0.4:
            draw.arc(
                (x - reach * 1.8, y - reach * 0.5, x + reach * 1.8, y + reach * 0.5),
                0,
                360,
                fill=(210, 200, 180),
                width=max(1, size // 100),
            )

    scatter(rng, size, 110, spark)
    scatter(rng, size, int(rng.integers(2, 6)), planet)
    return image


PAINTERS: dict[str, Painter] = {
    "beach": beach,
    "forest": forest,
    "city": city,
    "snow": snow,
    "bricks": bricks,
    "meadow": meadow,
    "desert": desert,
    "water": water,
    "tiles": tiles,
    "space": space,
}
