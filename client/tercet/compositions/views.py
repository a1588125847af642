"""Random views of a picture, so that several captions of it differ: crops, mirrored or not, from a seed."""

import io

import numpy as np
from PIL import Image, ImageOps

from tercet.errors import PictureError
from tercet.pictures import encode_picture

__all__ = ["view_of"]

LEAST_SIDE = 0.75
"""The least share of width and of height that a view shows: the subject should stay in it."""


def view_of(encoded: bytes, view: int, seed: int, name: str = "the picture") -> bytes:
    """View number `view` of an encoded picture, encoded losslessly; view 0 is the file itself.

    The others are crops of 75 to 100 % of either side at random places, every other one mirrored on average,
    as STiTch augments its gallery. They depend on `seed` and `view` alone. Mirroring makes left of right,
    which a caption may tell.

    Raises:
        PictureError: Pillow cannot read the picture.
    """
    if view == 0:
        return encoded
    rng = np.random.default_rng([seed, view])
    width_share, height_share = rng.uniform(LEAST_SIDE, 1, 2)
    left_share, top_share = rng.uniform(0, 1, 2)
    mirrored = bool(rng.random() < 0.5)
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            image = ImageOps.exif_transpose(opened)
        width, height = (
            max(1, round(side * share))
            for side, share in zip(image.size, (width_share, height_share), strict=True)
        )
        left, top = round((image.width - width) * left_share), round((image.height - height) * top_share)
        cropped = image.crop((left, top, left + width, top + height))
        return encode_picture(ImageOps.mirror(cropped) if mirrored else cropped, name)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(f"{name}: Pillow cannot read it for another view: {error}") from error
