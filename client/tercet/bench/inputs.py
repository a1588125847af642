"""What is sent: picture files and texts that cost what real ones cost."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tercet.errors import InputError
from tercet.index.sources import list_pictures

__all__ = ["SIZE", "make_pictures", "make_texts", "read_pictures"]

SIZE = (640, 480)
MADE = 32
MOST = 256
QUALITY = 88
TEXTS = 96

THINGS = ("dress", "jacket", "wooden chair", "dog", "mountain bike", "coffee cup", "sailing boat", "backpack")
LOOKS = ("in dark blue", "with a floral pattern", "made of leather", "seen from the side", "a bit shorter")
PLACES = ("on a beach at sunset", "in front of a brick wall", "in a snowy forest", "on a white table")
MORE = ("and without sleeves", "next to another of the same kind", "as a pencil drawing", "")


def make_pictures(seed: int = 0, count: int = MADE) -> list[bytes]:
    """`count` different JPEG files of 640x480 pixels, of the size (40 to 120 kB) and detail of photographs.

    Clouds of noise at every scale, as natural pictures have (amplitude falls as frequency grows), with shapes
    over them and grain on top. The same seed gives the same files.
    """
    random = np.random.default_rng(seed)
    return [_make_picture(random) for _ in range(count)]


def _make_picture(random: np.random.Generator) -> bytes:
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
    for scale in (2, 4, 8, 16, 32, 64, 128):
        coarse = random.normal(0, 1, (3, scale * 3 // 4 + 1, scale))
        channels = [
            Image.fromarray(channel.astype(np.float32)).resize(SIZE, Image.Resampling.BICUBIC)
            for channel in coarse
        ]
        pixels += np.stack([np.asarray(channel) for channel in channels], axis=-1) * (90 / scale**0.7)
    base = random.uniform(60, 190, 3)
    picture = Image.fromarray(np.clip(pixels + base, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(random.integers(3, 9))):
        corner, extent = random.uniform(0, 0.8, 2) * SIZE, random.uniform(0.1, 0.5, 2) * SIZE
        box = (*corner.tolist(), *(corner + extent).tolist())
        colour = tuple(random.integers(0, 256, 3).tolist())
        (draw.ellipse if random.random() < 0.5 else draw.rectangle)(box, fill=colour)
    grain = random.normal(0, random.uniform(3, 9), (SIZE[1], SIZE[0], 1))
    grained = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grained).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def read_pictures(folder: Path) -> list[bytes]:
    """The picture files of a folder as they are; of more than 256 so many, evenly spread over their names.

    Raises:
        InputError: there is no such folder, or no picture in it that can be read.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: name one with pictures, or leave --pictures out")
    try:
        listing = list_pictures(folder)
    except InputError as error:
        raise InputError(
            f"{str(error).partition(';')[0]}: name another folder, or leave --pictures out: some are made"
        ) from error
    files = [listing.root / picture.name for picture in listing.pictures]
    chosen = [files[index] for index in np.linspace(0, len(files) - 1, min(len(files), MOST)).astype(int)]
    pictures = [path.read_bytes() for path in chosen]
    if not pictures:
        reason = listing.skipped[0].reason if listing.skipped else "empty"
        raise InputError(f"no picture of {folder} can be read ({reason}): name another folder")
    return pictures


def make_texts(seed: int = 0, count: int = TEXTS) -> list[str]:
    """`count` different wishes of 6 to 20 words, as long as those of the data sets of composed retrieval."""
    random = np.random.default_rng(seed)
    parts = [
        (thing, look, place, more) for thing in THINGS for look in LOOKS for place in PLACES for more in MORE
    ]
    chosen = random.choice(len(parts), count, replace=False)
    return [" ".join(("the same", *parts[index])).strip() for index in chosen]
