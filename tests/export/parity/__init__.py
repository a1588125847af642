"""Deterministic full-size checkpoints, and what the official networks compute with them.

Every value follows from its tensor's name and shape alone, so no weights are stored: `*.json` list the
official names and shapes, `*.npz` hold what the official implementation, filled by the same rules, made of an
input.
"""

import json
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tercet_export.networks.ofa_layers import image_buckets, token_buckets

FOLDER = Path(__file__).parent
OFA_ENDS = {768: 10.0, 1024: 19.0}  # by width: so some captions of each size end of themselves
Shape = tuple[int, ...]
Rule = Callable[[str, Shape], Tensor]


def names_and_shapes(name: str) -> dict[str, Shape]:
    """The tensors of an official checkpoint."""
    return {
        tensor: tuple(shape) for tensor, shape in json.loads((FOLDER / f"{name}.json").read_text()).items()
    }


def expected(name: str) -> dict[str, np.ndarray]:
    """Inputs and what the official implementation makes of them."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def state_dict(name: str, rule: Rule) -> dict[str, Tensor]:
    """A state dict in an official layout, each tensor made by `rule`."""
    return {tensor: rule(tensor, shape) for tensor, shape in names_and_shapes(name).items()}


def seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def normal(name: str, shape: Shape) -> Tensor:
    return torch.randn(shape, generator=seeded(name))


def by_shape(name: str, shape: Shape) -> Tensor:
    """The rule for any network: activations keep about their size from layer to layer."""
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if last == "running_mean":
        return 0.1 * normal(name, shape)
    if last == "running_var":
        return 0.5 + torch.rand(shape, generator=seeded(name))
    if len(shape) >= 2:
        return normal(name, shape) * (1.4 / prod(shape[1:])) ** 0.5
    if last in ("weight", "gamma") or last.startswith("scale"):
        return 1.0 + 0.1 * normal(name, shape)
    return 0.02 * normal(name, shape)


def git(name: str, shape: Shape) -> Tensor:
    """The rule for GIT: captions vary, and end only now and then."""
    layer = "textual.transformer"
    if name in ("textual.embedding.words.weight", "textual.output.weight"):
        return 0.06 * normal("textual.embedding.words.weight", shape)
    if name == "textual.embedding.positions.weight":
        return 0.04 * normal(name, shape)
    if name == "image_encoder.positional_embedding":
        return 0.3 * normal(name, shape)
    if name == "image_encoder.class_embedding":
        return 0.5 * normal(name, shape)
    if name == f"{layer}.encoder.layer.5.output.dense.weight":
        return normal(name, shape) * 6.0 * (1.4 / shape[1]) ** 0.5
    if name.startswith(layer) and name.endswith("attention.output.dense.weight"):
        return normal(name, shape) * 0.35 * (1.4 / shape[1]) ** 0.5
    if name == "textual.output.bias":
        bias = 0.02 * normal(name, shape)
        bias[102] = 1.5
        return bias
    return by_shape(name, shape)


def clip(name: str, shape: Shape) -> Tensor:
    """The rule for CLIP: positions and tokens weigh enough to matter."""
    last = name.rsplit(".", 1)[-1]
    if last in ("positional_embedding", "class_embedding"):
        return 0.3 * normal(name, shape)
    if name == "token_embedding.weight":
        return 0.5 * normal(name, shape)
    if name == "logit_scale":
        return torch.tensor(4.6052)
    if name in ("visual.proj", "text_projection"):
        return normal(name, shape) * shape[0] ** -0.5
    return by_shape(name, shape)


def inspyrenet(name: str, shape: Shape) -> Tensor:
    """The rule for InSPyReNet: thresholds in the middle, masks of many values; the index is no weight."""
    if name.endswith("relative_position_index"):
        window = int(shape[0] ** 0.5)
        row, column = torch.arange(shape[0]) // window, torch.arange(shape[0]) % window
        down, right = row[:, None] - row + window - 1, column[:, None] - column + window - 1
        return down * (2 * window - 1) + right
    if name.endswith("threshold"):
        return 0.5 + 0.1 * normal(name, shape)
    scale = 1.0
    if name.endswith(("conv_key.0.conv.weight", "conv_value.0.conv.weight")):
        scale = 4e-5 if "attention2" in name else 1e-5 if "attention1" in name else 3e-6  # sums over pixels
    elif name.endswith("bn3.weight"):
        scale = 0.3
    elif name.endswith("query_conv.conv.weight"):
        scale = 0.05  # or each column attends to one other, and the last bits of that decide
    elif name == "decoder.conv5.conv.weight":
        scale = 0.1
    elif name.endswith("conv_out4.conv.weight"):
        scale = 0.3
    return scale * by_shape(name, shape)


def ofa(name: str, shape: Shape) -> Tensor:
    """The rule for OFA: captions vary, some end; one table of words; buckets as the official code counts."""
    part, _, last = name.partition(".")
    if last == "token_rp_bucket":
        return token_buckets(256, shape[0])
    if last == "image_rp_bucket":
        return image_buckets(int((shape[0] - 1) ** 0.5))
    if last == "image_position_idx":
        return torch.zeros(shape, dtype=torch.int64)
    if last in ("embed_tokens.weight", "output_projection.weight"):
        words = 3.0 * by_shape("encoder.embed_tokens.weight", shape)
        direction = ofa("decoder.layer_norm.bias", shape[1:])
        words[2] += OFA_ENDS[shape[1]] * direction / direction.square().sum()  # as if the end had a bias
        return words
    if name == "decoder.layer_norm.bias":
        return 0.3 * normal(name, shape)
    if last.endswith("c_attn"):
        return 1.0 + 0.3 * normal(name, shape)
    if "rel_pos_table_list" in last:
        return normal(name, shape)
    scale = 1.0
    if last.endswith("bn3.weight"):
        scale = 0.3  # what blocks add is less than what they pass on
    elif last.endswith("k_proj.weight"):
        scale = 3.0  # cells are chosen, not averaged
    elif name == "decoder.layernorm_embedding.weight":
        scale = 0.3  # or a word would be followed by itself
    elif part == "decoder" and ("mid_layer_norm" in last or last.endswith("fc2.weight")):
        scale = 4.0
    return scale * by_shape(name, shape)


def pic2word() -> dict[str, object]:
    """Pic2Word's training checkpoint: CLIP ViT-L/14 and the mapping network, both saved data-parallel."""
    mapping = {
        name: by_shape(f"img2text.{name}", shape)
        for name, shape in names_and_shapes("pic2word_im2text").items()
    }
    dicts = {"state_dict": state_dict("pic2word_clip_vit_l14", clip), "state_dict_img2text": mapping}
    parallel = {
        key: {f"module.{name}": tensor for name, tensor in tensors.items()} for key, tensors in dicts.items()
    }
    return {"epoch": 30, "name": "run", **parallel, "optimizer": {}}


def phi(features: int, middle: int, width: int) -> dict[str, object]:
    """SEARLE's and LinCIR's checkpoint of their mapping network (`save_phi` in both train_phi.py)."""
    sizes = {"0": (middle, features), "3": (middle, middle), "6": (width, middle)}
    shapes = {f"layers.{layer}.weight": shape for layer, shape in sizes.items()}
    shapes |= {f"layers.{layer}.bias": shape[:1] for layer, shape in sizes.items()}
    return {"epoch": 20, "Phi": {name: by_shape(f"phi.{name}", shape) for name, shape in shapes.items()}}
