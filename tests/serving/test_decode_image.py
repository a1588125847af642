"""decode_image: any file becomes the pixels that the official pipelines give, or a reason why not."""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torchvision import transforms

from tests.serving.python_models import python_model

# Pillow warns of odd metadata in files that these tests damage.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

geometry = python_model("decode_image", "geometry")
pictures = python_model("decode_image", "pictures")

SIZE = 32
SHORTEST = {"size": SIZE, "resize": "shortest", "kernel": "bicubic", "antialias": True}
MANIFEST = {
    "roles": {
        "background_remover": {
            "preprocessing": {
                "tensor": "scene",
                "size": 64,
                "resize": "stretch",
                "kernel": "bilinear",
                "antialias": False,
            }
        },
        "captioner": {"preprocessing": {"tensor": "view", **SHORTEST}},
        "clip_image": {"preprocessing": {"tensor": "pixels", **SHORTEST, "size": 24}},
        "clip_text": {},
    }
}
GEOMETRIES = geometry.read_geometries(MANIFEST)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """torch's threads wait for one another on a busy machine, far longer than these pictures take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random pixels [height, width, channels], or [height, width] for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(width: int, height: int) -> np.ndarray:
    """A picture that lossy formats keep: two slopes and their product."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return (np.stack([x, y, x * y], axis=-1) * 255).astype(np.uint8)


def scene(width: int, height: int) -> Image.Image:
    """Shapes with hard edges on a coarse texture: what a camera might see."""
    rng = np.random.default_rng(1)
    image = Image.fromarray(noise(width // 16, height // 16)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        left, top, side = (int(v) for v in rng.integers(0, [width, height, width // 4]))
        draw.ellipse((left, top, left + side, top + side // 2), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def read(encoded: bytes) -> np.ndarray:
    image = pictures.read_picture(encoded)
    assert image.mode == "RGB"
    return np.asarray(image)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# ---- what comes in


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_files_come_back_exactly(kind: str, options: dict[str, Any]) -> None:
    pixels = noise(37, 23)
    np.testing.assert_array_equal(read(encode(pixels, kind, **options)), pixels)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {})])
def test_lossy_files_come_back_closely(kind: str, options: dict[str, Any]) -> None:
    pixels = smooth(120, 90)
    assert np.abs(read(encode(pixels, kind, quality=95, **options)).astype(int) - pixels).mean() < 2


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        np.testing.assert_array_equal(read(encoded), np.asarray(frames[0]), err_msg=kind)


def test_a_jpeg_of_several_pictures_gives_the_first() -> None:
    frames = [Image.fromarray(smooth(64, 48)), Image.new("RGB", (64, 48), "blue")]
    encoded = encode(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95)
    assert np.abs(read(encoded).astype(int) - smooth(64, 48)).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_honoured(orientation: int, kind: str) -> None:
    upright = noise(30, 20)
    turned: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        # What a camera held that way stores, so that its viewer has to undo it.
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(turned[orientation](upright))
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(read(encode(stored, kind, exif=exif, **options)), upright)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_damaged_exif_is_no_reason_to_refuse(exif: bytes) -> None:
    assert read(encode(smooth(40, 30), "JPEG", exif=exif)).shape == (30, 40, 3)


def test_transparency_is_laid_over_white() -> None:
    colour, alpha = noise(20, 10), noise(20, 10, 1, seed=1)
    expected = colour * (alpha[..., None] / 255.0) + 255 * (1 - alpha[..., None] / 255.0)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        got = read(encode(np.dstack([colour, alpha]), kind, **options))
        assert np.abs(got - expected).max() <= 1, kind
    grey = Image.merge("LA", [Image.fromarray(colour[..., 0]), Image.fromarray(alpha)])
    assert np.abs(read(encode(grey))[..., 0] - expected[..., 0]).max() <= 1


def test_a_transparent_colour_becomes_white() -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    expected = [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    for kind in ("PNG", "GIF"):
        assert read(encode(palette, kind, transparency=1)).tolist() == expected
    rgb = np.array(expected, np.uint8)
    rgb[0, 1] = (1, 2, 3)
    assert read(encode(rgb, transparency=(1, 2, 3))).tolist() == expected
    grey = np.array([[0, 100, 200]], np.uint8)
    assert read(encode(grey, transparency=100))[0, :, 0].tolist() == [0, 255, 200]
    deep = np.array([[0, 25700, 65535]], np.uint16)
    assert read(encode(deep, transparency=25700))[0, :, 0].tolist() == [0, 255, 255]


def test_greyscale_black_and_white_palette_and_cmyk_become_rgb() -> None:
    grey = noise(20, 10, 1)
    np.testing.assert_array_equal(read(encode(grey)), np.dstack([grey] * 3))
    bits = grey > 127
    np.testing.assert_array_equal(
        read(encode(Image.fromarray(bits), "TIFF")), np.dstack([bits * np.uint8(255)] * 3)
    )
    palette = Image.fromarray(noise(20, 10)).quantize(16)
    np.testing.assert_array_equal(read(encode(palette)), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(smooth(80, 60)).convert("CMYK")
    assert np.abs(read(encode(cmyk, "JPEG", quality=95)).astype(int) - smooth(80, 60)).mean() < 3
    np.testing.assert_array_equal(read(encode(cmyk, "TIFF")), smooth(80, 60))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (10, 20)).astype(np.uint16)
    values[0, :4] = (0, 128, 129, 65535)
    expected = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(read(encode(Image.fromarray(values), kind)), np.dstack([expected] * 3))


def test_one_pixel_works() -> None:
    for kind in pictures.FORMATS:
        assert read(encode(np.full((1, 1, 3), 255, np.uint8), kind)).tolist() == [[[255, 255, 255]]]


# ---- what is refused


def refusal(encoded: bytes) -> str:
    with pytest.raises(pictures.PictureError) as caught:
        pictures.read_picture(encoded)
    return str(caught.value)


@pytest.mark.parametrize(
    ("encoded", "cause"),
    [
        (b"", "the file is empty"),
        (b"not a picture at all\n", "is not a JPEG, PNG, WebP, GIF, BMP or TIFF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is not a JPEG"),
        (b"P6 2 2 255\n" + bytes(12), "is not a JPEG"),
        (b"\x89PNG\r\n\x1a\n", "damaged or truncated"),
        (b"\xff\xd8\xff\xe0", "damaged or truncated"),
        (png_header(50_000, 50_000), "50000x50000 pixels are over the limit of 100 million"),
        (png_header(10_001, 10_000), "10001x10000 pixels are over the limit of 100 million"),
        (png_header(100, 100), "truncated"),
        (b"\xff\xd8" + bytes(pictures.MAX_BYTES), "MiB are over the limit of 128 MiB"),
    ],
)
def test_a_bad_file_is_refused_with_its_cause(encoded: bytes, cause: str) -> None:
    assert cause in refusal(encoded)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_a_truncated_file_is_refused_wherever_it_is_cut(kind: str, options: dict[str, Any]) -> None:
    encoded = encode(noise(60, 50), kind, **options)
    whole = read(encoded)
    saying_truncated = 0
    for length in range(4, len(encoded), max(1, len(encoded) // 150)):
        try:
            # Where only the end mark is missing, every pixel may be there.
            np.testing.assert_array_equal(read(encoded[:length]), whole)
            assert length > 0.9 * len(encoded)
        except pictures.PictureError as error:
            saying_truncated += "truncated" in str(error)
    assert saying_truncated > 100


def test_thirty_two_bit_greyscale_is_refused() -> None:
    for dtype in (np.int32, np.float32):
        encoded = encode(Image.fromarray(np.zeros((4, 4), dtype)), "TIFF")
        assert "which value is white" in refusal(encoded)


def test_other_colour_spaces_are_read() -> None:
    assert read(encode(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF")).min() >= 250
    assert read(encode(Image.fromarray(smooth(40, 30)).convert("YCbCr"), "TIFF")).shape == (30, 40, 3)


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(pictures.FORMATS),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8),
)
def test_damage_anywhere_gives_a_picture_or_a_reason(kind: str, flips: list[tuple[float, int]]) -> None:
    encoded = bytearray(encode(noise(24, 16), kind))
    for place, bits in flips:
        encoded[int(place * len(encoded))] ^= bits
    with contextlib.suppress(pictures.PictureError):
        assert pictures.read_picture(bytes(encoded)).mode == "RGB"


# ---- the official geometries


def shortest(image: Image.Image, size: int = SIZE) -> np.ndarray:
    """CLIP's and GIT's official preprocessing, before scaling to floats."""
    steps = [
        transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(size),
    ]
    return np.asarray(transforms.Compose(steps)(image))


def isnet(image: Image.Image, size: int) -> np.ndarray:
    """IS-Net's official preprocessing (`IS-Net/Inference.py`), before scaling to floats."""
    tensor = torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1)
    resized = F.interpolate(tensor[None], size=(size, size), mode="bilinear").type(torch.uint8)
    return resized[0].permute(1, 2, 0).numpy()


def prepare(image: Image.Image, *wanted: str) -> dict[str, np.ndarray]:
    return {
        name: array[0] for name, array in geometry.prepare([encode(image, "BMP")], wanted, GEOMETRIES).items()
    }


sides = st.integers(1, 200)


@settings(max_examples=60, deadline=None)
@given(width=sides, height=sides, seed=st.integers(0, 2**32 - 1))
def test_tensors_equal_the_official_pipelines(width: int, height: int, seed: int) -> None:
    image = Image.fromarray(noise(width, height, seed=seed))
    got = prepare(image, "scene", "view", "view_box", "pixels")
    if max(width, height) <= geometry.EXTREME_RATIO * min(width, height):
        np.testing.assert_array_equal(got["view"], shortest(image))
        np.testing.assert_array_equal(got["pixels"], shortest(image, 24))
    else:
        assert np.abs(got["view"].astype(int) - shortest(image)).max() <= 1
    assert np.abs(got["scene"].astype(int) - isnet(image, 64)).max() <= 1
    left, top, right, bottom = got["view_box"]
    assert 0 <= left < right <= 1
    assert 0 <= top < bottom <= 1
    # The view is square in the picture, to half a pixel of its own on either side.
    assert (right - left) * width == pytest.approx((bottom - top) * height, rel=2 / SIZE)


@pytest.mark.parametrize("seed", range(3))
def test_the_scene_equals_torch_but_for_the_last_bit_of_a_float(seed: int) -> None:
    image = Image.fromarray(noise(300 + seed, 211, seed=seed))
    different = np.asarray(geometry.interpolate(image, 512)) != isnet(image, 512)
    assert different.mean() < 1e-4


def test_a_flat_picture_stays_flat() -> None:
    image = Image.new("RGB", (123, 77), (255, 128, 37))
    for name in ("scene", "view", "pixels"):
        assert (prepare(image, name)[name] == (255, 128, 37)).all()


def test_the_view_box_is_where_the_view_lies() -> None:
    # A picture whose red and green are its own coordinates.
    x, y = np.meshgrid(np.arange(200), np.arange(100))
    image = Image.fromarray(np.dstack([x, y, x]).astype(np.uint8))
    got = prepare(image, "view", "view_box")
    left, top, right, bottom = got["view_box"] * (200, 100, 200, 100)
    assert (left, top, right, bottom) == (50, 0, 150, 100)
    assert got["view"][..., 0].min() == pytest.approx(left + 100 / SIZE / 2, abs=1.5)
    assert got["view"][..., 0].max() == pytest.approx(right - 100 / SIZE / 2, abs=1.5)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (2, 4001), (40, 4000), (150, 12_000), (12_000, 150)])
def test_extreme_aspects_are_cropped_first_and_come_out_the_same(size: tuple[int, int]) -> None:
    image = Image.fromarray(noise(*size))
    assert np.abs(prepare(image, "view")["view"].astype(int) - shortest(image)).max() <= 1


def test_a_line_of_millions_of_pixels_takes_no_more_memory_than_it_has() -> None:
    # Resized whole, as torchvision does it, it would have three thousand million pixels.
    got = prepare(Image.new("RGB", (1, 3_000_000), "red"), "view", "view_box")
    assert (got["view"] == (255, 0, 0)).all()
    np.testing.assert_allclose(got["view_box"], [0, 0.5, 1, 0.5], atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "mode"),
    [("bicubic", transforms.InterpolationMode.BICUBIC), ("bilinear", transforms.InterpolationMode.BILINEAR)],
)
def test_an_antialiased_stretch_equals_torchvision(kernel: str, mode: transforms.InterpolationMode) -> None:
    image = Image.fromarray(noise(97, 61))
    entry = {"tensor": "pixels", "size": 40, "resize": "stretch", "kernel": kernel, "antialias": True}
    geometries = geometry.read_geometries({"roles": {"clip_image": {"preprocessing": entry}}})
    got = geometry.prepare([encode(image)], ["pixels"], geometries)["pixels"][0]
    np.testing.assert_array_equal(got, np.asarray(transforms.Resize((40, 40), mode)(image)))


@pytest.mark.parametrize(
    "change", [{"resize": "pad"}, {"antialias": False}, {"antialias": False, "kernel": "bilinear"}]
)
def test_an_unknown_geometry_is_refused(change: dict[str, Any]) -> None:
    entry = {"tensor": "pixels", **SHORTEST, **change}
    with pytest.raises(ValueError, match="clip_image is not supported"):
        geometry.read_geometries({"roles": {"clip_image": {"preprocessing": entry}}})


# ---- reduced JPEGs


@pytest.mark.parametrize("quality", [75, 95])
@pytest.mark.parametrize("size", [(512, 384), (1024, 768)])
def test_a_large_jpeg_is_decoded_at_reduced_scale_and_loses_nothing(
    size: tuple[int, int], quality: int
) -> None:
    encoded = encode(scene(*size), "JPEG", quality=quality)
    side = geometry.smallest_side(GEOMETRIES["pixels"])
    assert pictures.read_picture(encoded, side).size < size
    got = geometry.prepare([encoded], ["pixels"], GEOMETRIES)["pixels"][0].astype(int)
    different = np.abs(got - shortest(Image.open(io.BytesIO(encoded)), 24))
    assert different.max() <= 6
    assert different.mean() < 0.5


def test_a_jpeg_is_not_reduced_where_it_would_lose_something() -> None:
    # 190 pixels are less than eight for each of 24; odd sides do not halve; the scene takes single pixels.
    for size in ((190, 300), (513, 385)):
        encoded = encode(scene(*size), "JPEG")
        whole = shortest(Image.open(io.BytesIO(encoded)), 24)
        np.testing.assert_array_equal(geometry.prepare([encoded], ["pixels"], GEOMETRIES)["pixels"][0], whole)
    encoded = encode(scene(1024, 768), "JPEG")
    got = geometry.prepare([encoded], ["scene", "pixels"], GEOMETRIES)
    whole = Image.open(io.BytesIO(encoded))
    assert np.abs(got["scene"][0].astype(int) - isnet(whole, 64)).max() <= 1
    np.testing.assert_array_equal(got["pixels"][0], shortest(whole, 24))


def test_a_turned_jpeg_is_reduced_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(scene(1024, 768), "JPEG", exif=exif)
    image = pictures.read_picture(encoded, 96)
    assert image.size == (96, 128)


# ---- requests


def test_only_what_is_asked_for_is_computed() -> None:
    assert prepare(Image.new("RGB", (50, 40)), "pixels").keys() == {"pixels"}
    assert prepare(Image.new("RGB", (50, 40)), "view_box").keys() == {"view_box"}
    with pytest.raises(pictures.PictureError, match="no network of this lineup takes 'view'"):
        geometry.prepare([encode(noise(5, 5))], ["view_box"], {"pixels": GEOMETRIES["pixels"]})


def test_rows_of_one_request_keep_their_order_and_a_bad_one_is_named() -> None:
    images = [Image.new("RGB", (30 + n, 40), (n, 0, 0)) for n in range(5)]
    got = geometry.prepare([encode(image) for image in images], ["pixels", "view_box"], GEOMETRIES)
    assert got["pixels"].shape == (5, 24, 24, 3)
    assert got["view_box"].dtype == np.float32
    assert got["pixels"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(pictures.PictureError, match="picture 1 of the request: the file is empty"):
        geometry.prepare([encode(images[0]), b""], ["pixels"], GEOMETRIES)
