"""What official loaders do to pictures, and COCO's draw, against calculations of another kind."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tercet.errors import DatasetError, PictureError
from tercet.evaluation.datasets import load_dataset
from tercet.evaluation.datasets.coco import (
    PaintedRegion,
    SqueezedRegion,
    digest_of,
    draw_regions,
    read_regions,
    write_regions,
)
from tercet.evaluation.datasets.genecis import DilatedSquare
from tercet.evaluation.values import PictureSource
from tests.evaluation.miniatures import Miniature


def coordinates(width: int, height: int) -> np.ndarray:
    """A picture u8 [H, W, 3] whose red is the column and whose green is the row; blue is never black."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.full_like(rows, 255)], axis=2).astype(np.uint8)


# GeneCIS ---------------------------------------------------------------------------------------------------


def test_genecis_box_grows_to_the_left_and_upwards_only() -> None:
    crop = np.asarray(DilatedSquare((50, 40, 20, 10))(Image.fromarray(coordinates(200, 100))))
    assert crop.shape == (34, 34, 3)  # 20 + 0.7 * 20 wide, 10 + 0.7 * 10 high, padded
    rows = np.flatnonzero(crop[:, 0, 2])
    assert (rows.min(), rows.max()) == (8, 24)  # 17 rows in the middle of black
    assert crop[rows.min(), 0, :2].tolist() == [36, 33]  # 50 - 14, 40 - 7
    assert crop[rows.max(), -1, :2].tolist() == [69, 49]  # where the box itself ends


def test_genecis_box_at_the_edge_grows_to_the_right_instead() -> None:
    crop = np.asarray(DilatedSquare((0, 0, 20, 20))(Image.fromarray(coordinates(200, 100))))
    assert crop.shape == (34, 34, 3)
    assert crop[-1, -1].tolist() == [33, 33, 255]


@given(
    st.tuples(st.integers(20, 90), st.integers(20, 90)),
    st.tuples(*[st.floats(0, 0.9, allow_subnormal=False)] * 2),
    st.tuples(*[st.floats(0.1, 1.5)] * 2),
)
def test_genecis_crop_of_any_box(
    size: tuple[int, int], corner: tuple[float, float], reach: tuple[float, float]
) -> None:
    across, down = size
    x, y = corner[0] * across, corner[1] * down
    width, height = reach[0] * across, reach[1] * down
    picture = coordinates(across, down)
    # The official arithmetic, and slices of an array in place of Pillow's crop and paste.
    left, top = max(0, x - 0.7 * width), max(0, y - 0.7 * height)
    right, bottom = min(across, left + 1.7 * width), min(down, top + 1.7 * height)
    part = picture[round(top) : round(bottom), round(left) : round(right)]
    side = max(part.shape[:2])
    before = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
    after = side - part.shape[0] - before[0], side - part.shape[1] - before[1]
    expected = np.pad(part, ((before[0], after[0]), (before[1], after[1]), (0, 0)))
    crop = DilatedSquare((x, y, width, height))(Image.fromarray(picture))
    np.testing.assert_array_equal(np.asarray(crop), expected)


def test_a_box_outside_of_its_picture_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    Image.fromarray(coordinates(30, 20)).save(tmp_path / "7.jpg")
    with pytest.raises(PictureError, match=r"7\.jpg"):
        PictureSource(tmp_path / "7.jpg", DilatedSquare((100, 100, 5, 5))).encoded()


# COCO ------------------------------------------------------------------------------------------------------


def test_regions_cut_here_equal_those_of_pic2words_files(miniature: Callable[..., Miniature]) -> None:
    """The list and the painted files of the csv layout were made from masks, without any loader."""
    drawn = load_dataset("coco", miniature("coco", "inside").root)
    small = miniature("coco", "csv")
    listed = load_dataset("coco", small.root, **small.options)
    assert [query.reference for query in drawn.tasks[0].queries] == [
        query.reference for query in listed.tasks[0].queries
    ]
    for query in drawn.tasks[0].queries:
        ours, theirs = drawn.pictures[query.reference], listed.pictures[query.reference]
        assert isinstance(ours.treatment, PaintedRegion)
        assert isinstance(theirs.treatment, SqueezedRegion)
        assert ours.treatment.box == theirs.treatment.box
        assert ours.encoded() == theirs.encoded()
    digests = {re.search("digest ([0-9a-f]{12})", dataset.protocol) for dataset in (drawn, listed)}
    assert len({found and found[1] for found in digests} - {None}) == 1


def test_painted_region_is_the_object_on_white_squeezed() -> None:
    picture = np.full((40, 60, 3), 30, np.uint8)
    picture[10:30, 20:50] = (200, 40, 40)
    mask = ((20, 10, 50, 10, 50, 30, 20, 30),)
    region = np.asarray(PaintedRegion((15.9, 5.9, 55.9, 35.9), mask)(Image.fromarray(picture)))
    assert region.shape == (224, 224, 3)
    # The box is cut to 15..55 and 5..35: the object starts at an eighth of its width, a sixth of its height.
    inside = region.astype(int).max(axis=2) - region.min(axis=2) > 100
    rows, columns = np.nonzero(inside)
    assert abs(columns.min() - 224 * 5 / 40) < 4
    assert abs(columns.max() - 224 * 35 / 40) < 4
    assert abs(rows.min() - 224 * 5 / 30) < 4
    assert abs(rows.max() - 224 * 25 / 30) < 4
    assert region[:20].min() > 235  # white, but for JPEG


def test_a_region_smaller_than_a_pixel_is_one_pixel() -> None:
    picture = Image.fromarray(coordinates(30, 20))
    region = np.asarray(SqueezedRegion((7.2, 4.1, 7.9, 4.3))(picture))
    assert (region == np.array([7, 4, 255])).all()


def write_instances(path: Path, annotations: list[dict[str, Any]], images: int = 1) -> Path:
    path.write_text(
        json.dumps(
            {
                "images": [
                    {"id": 9 - number, "file_name": f"{9 - number:012d}.jpg", "height": 100, "width": 100}
                    for number in range(images)
                ],
                "categories": [{"id": number, "name": f"class {number}"} for number in range(5)],
                "annotations": annotations,
            }
        )
    )
    return path


def instance(number: int, box: list[float], category: int = 0, image: int = 9) -> dict[str, Any]:
    x, y, width, height = box
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "segmentation": [corners]}


def test_draw_depends_on_seed_and_ids_alone(tmp_path: Path) -> None:
    several = [instance(number, [5, 5, 10 + number, 10], number % 5) for number in range(100, 108)]
    path = write_instances(tmp_path / "instances.json", several)
    turned = write_instances(tmp_path / "turned.json", several[::-1])
    drawn = Counter()
    for seed in range(400):
        (region,) = draw_regions(path, seed)
        expected = min(
            range(100, 108), key=lambda number: hashlib.sha256(f"{seed}:{number}".encode()).hexdigest()
        )
        assert region.annotation == expected
        assert draw_regions(turned, seed)[0].annotation == expected
        drawn[expected] += 1
        assert digest_of(draw_regions(path, seed)) == digest_of([region])
        assert digest_of([region]) != digest_of([replace(region, query_class="another")])
    assert min(drawn.values()) > 25  # of 50 expected: each has its chance


def test_only_boxes_of_a_fitting_size_are_drawn(tmp_path: Path) -> None:
    path = write_instances(
        tmp_path / "instances.json",
        [
            instance(1, [0, 0, 100, 50], 1),  # exactly half
            instance(2, [0, 0, 0.1, 0.4], 2),  # too small
            instance(3, [0, 0, 99, 50], 3),
            instance(4, [0, 0, 100, 100], 4, image=8),  # the picture has no other: left out
        ],
        images=2,
    )
    for seed in range(5):
        (region,) = draw_regions(path, seed)
        assert region.annotation == 3
        assert region.box == (0, 0, 99, 50)
        assert region.query_class == "class 3"
        assert region.others == ("class 1", "class 2")


def test_pictures_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    boxes = [instance(number, [1, 1, 9, 9], 0, image=number) for number in (9, 7, 8)]
    path = write_instances(tmp_path / "instances.json", boxes, images=3)
    assert [region.file_name[-5:] for region in draw_regions(path, 1)] == ["7.jpg", "8.jpg", "9.jpg"]


def test_masks_that_cannot_be_drawn_are_found_before_anything_runs(tmp_path: Path) -> None:
    broken = instance(7, [1, 1, 9, 9]) | {"segmentation": {"size": [100, 100], "counts": [5]}}
    with pytest.raises(DatasetError, match="annotation 7: field 'segmentation' cannot be used"):
        draw_regions(write_instances(tmp_path / "instances.json", [broken]), 1)


def test_a_draw_written_down_is_read_back(tmp_path: Path) -> None:
    boxes = [instance(number, [1.25, 1, 9, 9.5], number % 5, image=9) for number in range(3)]
    regions = draw_regions(write_instances(tmp_path / "instances.json", boxes), 1)
    write_regions(tmp_path / "coco_eval.csv", regions)
    (read,) = read_regions(tmp_path / "coco_eval.csv")
    for name in ("file_name", "box", "query_class", "others"):
        assert getattr(read, name) == getattr(regions[0], name)
    assert (
        (tmp_path / "coco_eval.csv")
        .read_text()
        .startswith(
            "id,query_regions,query_class,classes,annotation\n000000000009.jpg,1.25;1.0;10.25;10.5 ,class "
        )
    )


def test_lists_that_are_not_pic2words_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "coco_eval.csv"
    for content, message in (
        ("id,query_class\n", "lacks the columns classes, query_regions"),
        ("id,query_regions,query_class,classes\n", "has no rows"),
        ("id,query_regions,query_class,classes\na.jpg,1;2;3,dog,\n", "line 2: query_regions must be"),
        ("id,query_regions,query_class,classes\na.jpg\n", "line 2: query_regions must be"),
    ):
        path.write_text(content)
        with pytest.raises(DatasetError, match=message):
            read_regions(path)
