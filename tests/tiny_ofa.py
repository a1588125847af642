"""A tiny OFA with random weights, which captions with the tiny lineup's words."""

import json
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch

from tercet_export.networks.ofa import OFA, WORDS, OFAConfig, unused
from tests.tiny import SIZE, VOCABULARY, randomise

# As in OFA's own vocabulary: start, padding, end and unknown come first.
OFA_WORDS = ["<s>", "<pad>", "</s>", "<unk>", *(f"Ġ{word}" for word in VOCABULARY if word.isalpha()), "."]

OFA_SIZES = OFAConfig(
    image_size=SIZE,
    resnet=(1, 1, 1),
    width=32,
    encoder_layers=2,
    decoder_layers=2,
    heads=4,
    feedforward=64,
    vocabulary=len(OFA_WORDS),
    token_bucket=16,
    image_bucket=6,
    prompt=(0, 5, 9, 7, 2),
    max_tokens=8,
)


def ofa_weights(config: OFAConfig = OFA_SIZES, seed: int = 21) -> dict[str, torch.Tensor]:
    """Captions of several words that end of themselves, in the hub's layout with all that it holds."""
    state = randomise(OFA(config), seed)
    for name in state:
        if "rel_pos_table" in name or "c_attn" in name or name.endswith("running_mean"):
            state[name] *= 2
        # What is read must outweigh the last word itself, or it would be said over and over.
        if name.startswith("decoder.layers") and ("mid_layer_norm.weight" in name or "fc2.weight" in name):
            state[name] *= 5
    # Choices are sharp, and the end is likelier than other words: as if it had a bias.
    direction = state["decoder.layer_norm.bias"] * 4
    state["decoder.layer_norm.bias"].copy_(direction)
    state[WORDS[0]] *= 4
    state[WORDS[0]][config.end] += 8.5 * direction / direction.square().sum()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in unused(config).items():
        state[name] = torch.randn(tensor.shape, generator=generator)
    state["decoder.image_rp_bucket"] = state["encoder.image_rp_bucket"]
    state["decoder.image_position_idx"] = torch.arange(1025)
    return {name: tensor.clone() for name, tensor in state.items()}


def write_ofa(folder: Path) -> None:
    """`ofa.safetensors`, `ofa.json` and `ofa-vocab/vocab.json` in `folder`."""
    safetensors.torch.save_file(ofa_weights(), folder / "ofa.safetensors")
    (folder / "ofa.json").write_text(json.dumps(asdict(OFA_SIZES)))
    (folder / "ofa-vocab").mkdir(exist_ok=True)
    words = {word: number for number, word in enumerate(OFA_WORDS)}
    (folder / "ofa-vocab" / "vocab.json").write_text(json.dumps(words))
