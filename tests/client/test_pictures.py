"""What is sent for a picture: files untouched, pixels unchanged, and a named error for what is no picture."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tercet import pictures
from tercet.errors import PictureError
from tercet.pictures import encode_picture, is_picture, picture_name

RNG = np.random.default_rng(0)


def decoded(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded))


def as_file(image: Image.Image, kind: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


def test_files_and_bytes_are_sent_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(b"not even a picture: the server judges")
    for picture in (
        path,
        str(path),
        path.read_bytes(),
        bytearray(path.read_bytes()),
        memoryview(path.read_bytes()),
    ):
        assert encode_picture(picture, "x") == path.read_bytes()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4), (1, 1, 3)])
def test_arrays_keep_every_pixel(shape: tuple[int, ...]) -> None:
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(np.asarray(decoded(encode_picture(pixels, "x"))), pixels)


def test_arrays_need_not_be_contiguous() -> None:
    pixels = RNG.integers(0, 256, (8, 6, 3), dtype=np.uint8)[::2, ::-1]
    assert np.array_equal(np.asarray(decoded(encode_picture(pixels, "x"))), pixels)


def test_one_channel_is_grey() -> None:
    pixels = RNG.integers(0, 256, (4, 5, 1), dtype=np.uint8)
    assert np.array_equal(np.asarray(decoded(encode_picture(pixels, "x"))), pixels[:, :, 0])


@given(
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_pillow_images_keep_mode_and_pixels(mode: str, width: int, height: int) -> None:
    image = Image.frombytes(
        mode,
        (width, height),
        RNG.bytes(width * height * 4)[: len(Image.new(mode, (width, height)).tobytes())],
    )
    back = decoded(encode_picture(image, "x"))
    assert back.mode == mode
    assert back.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("mode", "sent"), [("PA", "RGBA"), ("La", "LA"), ("RGBa", "RGBA"), ("YCbCr", "RGB"), ("HSV", "RGB")]
)
def test_rare_modes_are_converted(mode: str, sent: str) -> None:
    assert decoded(encode_picture(Image.new(mode, (3, 2)), "x")).mode == sent


def test_a_palettes_transparency_survives() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putdata([0, 1])
    back = decoded(encode_picture(as_file(image, "PNG", transparency=1), "x"))
    assert [pixel[3] for pixel in back.get_flattened_data()] == [255, 0]


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    turned = as_file(Image.fromarray(pixels), "PNG", exif=exif)
    back = decoded(encode_picture(turned, "x"))
    assert np.array_equal(np.asarray(back), np.rot90(pixels, -1))
    assert back.getexif().get(0x0112, 1) == 1


def test_a_lossy_original_is_not_compressed_again() -> None:
    lossy = as_file(
        Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)), "TIFF", compression="jpeg"
    )
    assert np.array_equal(np.asarray(decoded(encode_picture(lossy, "x"))), np.asarray(lossy))


def test_only_the_first_frame_of_an_animation_is_sent() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    animated = as_file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    back = decoded(encode_picture(animated, "x"))
    assert getattr(back, "n_frames", 1) == 1
    assert back.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("picture", "complaint"),
    [
        (b"", "file is empty"),
        (np.zeros((3, 8, 8), np.uint8), r"3x8x8 .*transpose\(1, 2, 0\)"),
        (np.zeros((8, 8, 3), np.float32), "float32; give uint8"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
        (np.zeros(8, np.uint8), "array of shape 8"),
        (Image.new("F", (2, 2)), 'mode "F"'),
        (Image.new("RGB", (0, 3)), "no pixels"),
        (42, "int is not a picture"),
    ],
    ids=["empty", "channels first", "float", "no rows", "flat", "float image", "no columns", "number"],
)
def test_what_is_no_picture_is_named(picture: object, complaint: str) -> None:
    with pytest.raises(PictureError, match=f"^here: .*{complaint}"):
        encode_picture(picture, "here")  # type: ignore[arg-type]


def test_a_truncated_pillow_image_is_named() -> None:
    whole = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "PNG")
    with pytest.raises(PictureError, match=r"^here: Pillow cannot read it"):
        encode_picture(Image.open(io.BytesIO(whole.getvalue()[:4000])), "here")


def test_bad_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "locked").mkdir()
    for name, complaint in {
        "missing.jpg": "no such file",
        "empty.jpg": "file is empty",
        "locked": "is a folder",
        "pipe": "not a regular file",
        "nul\0byte": "cannot be read",
        "x" * 5000: "cannot be read",
    }.items():
        with pytest.raises(PictureError, match=complaint):
            encode_picture(tmp_path / name, name)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(pictures.MAX_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("was read"))
    with pytest.raises(PictureError, match="over the limit of 128 MiB"):
        encode_picture(path, "huge")


def test_one_is_told_from_many() -> None:
    assert all(map(is_picture, ["a", Path("a"), b"a", Image.new("L", (1, 1)), np.zeros((2, 2, 3), np.uint8)]))
    assert not any(map(is_picture, [["a"], iter(["a"]), (), np.zeros((1, 2, 2, 3), np.uint8)]))


def test_names(tmp_path: Path) -> None:
    Image.new("L", (1, 1)).save(tmp_path / "a.png")
    assert picture_name("dir/a.png", 3) == "dir/a.png"
    assert picture_name(Image.open(tmp_path / "a.png"), 3) == str(tmp_path / "a.png")
    assert picture_name(b"bytes", 3) == "picture 3"
