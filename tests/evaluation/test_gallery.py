"""Embedding a data set's candidates: once, resumable, and never a smaller set."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tercet.client import Client
from tercet.errors import DatasetError, ServerUnreachable
from tercet.evaluation.gallery import embed_gallery
from tercet.evaluation.values import PictureSource
from tests.client.gallery_kit import CountingClient, vector_of, write_pictures


@dataclass(frozen=True)
class LeftHalf:
    """A treatment: the left half."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.crop((0, 0, image.width // 2, image.height))


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, PictureSource]:
    paths = write_pictures(tmp_path / "pictures", 12)
    return {path.name: PictureSource(path) for path in paths}


def test_rows_are_the_embeddings_in_the_order_asked(
    pictures: dict[str, PictureSource], tmp_path: Path
) -> None:
    names = sorted(pictures, reverse=True)
    rows = embed_gallery(names, pictures, CountingClient(), tmp_path)
    assert isinstance(rows, np.memmap)
    assert not rows.flags.writeable
    for name, row in zip(names, rows, strict=True):
        np.testing.assert_array_equal(row, vector_of(pictures[name].path.read_bytes())[0])


def test_nothing_is_embedded_twice(pictures: dict[str, PictureSource], tmp_path: Path) -> None:
    failing = CountingClient(fail_after=5)
    with pytest.raises(ServerUnreachable):
        embed_gallery(list(pictures), pictures, failing, tmp_path)
    seen: list[int] = []
    again = CountingClient()
    rows = embed_gallery(list(pictures), pictures, again, tmp_path, lambda done, total: seen.append(done))
    assert seen[0] > 0
    assert again.asked == len(pictures) - seen[0]
    assert np.isfinite(rows).all()
    third = CountingClient()
    embed_gallery(list(pictures), pictures, third, tmp_path)
    assert third.asked == 0


def test_another_encoder_or_another_picture_is_embedded_anew(
    pictures: dict[str, PictureSource], tmp_path: Path
) -> None:
    embed_gallery(list(pictures), pictures, CountingClient(), tmp_path)
    other = CountingClient(fingerprint="d" * 64)
    embed_gallery(list(pictures), pictures, other, tmp_path)
    assert other.asked == len(pictures)
    name = next(iter(pictures))
    Image.new("RGB", (5, 5)).save(pictures[name].path)
    changed = CountingClient()
    rows = embed_gallery(list(pictures), pictures, changed, tmp_path)
    assert changed.asked > 0
    np.testing.assert_array_equal(rows[0], vector_of(pictures[name].path.read_bytes())[0])


def test_a_damaged_row_is_embedded_again(pictures: dict[str, PictureSource], tmp_path: Path) -> None:
    embed_gallery(list(pictures), pictures, CountingClient(), tmp_path)
    (path,) = tmp_path.glob("gallery-*.npy")
    np.lib.format.open_memmap(path, mode="r+")[3, :2] = 0
    client = CountingClient()
    embed_gallery(list(pictures), pictures, client, tmp_path)
    assert client.asked == 1


def test_unusable_pictures_are_all_counted_and_the_others_kept(
    pictures: dict[str, PictureSource], tmp_path: Path
) -> None:
    names = list(pictures)
    for name in names[:7]:
        pictures[name].path.write_bytes(b"no picture")
    pictures[names[7]] = PictureSource(pictures[names[0]].path, LeftHalf())
    with pytest.raises(DatasetError, match="8 of 12 candidates") as raised:
        embed_gallery(names, pictures, CountingClient(), tmp_path)
    assert names[0] in str(raised.value)
    assert "..." in str(raised.value)
    again = CountingClient()
    with pytest.raises(DatasetError):
        embed_gallery(names, pictures, again, tmp_path)
    assert again.asked <= 8


def test_a_missing_file_is_named(pictures: dict[str, PictureSource], tmp_path: Path) -> None:
    name = next(iter(pictures))
    pictures[name].path.unlink()
    with pytest.raises(DatasetError, match=name):
        embed_gallery(list(pictures), pictures, CountingClient(), tmp_path)


def test_treated_pictures_are_embedded_as_treated(client: Client, tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    source = PictureSource(tmp_path / "whole.png", LeftHalf())
    (row,) = embed_gallery(["half"], {"half": source}, client, tmp_path)
    np.testing.assert_allclose(row, client.embed_images(pixels[:, :30]), atol=1e-6)
