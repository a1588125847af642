"""Views of a picture: the same ones again, of the right size, from the picture's inside."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tercet.compositions.views import LEAST_SIDE, view_of
from tercet.errors import PictureError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def places(width: int, height: int) -> Image.Image:
    """A picture whose pixels say where they are."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8))


def test_view_0_is_the_file_itself() -> None:
    assert view_of(b"whatever", 0, 7) == b"whatever"


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**31 - 1))
def test_a_view_is_a_crop_of_the_right_size_mirrored_or_not(
    width: int, height: int, view: int, seed: int
) -> None:
    file = encoded(places(width, height))
    made = view_of(file, view, seed)
    assert made == view_of(file, view, seed)
    pixels = decoded(made)
    rows, columns = pixels.shape[:2]
    assert max(1, round(height * LEAST_SIDE) - 1) <= rows <= height
    assert max(1, round(width * LEAST_SIDE) - 1) <= columns <= width
    x, y = pixels[0, :, 0].astype(int), pixels[:, 0, 1].astype(int)
    assert (np.diff(y) == 1).all()
    assert (np.diff(x) == 1).all() or (np.diff(x) == -1).all()
    np.testing.assert_array_equal(pixels[:, :, 0], np.tile(x, (rows, 1)))


def test_views_differ_by_number_and_seed_and_half_are_mirrored() -> None:
    file = encoded(places(200, 160))
    views = [decoded(view_of(file, view, seed)) for seed in range(5) for view in range(1, 33)]
    mirrored = sum(view[0, 0, 0] > view[0, -1, 0] for view in views)
    assert 0.35 < mirrored / len(views) < 0.65
    assert len({view.tobytes() for view in views}) > 155
    # All of the picture is seen by some view, its corners too.
    assert min(view[0, :, 0].min() for view in views) < 5
    assert max(view[0, :, 0].max() for view in views) > 194


def test_a_picture_on_its_side_is_turned_upright_first() -> None:
    image = places(60, 40)
    exif = image.getexif()
    exif[274] = 6
    made = decoded(view_of(encoded(image, exif=exif), 1, 0))
    assert made.shape[0] > made.shape[1]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "1"])
def test_other_kinds_of_pictures(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = Image.new("I;16", (40, 30)) if mode == "I;16" else places(40, 30).convert(mode)
    assert decoded(view_of(encoded(image, kind), 1, 0)).shape[0] >= 22


@pytest.mark.parametrize("content", [b"", b"no picture", encoded(places(50, 50), "BMP")[:2000]])
def test_what_is_no_picture_is_named(content: bytes) -> None:
    with pytest.raises(PictureError, match=r"dress\.jpg: Pillow cannot read it for another view"):
        view_of(content, 1, 0, "dress.jpg")
