"""A tiny BLIP with random weights, which captions with the tiny lineup's words."""

import json
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch

from tercet_export.networks.blip import BLIP, BLIPConfig
from tests.tiny import SIZE, VOCABULARY, randomise

BLIP_SIZES = BLIPConfig(
    image_size=SIZE,
    vision_width=48,
    vision_layers=2,
    vision_heads=4,
    text_width=32,
    text_layers=2,
    text_heads=2,
    text_feedforward=64,
    vocabulary=len(VOCABULARY) + 2,
    max_positions=40,
    start=len(VOCABULARY),
    prompt=(VOCABULARY.index("a"), VOCABULARY.index("red"), VOCABULARY.index("of")),
    max_tokens=8,
)


def blip_weights(config: BLIPConfig = BLIP_SIZES, seed: int = 12) -> dict[str, torch.Tensor]:
    """Captions of the vocabulary's words that end of themselves, in the hub's layout."""
    state = randomise(BLIP(config), seed)
    text = "text_decoder.bert"
    # Places and pictures weigh, or a word would follow itself; choices are sharp, or near ties would decide.
    state[f"{text}.embeddings.position_embeddings.weight"] *= 3
    for layer in range(config.text_layers):
        state[f"{text}.encoder.layer.{layer}.crossattention.output.dense.weight"] *= 3
        state[f"{text}.encoder.layer.{layer}.output.dense.weight"] *= 3 if layer == 0 else 9
    state["text_decoder.cls.predictions.transform.LayerNorm.weight"] *= 2.5
    bias = state["text_decoder.cls.predictions.decoder.bias"]
    bias[:101] = bias[config.end + 1] = bias[len(VOCABULARY) :] = -100.0
    bias[config.end] = 2.0
    return {name: tensor.clone() for name, tensor in state.items()}


def write_blip(folder: Path) -> None:
    """`blip.safetensors` and `blip.json` in `folder`."""
    safetensors.torch.save_file(blip_weights(), folder / "blip.safetensors")
    (folder / "blip.json").write_text(json.dumps(asdict(BLIP_SIZES)))
