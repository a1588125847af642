"""A lineup of tiny networks with random weights: every family, exported in seconds."""

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch

from tercet_export.networks.clip import Architecture, build
from tercet_export.networks.git import GIT, GITConfig
from tercet_export.networks.isnet import ISNet, ISNetConfig
from tercet_export.networks.pic2word import Im2Text
from tercet_export.vocabulary import default_merges

SIZE = 64
EMBEDDING = 32
MERGES = 400
WORDS = [
    "a",
    "the",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "star",
    "on",
    "in",
    "of",
    "with",
    "small",
    "large",
    "sky",
    "wall",
    "grass",
    "beach",
    "two",
    "and",
]

ISNET = ISNetConfig(
    stem=4,
    middle=(2, 2, 4, 4, 4, 4),
    out=(4, 4, 8, 8, 8, 8),
    decoder_middle=(4, 4, 4, 2, 2),
    decoder_out=(8, 8, 8, 4, 4),
    size=SIZE,
)

CLIP = {
    "embed_dim": EMBEDDING,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 514 + MERGES, "width": 32, "heads": 2, "layers": 2},
}

VOCABULARY = [
    "[PAD]",
    *(f"[unused{n}]" for n in range(99)),
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *WORDS,
]

GIT_SIZES = GITConfig(
    image_size=SIZE,
    patch_size=16,
    vision_width=32,
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
)


def randomise(network: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Give every tensor random values that keep activations near unit size; the new state dict."""
    generator = torch.Generator().manual_seed(seed)
    state = network.state_dict()
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif tensor.dim() >= 2:
            tensor.copy_(noise * (2.0 / tensor[0].numel()) ** 0.5)
        elif name.endswith("weight"):
            tensor.copy_(1 + 0.1 * noise)
        elif tensor.dim() == 1:
            tensor.copy_(0.1 * noise)
    return state


def git_weights(config: GITConfig = GIT_SIZES, seed: int = 3) -> dict[str, torch.Tensor]:
    """Random GIT whose captions are words of the vocabulary and end of themselves, in Microsoft's layout."""
    state = randomise(GIT(config), seed)
    bias = state["textual.output.bias"]
    bias[: config.start] = -100.0
    bias[config.end] = 1.0
    bias[config.end + 1] = -100.0
    # Sharp choices: near ties could fall either way in another engine.
    state["textual.output.weight"] *= 3
    state["textual.embedding.words.weight"].copy_(state["textual.output.weight"])
    return {name: tensor.clone() for name, tensor in state.items()}


def write_tiny_lineup(folder: Path) -> Path:
    """Write checkpoints, architectures, vocabularies and the lineup that names them; the TOML file."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = build(Architecture("tiny", CLIP, {}))
    weights = {
        "isnet": randomise(ISNet(ISNET), 1),
        "clip": randomise(clip, 2),
        "git": git_weights(),
        "pic2word": randomise(Im2Text(EMBEDDING, 16, 32, 2), 4),
    }
    for name, tensors in weights.items():
        safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")
    for name, config in (("isnet", asdict(ISNET)), ("clip", CLIP), ("git", asdict(GIT_SIZES))):
        (folder / f"{name}.json").write_text(json.dumps(config))
    merges = gzip.decompress(default_merges().read_bytes()).decode().split("\n")[1 : MERGES + 1]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    lineup = folder / "tiny.toml"
    lineup.write_text(LINEUP)
    return lineup


LINEUP = """
name = "tiny"

[background_remover]
network = "isnet"
checkpoint = "isnet.safetensors"
arch = "isnet.json"

[captioner]
network = "git-base"
checkpoint = "git.safetensors"
arch = "git.json"
tokenizer = "vocab.txt"
beams = 2

[clip_image]
network = "clip-image"
checkpoint = "clip.safetensors"
arch = "clip.json"

[clip_text]
network = "clip-text"
checkpoint = "clip.safetensors"
arch = "clip.json"
tokenizer = "merges.txt"

[image_to_token]
network = "pic2word"
checkpoint = "pic2word.safetensors"
"""
