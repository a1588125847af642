"""What engines are tried on: inputs such as a server may get, for each role, rows that are like no other."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["ROWS", "make_examples"]

# Batches of how many rows each network is compared in: none like another, and few where a row takes long. A
# caption is equal or not: it takes more of them to say that nineteen of twenty are.
ROWS: Mapping[str, tuple[int, ...]] = {
    "background_remover": (1, 2),
    "captioner": (1, 2, 5, 12),
    "clip_image": (1, 2, 5),
    "clip_text": (1, 2, 5),
    "image_to_token": (1, 2, 5),
}
VIEW = 224  # where the graph takes views of any size and no captioner tells

# Type as Triton calls it, and dimensions, -1 for open ones.
Inputs = Mapping[str, tuple[str, list[int]]]


def make_examples(role: str, inputs: Inputs, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return inputs for the graph that fills `role`, as many rows as `ROWS` has in all.

    Pictures are smooth scenes with hard edges and grain, every other one plain noise.
    """
    count, random = sum(ROWS[role]), np.random.default_rng(0)
    if role == "clip_text":
        tokenizer = manifest["roles"]["clip_text"]["tokenizer"]
        return make_tokens(tokenizer, inputs, count, random)
    if role == "image_to_token":
        width = inputs["features"][1][-1]
        return {"features": random.normal(0, 0.5, (count, width)).astype(np.float32)}
    pictures = [make_picture(random, noise=row % 2 == 1) for row in range(count)]
    made: dict[str, np.ndarray] = {}
    for name, (_, dims) in inputs.items():
        if name == "view_box":
            corner = random.uniform(0, 0.3, (count, 2))
            made[name] = np.concatenate([corner, corner + random.uniform(0.5, 0.7, (count, 2))], 1)
            made[name] = made[name].astype(np.float32)
        else:
            captioner = manifest["roles"].get("captioner", {})
            side = dims[1] if dims[1] > 0 else captioner.get("preprocessing", {}).get("size", VIEW)
            sized = [np.asarray(picture.resize((side, side))) for picture in pictures]
            made[name] = np.stack(sized)
    return made


def make_picture(random: np.random.Generator, noise: bool) -> Image.Image:
    """A picture of 256x256: coarse colours in smooth transition, shapes over them, grain; or noise alone."""
    if noise:
        return Image.fromarray(random.integers(0, 256, (256, 256, 3), dtype=np.uint8))
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC)).astype(np.int64)
    rows, columns = np.mgrid[:256, :256]
    for _ in range(random.integers(2, 6)):
        (y, x), (height, width) = random.integers(0, 256, 2), random.integers(20, 90, 2)
        power = random.choice([1.0, 2.0, 8.0])  # a diamond, an ellipse, a box
        inside = (np.abs(rows - y) / height) ** power + (np.abs(columns - x) / width) ** power < 1
        pixels[inside] = random.integers(0, 256, 3)
    grained = pixels + random.normal(0, 5, pixels.shape).round().astype(np.int64)
    return Image.fromarray(np.clip(grained, 0, 255).astype(np.uint8))


def make_tokens(
    tokenizer: Mapping[str, Any], inputs: Inputs, count: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """Texts of every length, a pseudo-word in every other one."""
    length, width = inputs["token_ids"][1][-1], inputs["pseudo_token"][1][-1]
    start, end = tokenizer["start"], tokenizer["end"]
    ids = np.full((count, length), tokenizer["pad"], np.int32)
    index = np.full((count, 1), -1, np.int32)
    # CLIP's special tokens are its vocabulary's last; SigLIP's are its first, and its texts have no start.
    first, lowest, highest = (0, 2, tokenizer["vocabulary"]) if start is None else (1, 1, min(start, end))
    for row in range(count):
        words = int(random.integers(1, min(length - first, 24)))
        if start is not None:
            ids[row, 0] = start
        ids[row, first : first + words] = random.integers(lowest, highest, words)
        ids[row, first + words] = end
        if row % 2:
            index[row] = random.integers(first, first + words)
    pseudo = random.normal(0, 0.5, (count, width)).astype(np.float32)
    return {"token_ids": ids, "pseudo_token": pseudo, "pseudo_index": index}
