"""The pictures the demo networks are trained on: rendered once, at the sizes the server feeds them."""

import hashlib
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image

from tercet_training import world
from tercet_training.world import Scene

RENDERED = 128  # the side of the world's picture files
SIDE = 64  # the side of what every demo network sees
CHUNK = 64

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """N scenes and what the networks see of them; the arrays may lie on disk."""

    scenes: list[Scene]
    view: Pixels  # (N, 64, 64, 3): shortest side, bicubic with antialiasing; for GIT and CLIP
    scene: Pixels  # (N, 64, 64, 3): stretched, bilinear without antialiasing, truncated; for IS-Net
    mask: Pixels  # (N, 64, 64): the true foreground, 0..255

    def __len__(self) -> int:
        return len(self.scenes)


def see(scene: Scene) -> tuple[Pixels, Pixels, Pixels]:
    """View, scene and mask of one picture as `decode_image` would give them."""
    picture = world.render(scene, RENDERED)
    view = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    # At exactly half the side, bilinear sampling without antialiasing is the mean of 2x2 pixels.
    quads = np.asarray(picture, np.uint16).reshape(SIDE, 2, SIDE, 2, 3).sum(axis=(1, 3)) // 4
    mask = np.asarray(world.mask(scene, RENDERED).reduce(RENDERED // SIDE))
    return view, quads.astype(np.uint8), mask


def see_all(scenes: Sequence[Scene]) -> list[tuple[Pixels, Pixels, Pixels]]:
    """`see` for several scenes, in one worker."""
    return [see(scene) for scene in scenes]


def sample_scenes(seed: int, count: int) -> list[Scene]:
    """`count` independent scenes."""
    rng = np.random.default_rng(seed)
    return [world.sample_scene(rng) for _ in range(count)]


def recipe(scenes: Sequence[Scene]) -> str:
    """A key that changes with the scenes and with every line of the code that renders them."""
    digest = hashlib.sha256(repr((RENDERED, SIDE, scenes[0], scenes[-1], len(scenes))).encode())
    for source in sorted(Path(world.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def open_pictures(scenes: list[Scene], folder: Path) -> Pictures:
    """What `render_pictures` left in `folder` for these scenes, mapped from disk."""
    place = folder / f"pictures-{recipe(scenes)}"
    view, scene, mask = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("view", "scene", "mask"))
    return Pictures(scenes, view, scene, mask)


def render_pictures(
    scenes: list[Scene], folder: Path, progress: Callable[[int], object] = lambda done: None
) -> Pictures:
    """Render the scenes on every core into `folder`, unless they are there already.

    Args:
        scenes: what to render.
        folder: takes three arrays of some 28 kB a picture.
        progress: called with the number of pictures done since the last call.
    """
    place = folder / f"pictures-{recipe(scenes)}"
    if place.exists():
        progress(len(scenes))
        return open_pictures(scenes, folder)
    unfinished = place.with_suffix(".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    square = (len(scenes), SIDE, SIDE)
    arrays = [
        open_memmap(unfinished / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape)
        for name, shape in (("view", (*square, 3)), ("scene", (*square, 3)), ("mask", square))
    ]
    chunks = [scenes[start : start + CHUNK] for start in range(0, len(scenes), CHUNK)]
    done = 0
    with multiprocessing.get_context("spawn").Pool() as pool:
        for seen in pool.imap(see_all, chunks):
            for pixels in seen:
                for array, values in zip(arrays, pixels, strict=True):
                    array[done] = values
                done += 1
            progress(len(seen))
    for array in arrays:
        array.flush()
    unfinished.rename(place)
    return open_pictures(scenes, folder)
