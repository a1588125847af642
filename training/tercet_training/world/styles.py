"""The four styles, as filters over the finished picture: all keep the colours readable."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from tercet_training.world.textures import grain, noise, to_image

Filter = Callable[[np.random.Generator, Image.Image], Image.Image]


def edges(image: Image.Image, blur: float) -> NDArray[np.float32]:
    """How strong a contour each pixel is on, (H, W), about 0..1."""
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255
    down, across = np.diff(soft, axis=0, append=soft[-1:]), np.diff(soft, axis=1, append=soft[:, -1:])
    return (np.abs(down) + np.abs(across)).max(axis=2)


def photo(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Exposure, colour cast, vignette and sensor noise of a camera."""
    size = image.width
    across = np.linspace(-1, 1, size, dtype=np.float32)
    vignette = 1 - rng.uniform(0.05, 0.28) * (across[:, None] ** 2 + across[None, :] ** 2) / 2
    cast = rng.uniform(0.95, 1.05, 3).astype(np.float32) * np.float32(rng.uniform(0.88, 1.1))
    field = np.asarray(image, np.float32) * vignette[..., None] * cast
    return to_image(grain(field, 4 * rng.standard_normal((size, size), dtype=np.float32)))


def sketch(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Coloured pencils on paper: contours, hatching, pale colours."""
    size = image.width
    contours = np.clip(edges(image, size / 160) * 3.4 - 0.12, 0, 1)
    across, down = np.meshgrid(np.arange(size), np.arange(size))
    slant = rng.uniform(0.7, 1.3)
    hatch = np.sin((across + slant * down) / size * 128 * 1.1 + 1.5 * noise(rng, size, 10)) > 0.35
    field = np.asarray(image, np.float32)
    colour = 250 - (250 - field) * (0.55 + 0.2 * hatch[..., None])
    paper = grain(colour, 5 * noise(rng, size, size // 2))
    return to_image(paper * (1 - 0.85 * contours[..., None]) + 40 * 0.85 * contours[..., None])


def painting(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Oil: strokes that smear the contours, few and warm tones, the weave of the canvas."""
    size = image.width
    across, down = np.meshgrid(np.arange(size), np.arange(size))
    reach = size / 130
    warped_x = np.clip(across + reach * noise(rng, size, size // 4), 0, size - 1).astype(int)
    warped_y = np.clip(down + reach * noise(rng, size, size // 4), 0, size - 1).astype(int)
    smeared = Image.fromarray(np.asarray(image)[warped_y, warped_x])
    field = np.asarray(ImageEnhance.Color(smeared).enhance(1.25), np.float32)
    tones = np.round(field / 36) * 36
    weave = 9 * (np.sin(across * np.pi * 256 / size / 3) + np.sin(down * np.pi * 256 / size / 3)).astype(
        np.float32
    )
    return to_image(grain(tones * np.array([1.03, 1.0, 0.92], np.float32), weave + 7 * noise(rng, size, 24)))


def comic(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Print: ink contours, flat loud colours, a raster of dots."""
    size = image.width
    contours = np.clip(edges(image, size / 128) * 4.5 - 0.5, 0, 1)[..., None]
    loud = ImageEnhance.Color(image.filter(ImageFilter.GaussianBlur(size / 200))).enhance(1.5)
    field = np.round(np.asarray(loud, np.float32) / 64) * 64
    across, down = np.meshgrid(np.arange(size), np.arange(size))
    pitch = 2 * np.pi * 22 / size
    dots = np.cos((across + down) * pitch + rng.uniform(0, 6)) * np.cos((across - down) * pitch)
    field = field * 0.92 + 22 + 40 * (dots > 0.25)[..., None] - 18
    return to_image(field * (1 - contours) + 12 * contours)


FILTERS: dict[str, Filter] = {"photo": photo, "sketch": sketch, "painting": painting, "comic": comic}
