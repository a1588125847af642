"""Each network's official geometry: which part of the picture it sees, at which size, by which kernel.

The rules come as data from the lineup's manifest (`preprocessing` of each role): `resize` "stretch" ignores
the aspect; "shortest" brings the shorter side to `size` and cuts the centre out, rounded as torchvision's
Resize and CenterCrop do. `antialias` true is Pillow's resampling; false is torch's bilinear interpolation
(align_corners=False) cut down to whole grey levels, as IS-Net's official Inference.py does.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

KERNELS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Beyond this aspect the whole resized picture is not made first: of a 1 x 50,000 one it would need gigabytes.
LONGEST_ASPECT = 8


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes one tensor, as the manifest says."""

    tensor: str
    size: int
    resize: str
    kernel: str
    antialias: bool

    @classmethod
    def read(cls, entry: dict) -> "Geometry":
        """From a role's `preprocessing` in the manifest; ValueError for what this file cannot do."""
        geometry = cls(*(entry[key] for key in ("tensor", "size", "resize", "kernel", "antialias")))
        if geometry.resize not in ("stretch", "shortest") or geometry.kernel not in KERNELS:
            raise ValueError(
                f"decode_image cannot resize by {entry}: export the lineup again with this version"
            )
        if not geometry.antialias and (geometry.resize, geometry.kernel) != ("stretch", "bilinear"):
            raise ValueError(f"without antialiasing only a bilinear stretch is known, not {entry}")
        return geometry


def apply(picture: Image.Image, geometry: Geometry) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return u8 [size, size, 3] and its place in the picture, f32 [4]: left, top, right, bottom in 0..1."""
    size, kernel = geometry.size, KERNELS[geometry.kernel]
    if geometry.resize == "stretch":
        whole = np.array([0, 0, 1, 1], np.float32)
        if geometry.antialias:
            return np.asarray(picture.resize((size, size), kernel)), whole
        return stretch_bilinear(np.asarray(picture), size), whole
    width, height = picture.size
    # torchvision: the long side is cut to a whole number, the crop's corner rounded half to even.
    shorter = min(width, height)
    resized = (int(size * width / shorter), int(size * height / shorter))
    left, top = (round((side - size) / 2.0) for side in resized)
    box = (left / resized[0], top / resized[1], (left + size) / resized[0], (top + size) / resized[1])
    if max(resized) > LONGEST_ASPECT * size:
        source = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
        pixels = picture.resize((size, size), kernel, box=source)
    else:
        if resized != picture.size:
            picture = picture.resize(resized, kernel)
        pixels = picture.crop((left, top, left + size, top + size))
    return np.asarray(pixels), np.array(box, np.float32)


def stretch_bilinear(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """[H, W, 3] to [size, size, 3] as torch's F.interpolate(mode="bilinear"), cut down to u8."""
    (top, bottom, down), (left, right, across) = (_neighbours(side, size) for side in pixels.shape[:2])
    down, across = down[:, None, None], across[:, None]

    def row(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        line = pixels[rows]
        first = line[:, left].astype(np.float32)
        return first * (1 - across) + line[:, right].astype(np.float32) * across

    return (row(top) * (1 - down) + row(bottom) * down).astype(np.uint8)


def _neighbours(side: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each of `size` places along `side` pixels: the pixels before and after, and the latter's share."""
    scale = np.float32(side) / np.float32(size)
    place = np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    before = np.minimum(place.astype(np.int64), side - 1)
    return before, np.minimum(before + 1, side - 1), (place - before).astype(np.float32)
