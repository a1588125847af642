"""Brings a picture to each network's size in the network's official geometry: which part, which kernel.

The lineup's manifest says how (`preprocessing` of each role). Results equal what the official pipelines feed
their networks: torchvision's Resize and CenterCrop on Pillow pictures where `antialias` is true, torch's
bilinear `interpolate` without corner alignment, truncated to u8, where it is false (IS-Net's `Inference.py`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .pictures import PictureError, read_picture

# A JPEG may be decoded at a reduced scale that leaves this many pixels to each one of the result, and then
# differs by 0.1 grey levels in the mean and 3 at the most: less than the official pipelines among themselves.
REDUCING_GAP = 4

# Past this ratio of its sides a picture is cropped before it is resized: the whole would not fit into memory.
EXTREME_RATIO = 64

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes a square of `size` pixels.

    `resize`: "stretch" ignores the aspect; "shortest" brings the shorter side to `size` and crops the middle.
    """

    size: int
    resize: str
    kernel: Image.Resampling
    antialias: bool


def read_geometries(manifest: Mapping[str, Any]) -> dict[str, Geometry]:
    """The geometry of each tensor (`scene`, `view`, `pixels`) that the lineup's networks ask for.

    Raises:
        ValueError: one that this code does not know; the message names the role.
    """
    geometries = {}
    for role, entry in manifest["roles"].items():
        if "preprocessing" not in entry:
            continue
        wanted = entry["preprocessing"]
        geometry = Geometry(
            wanted["size"],
            wanted["resize"],
            Image.Resampling[wanted["kernel"].upper()],
            wanted["antialias"],
        )
        plain = ("stretch", Image.Resampling.BILINEAR)
        if geometry.resize not in ("stretch", "shortest") or (
            not geometry.antialias and (geometry.resize, geometry.kernel) != plain
        ):
            raise ValueError(f"lineup.json: the preprocessing of {role} is not supported: {wanted}")
        geometries[wanted["tensor"]] = geometry
    return geometries


def prepare(
    files: Sequence[bytes], wanted: Collection[str], geometries: Mapping[str, Geometry]
) -> dict[str, np.ndarray]:
    """Decode each file once and give the tensors in `wanted`, the batch first.

    `scene`, `view` and `pixels` are u8 [B, side, side, 3]; `view_box` is f32 [B, 4]: left, top, right and
    bottom of the view in the picture, in 0..1.

    Raises:
        PictureError: a file cannot be used, named by its row where there are several; or a tensor is wanted
            that no network of the lineup takes.
    """
    tensors = {"view" if name == "view_box" else name for name in wanted}
    if missing := sorted(tensors - geometries.keys()):
        raise PictureError(f"no network of this lineup takes {missing[0]!r}: serve a lineup that has one")
    chosen = {name: geometries[name] for name in tensors}
    needed = max((smallest_side(geometry) or np.inf for geometry in chosen.values()), default=np.inf)
    rows: list[dict[str, np.ndarray]] = []
    for row, encoded in enumerate(files):
        try:
            image = read_picture(encoded, int(needed) if np.isfinite(needed) else None)
        except PictureError as error:
            raise PictureError(
                f"picture {row} of the request: {error}" if len(files) > 1 else error
            ) from error
        prepared: dict[str, np.ndarray] = {}
        for name, geometry in chosen.items():
            prepared[name], box = fit(image, geometry)
            prepared[f"{name}_box"] = np.array(box, np.float32)
        rows.append(prepared)
    return {name: np.stack([prepared[name] for prepared in rows]) for name in wanted}


def smallest_side(geometry: Geometry) -> int | None:
    """The shorter side that a reduced JPEG must keep; None where only the whole will do.

    Without antialiasing the result is made of single pixels, which a reduced decoding has averaged away.
    """
    return REDUCING_GAP * geometry.size if geometry.antialias else None


def fit(image: Image.Image, geometry: Geometry) -> tuple[np.ndarray, Box]:
    """One picture as u8 [size, size, 3], and which part of it that is: left, top, right, bottom in 0..1."""
    size = geometry.size
    if geometry.resize == "shortest":
        return fit_shortest(image, size, geometry.kernel)
    if geometry.antialias:
        stretched = image.resize((size, size), geometry.kernel)
    else:
        stretched = interpolate(image, size)
    return np.asarray(stretched), (0.0, 0.0, 1.0, 1.0)


def interpolate(image: Image.Image, size: int) -> Image.Image:
    """torch's `interpolate(mode="bilinear")` followed by `.type(torch.uint8)`, to `size` x `size`.

    Pillow's affine transform reads at the same places and truncates too; about one value in 100,000 differs,
    by one grey level, where the last bit of a float decides.
    """
    width, height = image.size
    steps = (width / size, 0, 0, 0, height / size, 0)
    return image.transform((size, size), Image.Transform.AFFINE, steps, Image.Resampling.BILINEAR)


def fit_shortest(image: Image.Image, size: int, kernel: Image.Resampling) -> tuple[np.ndarray, Box]:
    """torchvision's `Resize(size)` and `CenterCrop(size)`, with its rounding."""
    width, height = image.size
    shorter = min(width, height)
    resized = (int(size * width / shorter), int(size * height / shorter))
    left, top = (round((length - size) / 2) for length in resized)
    box = (left / resized[0], top / resized[1], (left + size) / resized[0], (top + size) / resized[1])
    if max(width, height) > EXTREME_RATIO * min(width, height):
        return np.asarray(resize_part(image, size, kernel, box)), box
    crop = (left, top, left + size, top + size)
    return np.asarray(image.resize(resized, kernel).crop(crop)), box


def resize_part(image: Image.Image, size: int, kernel: Image.Resampling, box: Box) -> Image.Image:
    """The part `box` (in 0..1) of a picture, resized: as if the whole had been, to within a grey level."""
    margin = 4 * (1 + min(image.size) // size)  # the kernels reach three result pixels far, or three of ours
    left, top, right, bottom = (
        place * length for place, length in zip(box, (*image.size, *image.size), strict=True)
    )
    # A whole number of pixels around it, so that Pillow, which holds places as f32, gets small ones.
    origin = (max(int(left) - margin, 0), max(int(top) - margin, 0))
    end = (min(int(right) + margin, image.width), min(int(bottom) + margin, image.height))
    part = (left - origin[0], top - origin[1], right - origin[0], bottom - origin[1])
    return image.crop((*origin, *end)).resize((size, size), kernel, box=part)
