"""From an encoded file to an upright RGB picture, with everything refused that could harm the server."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# A file of more is refused before it is decoded. 100 megapixels are 300 MB of RGB.
MOST_PIXELS = 100_000_000
MOST_BYTES = 64 * 2**20
# JPEG's own decoder may halve a picture as long as this many pixels remain for each that is wanted: the gap
# at which Pillow's documentation (Image.resize, reducing_gap) finds hardly a difference to fair resampling.
SHARE_KEPT = 3.0

# The limit is ours and checked before any pixel is decoded; Pillow's own would only warn.
Image.MAX_IMAGE_PIXELS = None
# Register every format now: Pillow otherwise knows the commonest ones alone.
Image.init()


class PictureError(ValueError):
    """The file cannot be used; the message says why."""


def decode(content: bytes, wanted: int | None = None) -> Image.Image:
    """Decode the first frame of a JPEG, PNG, WebP, GIF, BMP or TIFF file into an upright RGB picture.

    EXIF orientation is applied, transparency laid on white, 16-bit and float samples scaled to 8 bits.

    Args:
        content: the file.
        wanted: the shorter side that is needed; a JPEG much larger is decoded at a reduced scale. None
            decodes at full scale.

    Raises:
        PictureError: empty, not a picture, damaged, or too large.
    """
    if not content:
        raise PictureError("the file is empty: send the picture's bytes")
    if len(content) > MOST_BYTES:
        raise PictureError(
            f"the file has {len(content):,} bytes; at most {MOST_BYTES:,} are taken: send a smaller one"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no reason to complain in the server's log
        try:
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:
            raise PictureError("not a picture: send a JPEG, PNG, WebP, GIF, BMP or TIFF file") from None
        except Exception as error:
            raise PictureError(f"the picture cannot be read: {error}") from error
        width, height = picture.size
        if width * height > MOST_PIXELS:
            raise PictureError(
                f"the picture has {width} x {height} pixels; at most {MOST_PIXELS:,} are decoded: shrink it"
            )
        try:
            if wanted is not None and picture.format in ("JPEG", "MPO"):
                least = round(wanted * SHARE_KEPT)
                picture.draft(None, (least, least))
            picture.load()
        except Exception as error:
            raise PictureError(f"the picture is damaged or cut off: {error}") from error
        return _to_rgb(_upright(picture))


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:
        return picture  # a picture with unreadable EXIF data is shown as it is stored


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        return _from_deep_grey(picture)
    if "transparency" in picture.info or picture.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        layered = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return picture.convert("RGB")


def _from_deep_grey(picture: Image.Image) -> Image.Image:
    """Scale grey samples of 16 bits, 32 bits or floating point to 8 bits.

    Integers are taken for 16-bit ones where one is over 255; floats for shares of 1 where none is over 1.
    """
    samples = np.nan_to_num(np.asarray(picture, dtype=np.float64))
    if picture.mode.startswith("I;16"):
        samples /= 257
    elif picture.mode == "F" and samples.max() <= 1:
        samples *= 255
    elif samples.max() > 255:
        samples /= 257
    return Image.fromarray(np.clip(np.rint(samples), 0, 255).astype(np.uint8), "L").convert("RGB")
