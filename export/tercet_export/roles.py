"""The five roles that ONNX networks fill, as data: names, types and shapes of what goes in and comes out.

A dimension is a symbol whose size the network and its options decide (`sizes`), or a number. The symbols,
as in the design: B batch, S scene side, V view side, P pixel side, D embedding, W token width, T context
length, L caption length.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BATCH = "B"

Sizes = Mapping[str, int]
Examples = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tensor:
    """One input or output: `dtype` as NumPy names it, `tolerance` the largest difference accepted."""

    name: str
    dtype: str
    dims: tuple[str | int, ...]
    tolerance: float = 0.0

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape with every symbol replaced by its size; KeyError names a symbol without one."""
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims)


@dataclass(frozen=True)
class Role:
    """What a model does: its tensors in the graph's order, and which symbols stay open in the graph."""

    name: str
    title: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    dynamic: frozenset[str]
    examples: Callable[[Sizes, Mapping[str, Any], np.random.Generator], Examples]

    def example_inputs(self, sizes: Sizes, details: Mapping[str, Any], batch: int, seed: int = 0) -> Examples:
        """Inputs such as a server may send, by name: `batch` rows, every other dimension as in `sizes`."""
        return self.examples({**sizes, BATCH: batch}, details, np.random.default_rng(seed))


def pictures(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random u8 pictures [B, H, W, 3], coarse blocks under fine noise."""
    batch, height, width, channels = shape
    coarse = rng.integers(0, 256, (batch, 8, 8, channels))
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    fine = rng.integers(-24, 25, shape)
    return np.clip(coarse[:, rows][:, :, columns] + fine, 0, 255).astype(np.uint8)


def _background_remover(sizes: Sizes, details: Mapping[str, Any], rng: np.random.Generator) -> Examples:
    batch, scene, view = sizes[BATCH], sizes["S"], sizes["V"]
    corner = rng.uniform(0.0, 0.4, (batch, 2))
    box = np.concatenate([corner, corner + rng.uniform(0.2, 0.6, (batch, 2))], axis=1).astype(np.float32)
    box[0] = (0, 0, 1, 1)
    return {
        "scene": pictures((batch, scene, scene, 3), rng),
        "view": pictures((batch, view, view, 3), rng),
        "view_box": box,
    }


def _captioner(sizes: Sizes, details: Mapping[str, Any], rng: np.random.Generator) -> Examples:
    return {"foreground": pictures((sizes[BATCH], sizes["V"], sizes["V"], 3), rng)}


def _clip_image(sizes: Sizes, details: Mapping[str, Any], rng: np.random.Generator) -> Examples:
    return {"pixels": pictures((sizes[BATCH], sizes["P"], sizes["P"], 3), rng)}


def _clip_text(sizes: Sizes, details: Mapping[str, Any], rng: np.random.Generator) -> Examples:
    batch, length = sizes[BATCH], sizes["T"]
    tokenizer = details["tokenizer"]
    start, end = tokenizer["start"], tokenizer["end"]
    ids = np.full((batch, length), tokenizer["pad"], np.int32)
    index = np.full((batch, 1), -1, np.int32)
    # CLIP's special tokens are its vocabulary's last; SigLIP's are its first, and its texts have no start.
    first, lowest, highest = (0, 2, tokenizer["vocabulary"]) if start is None else (1, 1, min(start, end))
    for row in range(batch):
        words = int(rng.integers(1, length - first))
        if start is not None:
            ids[row, 0] = start
        ids[row, first : first + words] = rng.integers(lowest, highest, words)
        ids[row, first + words] = end
        if row % 2:
            index[row] = rng.integers(first, first + words)
    return {
        "token_ids": ids,
        "pseudo_token": rng.normal(0, 0.5, (batch, sizes["W"])).astype(np.float32),
        "pseudo_index": index,
    }


def _image_to_token(sizes: Sizes, details: Mapping[str, Any], rng: np.random.Generator) -> Examples:
    return {"features": rng.normal(0, 0.5, (sizes[BATCH], sizes["D"])).astype(np.float32)}


ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        Role(
            "background_remover",
            "finds the foreground and lays the view over a plain background",
            inputs=(
                Tensor("scene", "uint8", ("B", "S", "S", 3)),
                Tensor("view", "uint8", ("B", "V", "V", 3)),
                Tensor("view_box", "float32", ("B", 4)),
            ),
            outputs=(
                # One grey level: a value may round to either side.
                Tensor("foreground", "uint8", ("B", "V", "V", 3), tolerance=1),
                Tensor("mask", "float32", ("B", "V", "V"), tolerance=1e-4),
            ),
            dynamic=frozenset("BV"),
            examples=_background_remover,
        ),
        Role(
            "captioner",
            "says what a picture shows",
            inputs=(Tensor("foreground", "uint8", ("B", "V", "V", 3)),),
            outputs=(
                Tensor("token_ids", "int64", ("B", "L")),
                Tensor("score", "float32", ("B", 1), tolerance=1e-3),
            ),
            dynamic=frozenset("B"),
            examples=_captioner,
        ),
        Role(
            "clip_image",
            "embeds a picture",
            inputs=(Tensor("pixels", "uint8", ("B", "P", "P", 3)),),
            outputs=(
                Tensor("embedding", "float32", ("B", "D"), tolerance=1e-5),
                Tensor("features", "float32", ("B", "D"), tolerance=1e-3),
            ),
            dynamic=frozenset("B"),
            examples=_clip_image,
        ),
        Role(
            "clip_text",
            "embeds a text, one of whose tokens may be a pseudo-word",
            inputs=(
                Tensor("token_ids", "int32", ("B", "T")),
                Tensor("pseudo_token", "float32", ("B", "W")),
                Tensor("pseudo_index", "int32", ("B", 1)),
            ),
            outputs=(Tensor("embedding", "float32", ("B", "D"), tolerance=1e-5),),
            dynamic=frozenset("B"),
            examples=_clip_text,
        ),
        Role(
            "image_to_token",
            "turns a picture's features into a pseudo-word",
            inputs=(Tensor("features", "float32", ("B", "D")),),
            outputs=(Tensor("pseudo_token", "float32", ("B", "W"), tolerance=1e-4),),
            dynamic=frozenset("B"),
            examples=_image_to_token,
        ),
    )
}
