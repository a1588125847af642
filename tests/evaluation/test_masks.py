"""COCO's masks: as pycocotools reads and draws them."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tercet.evaluation.datasets.masks import compressed_runs, mask_of, polygon_mask, runs_mask
from tests.evaluation.miniatures import compress_runs, runs_of

# What pycocotools 2.0.11 made of random polygons, one or two a mask, some of them outside of the picture:
# merge(frPyObjects(polygons)) as its string and decoded to run lengths.
PYCOCOTOOLS = json.loads(Path(__file__).with_name("pycocotools_masks.json").read_text())

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))


@pytest.mark.parametrize("case", PYCOCOTOOLS)
def test_polygons_are_drawn_and_strings_are_read_as_by_pycocotools(case: dict[str, Any]) -> None:
    height, width = case["size"]
    official = runs_mask(case["runs"], height, width)
    assert compressed_runs(case["counts"]) == case["runs"]
    np.testing.assert_array_equal(mask_of(case["polygons"], height, width), official)
    np.testing.assert_array_equal(
        mask_of({"size": [height, width], "counts": case["counts"]}, height, width), official
    )


def test_the_cases_are_not_trivial() -> None:
    filled = [np.mean(runs_mask(case["runs"], *case["size"])) for case in PYCOCOTOOLS]
    assert len(PYCOCOTOOLS) == 60
    assert sum(0.05 < share < 0.95 for share in filled) > 40


def test_run_lengths_go_down_the_columns() -> None:
    expected = np.array([[0, 1, 0], [1, 0, 0]], bool)
    np.testing.assert_array_equal(runs_mask([1, 2, 3], 2, 3), expected)
    np.testing.assert_array_equal(runs_mask([0, 6], 2, 3), np.ones((2, 3), bool))


def test_a_rectangle_covers_the_pixels_whose_centres_it_has() -> None:
    expected = np.zeros((10, 12), bool)
    expected[2:6, 3:9] = True
    np.testing.assert_array_equal(polygon_mask([3, 2, 9, 2, 9, 6, 3, 6], 10, 12), expected)


@given(masks)
def test_run_lengths_of_any_mask(inside: np.ndarray) -> None:
    np.testing.assert_array_equal(runs_mask(runs_of(inside), *inside.shape), inside)


@given(masks)
def test_compressed_run_lengths_of_any_mask(inside: np.ndarray) -> None:
    text = compress_runs(runs_of(inside))
    assert compressed_runs(text) == runs_of(inside)
    np.testing.assert_array_equal(
        mask_of({"size": list(inside.shape), "counts": text}, *inside.shape), inside
    )


@given(st.lists(st.integers(0, 2**40)))
def test_compressed_numbers_of_any_size(runs: list[int]) -> None:
    assert compressed_runs(compress_runs(runs)) == runs


@given(st.text())
def test_any_string_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert mask_of({"size": [3, 4], "counts": text}, 3, 4).shape == (3, 4)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "list of polygons or an object"),
        (None, "list of polygons or an object"),
        ({"counts": "0"}, "list of polygons or an object"),
        ([[1, 2, 3, 4]], "at least three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "at least three points"),
        ([[1, 2, 3, 4, 5, "x"]], "at least three points"),
        ([None], "at least three points"),
        ({"size": [4, 3], "counts": [12]}, r"made for \[4, 3\] \(height, width\), not for \[3, 4\]"),
        ({"size": [3, 4], "counts": [11]}, "sum to 11, not to 3 x 4"),
        ({"size": [3, 4], "counts": [13, -1]}, "not negative"),
        ({"size": [3, 4], "counts": [11.5, 0.5]}, "whole numbers"),
        ({"size": [3, 4], "counts": "P"}, "end within a number"),
        ({"size": [3, 4], "counts": "ä"}, "does not occur"),
    ],
)
def test_what_is_no_mask_is_refused(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_of(segmentation, 3, 4)
