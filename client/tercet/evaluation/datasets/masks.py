"""COCO's three ways to write down which pixels belong to an object, as masks: without pycocotools.

Run lengths count pixels column by column, from the top left down: outside, inside, outside, ...
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["check_segmentation", "compressed_runs", "mask_of", "polygon_mask", "runs_mask"]

SUPERSAMPLING = 5
"""Points that pycocotools puts on a pixel's side when it draws a polygon."""


def mask_of(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The mask of an annotation's `segmentation`, bool [H, W].

    A list of polygons ([x, y, x, y, ...] each), or {"size": [H, W], "counts": run lengths or their string}.

    Raises:
        ValueError: it is malformed, or made for another size.
    """
    whole = np.zeros((height, width), bool)
    for part in check_segmentation(segmentation, height, width):
        whole |= runs_mask(part, height, width) if part.ndim == 1 else _fill(part, height, width)
    return whole


def check_segmentation(segmentation: Any, height: int, width: int) -> list[NDArray]:
    """A `segmentation` as arrays: corners f64 [N, 2] of each polygon, or one of run lengths, i64 [N].

    Raises:
        ValueError: it is malformed, or made for another size.
    """
    if isinstance(segmentation, list) and segmentation:
        return [_corners(polygon) for polygon in segmentation]
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise ValueError("a segmentation is a list of polygons or an object with 'size' and 'counts'")
    if segmentation["size"] != [height, width]:
        raise ValueError(f"made for {segmentation['size']} (height, width), not for [{height}, {width}]")
    counts = segmentation["counts"]
    return [_lengths(compressed_runs(counts) if isinstance(counts, str) else counts, height, width)]


def runs_mask(runs: Sequence[int] | NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """The mask of run lengths that begin outside, bool [H, W].

    Raises:
        ValueError: a run is negative, or they do not make up the picture.
    """
    lengths = _lengths(runs, height, width)
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(width, height).T


def _lengths(runs: Any, height: int, width: int) -> NDArray[np.int64]:
    """Run lengths that make up the picture."""
    lengths = np.asarray(runs)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any():
        raise ValueError("run lengths must be whole numbers and not negative")
    if lengths.sum() != height * width:
        raise ValueError(f"run lengths sum to {lengths.sum()}, not to {height} x {width} pixels")
    return lengths.astype(np.int64)


def compressed_runs(text: str) -> list[int]:
    """The run lengths that a string stands for.

    Each number in groups of 5 bits, lowest first, one a character (48 is added): bit 5 says that another
    group follows, bit 4 of the last one is the sign. From the fourth run on it is the difference to the run
    two before. (cocodataset/cocoapi, common/maskApi.c)

    Raises:
        ValueError: another character, or the string ends within a number.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError(f"{character!r} does not occur in compressed run lengths")
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        runs.append(value)
        value = shift = 0
    if shift:
        raise ValueError("compressed run lengths end within a number")
    return runs


def polygon_mask(polygon: Sequence[float], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels of a polygon [x, y, x, y, ...] as pycocotools draws it, bool [H, W].

    The outline is walked in steps of a fifth of a pixel; wherever it crosses the centre of a column of
    pixels, inside and outside change places from there on downwards. (cocodataset/cocoapi, common/maskApi.c)

    Raises:
        ValueError: fewer than three points, or an odd number of coordinates.
    """
    return _fill(_corners(polygon), height, width)


def _corners(polygon: Any) -> NDArray[np.float64]:
    """The corners (x, y) of a polygon, f64 [N, 2]."""
    try:
        corners = np.asarray(polygon, np.float64)
    except (TypeError, ValueError):
        corners = np.empty(0)
    if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
        raise ValueError("a polygon is a list of at least three points: x, y, x, y, x, y")
    return corners.reshape(-1, 2)


def _fill(corners: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels of a polygon with these corners."""
    fine = np.trunc(SUPERSAMPLING * corners + 0.5).astype(np.int64)
    walked = np.concatenate([_walk(start, end) for start, end in pairwise([*fine, fine[0]])])  # (M, 2): x, y
    step = np.flatnonzero(walked[1:, 0] != walked[:-1, 0]) + 1
    column, row = (np.minimum(walked[step], walked[step - 1]) + 0.5).T / SUPERSAMPLING - 0.5
    crosses = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    first = np.ceil(np.clip(row[crosses], 0, height)).astype(np.int64)  # the first row below the outline
    places = column[crosses].astype(np.int64) * height + first
    changes = np.bincount(places, minlength=height * width + 1)[: height * width]
    return (np.cumsum(changes) % 2 == 1).reshape(width, height).T


def _walk(start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """The points from start to end, one for each step along the longer axis, both included: i64 [M, 2]."""
    reach = np.abs(end - start)
    along = 0 if reach[0] >= reach[1] else 1
    across = 1 - along
    steps = int(reach[along])
    backwards = start[along] > end[along]
    low, high = (end, start) if backwards else (start, end)
    points = np.empty((steps + 1, 2), np.int64)
    forth = np.arange(steps + 1)
    slope = (high[across] - low[across]) / steps if steps else 0.0
    points[:, along] = low[along] + forth
    points[:, across] = np.trunc(low[across] + slope * forth + 0.5)
    return points[::-1] if backwards else points
