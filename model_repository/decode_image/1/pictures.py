"""Reads picture files that anyone may have sent: upright RGB pictures out of them, or the reason why not."""

import io

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
FORMAT_NAMES = "JPEG, PNG, WebP, GIF, BMP or TIFF"

MAX_BYTES = 128 * 2**20

# A small file can unfold to any number of pixels, which take four bytes each while they are decoded.
MAX_PIXELS = 100_000_000

# Checked below, before anything is decoded. Pillow's own limit would warn of some pictures that are taken.
Image.MAX_IMAGE_PIXELS = None

# All formats now: Pillow would load the rarer ones' code with the first picture that needs it.
Image.init()

# How files of these formats begin (BMP's two letters may begin a text).
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"II*\0", b"MM\0*")

# What turns a picture upright, by its EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(ValueError):
    """The file cannot be used; the message tells whoever sent it why, and what to do."""


def read_picture(encoded: bytes, needed: int | None = None) -> Image.Image:
    """Decode a file to an upright RGB picture; of an animation the first frame, transparency over white.

    `needed`: a JPEG may come back at a half, a quarter or an eighth of its size, as long as its shorter side
    keeps this many pixels. Decoding so is several times faster. None: always whole.

    Raises:
        PictureError: empty, too large, truncated, damaged, or of another format.
    """
    if not encoded:
        raise PictureError("the file is empty")
    if len(encoded) > MAX_BYTES:
        raise PictureError(
            f"the file's {len(encoded) / 2**20:.0f} MiB are over the limit of {MAX_BYTES // 2**20} MiB: "
            "save it smaller or compressed"
        )
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise PictureError(
                    f"{width}x{height} pixels are over the limit of {MAX_PIXELS // 10**6} million: "
                    "scale the picture down"
                )
            if needed is not None and image.format in ("JPEG", "MPO"):
                decode_reduced(image, needed)
            image.load()
            return flatten(turn_upright(image))
    except PictureError:
        raise
    except Exception as error:
        # Pillow's decoders raise whatever a damaged file leads them to, from OSError to struct.error.
        raise PictureError(explain(error, encoded)) from error


def explain(error: Exception, encoded: bytes) -> str:
    """What is wrong with a file that Pillow could not decode."""
    if isinstance(error, UnidentifiedImageError) and not encoded.startswith(SIGNATURES):
        return f"the file is not a {FORMAT_NAMES} picture"
    # Pillow's WebP decoder only says that there is no picture; the container knows its own length.
    webp = encoded.startswith(b"RIFF") and int.from_bytes(encoded[4:8], "little") + 8 > len(encoded)
    if webp or "truncated" in str(error).lower() or isinstance(error, EOFError):
        return "the picture is truncated: its end is missing; get the whole file"
    detail = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
    return f"the picture is damaged or truncated{detail}: get the whole file anew"


def decode_reduced(image: Image.Image, needed: int) -> None:
    """Have a JPEG decoded at the smallest scale that keeps `needed` pixels and divides its sides evenly.

    Where it does not divide them, the last row or column would cover less of the picture than the others.
    """
    width, height = image.size
    for scale in (8, 4, 2):
        if width % scale == height % scale == 0 and min(width, height) // scale >= needed:
            image.draft(None, (width // scale, height // scale))
            return


def turn_upright(image: Image.Image) -> Image.Image:
    """Turn or mirror a loaded picture as its EXIF orientation says; damaged EXIF says nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def flatten(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16 bits scaled to 8, transparency laid over white."""
    if image.mode.startswith("I;16"):
        return flatten_sixteen_bits(image)
    if image.mode in ("I", "F"):
        raise PictureError(
            "32-bit greyscale says nothing about which value is white: save the picture with 8 or 16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def flatten_sixteen_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale, of which one value may stand for transparency, to RGB."""
    values = np.asarray(image)
    grey = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
