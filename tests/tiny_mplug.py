"""A tiny mPLUG with random weights, which uses the tiny lineup's words; a rule for those of official size."""

import json
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch

from tercet_export.networks.mplug import MPLUG, MPLUGConfig
from tests.export import parity
from tests.tiny import SIZE, VOCABULARY

# As in the large one, vision is wider than text. The official code gives each head of vision 64 numbers.
MPLUG_SIZES = MPLUGConfig(
    image_size=SIZE,
    patch_size=16,
    vision_width=128,
    vision_layers=2,
    vision_heads=2,
    vision_projection=16,
    text_width=32,
    text_layers=2,
    text_heads=2,
    text_feedforward=64,
    vocabulary=len(VOCABULARY),
    max_positions=40,
    max_tokens=8,
    min_tokens=3,
)


def mplug_weights(config: MPLUGConfig = MPLUG_SIZES) -> dict[str, torch.Tensor]:
    """Captions of the vocabulary's words that end of themselves, in the official layout.

    Every value follows from its tensor's name and shape: mplug_tiny.npz was made with them.
    """
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in MPLUG(config).state_dict().items()}
    state = {name: parity.by_shape(f"4.{name}", shape) for name, shape in shapes.items()}
    text, output = "text_decoder.bert", "text_decoder.cls.predictions"
    state[f"{output}.decoder.weight"] = state[f"{text}.embeddings.word_embeddings.weight"].clone()
    # Places weigh, or a word would follow itself; choices are sharp, or near ties would decide.
    state[f"{text}.embeddings.position_embeddings.weight"] *= 10
    for layer in range(config.text_layers):
        state[f"{text}.encoder.layer.{layer}.output.dense.weight"] *= 3 if layer == 0 else 9
    state[f"{output}.transform.LayerNorm.weight"] *= 2.5
    bias = state[f"{output}.decoder.bias"]
    bias[: config.start + 1] = bias[config.end + 1] = -100.0
    bias[config.end] = 2.0
    return state


def official_weights(name: str, shape: parity.Shape) -> torch.Tensor:
    """The rule for the official sizes: places and pictures weigh, choices are sharp, some captions end."""
    text, output = "text_decoder.bert", "text_decoder.cls.predictions"
    if name in (f"{text}.embeddings.word_embeddings.weight", f"{output}.decoder.weight"):
        return 0.04 * parity.normal(f"{text}.embeddings.word_embeddings.weight", shape)
    if name == f"{text}.embeddings.position_embeddings.weight":
        return 0.5 * parity.normal(name, shape)
    if name == "visual_encoder.visual.positional_embedding":
        return 0.3 * parity.normal(name, shape)
    if name == "visual_encoder.visual.class_embedding":
        return 0.5 * parity.normal(name, shape)
    if name.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(shape)
    weight = parity.by_shape(name, shape)
    if name.startswith(text) and name.endswith("attention.output.dense.weight"):
        return 0.2 * weight
    if name == f"{text}.encoder.layer.11.output.dense.weight":
        return 9 * weight
    if name == f"{output}.transform.LayerNorm.weight":
        return 5 * weight
    if name in (f"{output}.bias", f"{output}.decoder.bias"):
        weight[102] = 14.0
    return weight


def write_mplug(folder: Path) -> None:
    """`mplug.safetensors` and `mplug.json` in `folder`."""
    safetensors.torch.save_file(mplug_weights(), folder / "mplug.safetensors")
    (folder / "mplug.json").write_text(json.dumps(asdict(MPLUG_SIZES)))
