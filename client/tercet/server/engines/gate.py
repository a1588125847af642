"""Whether an engine computes a network well enough: its outputs beside ONNX Runtime's in fp32.

The limits are those that an export in fp16 is held to (`tercet_export.gate`).
"""

from collections.abc import Mapping

import numpy as np

__all__ = ["measure_distances", "refusal"]

COSINE = 1e-3  # 1 - the cosine of an embedding to that in fp32, in the worst row
DIFFERENCE = 0.005  # mean absolute difference of masks and, in parts of white, of pictures
OTHER_CAPTIONS = 0.05  # share of the captions that are others
LOG_PROBABILITY = 0.05  # by how much the score of an equal caption is off, at worst

Arrays = Mapping[str, np.ndarray]


def measure_distances(expected: Arrays, found: Arrays) -> dict[str, float]:
    """Return how far each output is: inf where its type or shape is another, or it is not finite.

    Whole numbers: the share of rows that differ anywhere. A score (one number a row): the largest difference,
    over rows whose whole numbers are equal. Vectors: 1 - cosine in the worst row. Masks and pictures: the
    mean difference, of pictures in parts of white.
    """
    same = np.ones(len(next(iter(expected.values()))), bool)
    for name, array in expected.items():
        if array.dtype.kind == "i" and fits(array, found[name]):
            same &= (array == found[name]).reshape(len(array), -1).all(axis=1)
    return {name: _distance(array, found[name], same) for name, array in expected.items()}


def refusal(expected: Arrays, distances: Mapping[str, float]) -> str | None:
    """Return which output is too far and by how much; None where all are near enough."""
    for name, distance in distances.items():
        limit, measure = _limit(expected[name])
        if not distance <= limit:
            return f"{name} is too far from fp32: {measure} {distance:.2g}, accepted {limit:g}"
    return None


def fits(expected: np.ndarray, found: np.ndarray) -> bool:
    """Whether an output has the type and shape that it should have, and is finite."""
    alike = found.dtype == expected.dtype and found.shape == expected.shape
    return alike and (found.dtype.kind != "f" or bool(np.isfinite(found).all()))


def _limit(array: np.ndarray) -> tuple[float, str]:
    if array.dtype.kind == "i":
        return OTHER_CAPTIONS, "share of other rows"
    if _is_score(array):
        return LOG_PROBABILITY, "difference"
    return (COSINE, "1 - cosine") if array.ndim == 2 else (DIFFERENCE, "mean difference")


def _is_score(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and array.size == len(array)


def _distance(expected: np.ndarray, found: np.ndarray, same: np.ndarray) -> float:
    if not fits(expected, found):
        return float("inf")
    if expected.dtype.kind == "i":
        return float(1 - (expected == found).reshape(len(expected), -1).all(axis=1).mean())
    a, b = (values.astype(np.float64).reshape(len(values), -1) for values in (found, expected))
    if _is_score(expected):
        return float(np.abs(a - b)[same].max(initial=0))
    if expected.ndim == 2:
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float((1 - (a * b).sum(axis=1) / np.maximum(norms, 1e-12)).max())
    return float(np.abs(a - b).mean()) / (255 if expected.dtype == np.uint8 else 1)
