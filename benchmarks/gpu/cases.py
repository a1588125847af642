"""The networks that are measured: full size, with random weights that follow from their names alone.

The captioner's captions never end, so that each costs its full count of tokens in every engine. And some of
its words are much likelier than others, as in any language: without that each token would be a near tie of
random numbers, which fp16 decides one way or the other, whatever the engine.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import networks as full
from tercet_export.networks.captioner import Captioner
from tercet_export.networks.clip import Architecture, build
from tercet_export.networks.git import UNUSED, GITConfig, hub_names
from tercet_export.networks.isnet import ISNet
from tercet_export.registry import Loaded, Options, network
from tests import tiny

__all__ = ["CASES", "TINY", "Case", "load", "tiny_cases", "transformers_git"]

TOKENS = 20
NEVER = -1e4
SPREAD = 8.0
"""Deviation of the words' logits from one another; what a picture adds to them deviates by 1.7."""


@dataclass(frozen=True)
class Case:
    """A network of the registry with its options, the role that it fills, and a checkpoint for it."""

    role: str
    network: str
    options: Options
    weights: Callable[[], Mapping[str, Tensor]]


def _full(role: str, name: str) -> Case:
    """A network as benchmarks/networks.py has it; captions are searched greedily and do not end."""
    kind, options, weights = full.CASES[name]
    if role == "captioner":
        return Case(
            role, kind, Options(beams=1, max_tokens=TOKENS, precision="fp16"), lambda: without_end(weights())
        )
    return Case(role, kind, options, weights)


# In this order: what is used most comes first, and what takes the longest last.
CASES: Mapping[str, Case] = {
    name: _full(role, name)
    for role, name in (
        ("clip_image", "clip-image ViT-B-32-quickgelu"),
        ("clip_text", "clip-text ViT-B-32-quickgelu"),
        ("captioner", "git-base"),
        ("background_remover", "isnet"),
        ("clip_image", "clip-image ViT-L-14-quickgelu"),
        ("clip_text", "clip-text ViT-L-14-quickgelu"),
        ("background_remover", "inspyrenet"),
    )
}


# Those that `tiny_cases` makes.
TINY = ("tiny clip-image", "tiny clip-text", "tiny git", "tiny isnet")


def tiny_cases(folder: Path) -> dict[str, Case]:
    """Networks of the same kinds that take milliseconds; their architectures are written into `folder`."""
    clip = build(Architecture("tiny", tiny.CLIP, {}))
    made = {
        "clip": (tiny.CLIP, tiny.randomise(clip, 2)),
        "isnet": (asdict(tiny.ISNET), tiny.randomise(ISNet(tiny.ISNET), 1)),
        "git": (asdict(tiny.GIT_SIZES), without_end(tiny.git_weights(), tiny.GIT_SIZES.end)),
    }
    for name, (sizes, _) in made.items():
        (folder / f"{name}.json").write_text(json.dumps(sizes))

    def case(role: str, name: str, source: str, **options: Any) -> Case:
        return Case(role, name, Options(str(folder / f"{source}.json"), **options), lambda: made[source][1])

    cases = (
        case("clip_image", "clip-image", "clip"),
        case("clip_text", "clip-text", "clip"),
        case("captioner", "git-base", "git", beams=1, max_tokens=6, precision="fp16"),
        case("background_remover", "isnet", "isnet"),
    )
    return dict(zip(TINY, cases, strict=True))


def without_end(weights: Mapping[str, Tensor], end: int = 102) -> dict[str, Tensor]:
    """A GIT's weights with which no caption ends, and some words are likelier than others."""
    bias = weights["textual.output.bias"]
    bias = bias + SPREAD * torch.randn(bias.shape, generator=torch.Generator().manual_seed(0))
    bias[end] = NEVER
    return {**weights, "textual.output.bias": bias}


def load(case: Case, folder: Path) -> Loaded:
    """The network with its weights, as the exporter reads it from a file in `folder`."""
    checkpoint = folder / "checkpoint.pt"
    torch.save(dict(case.weights()), checkpoint)
    return network(case.network).load(checkpoint, case.options)


def transformers_git(captioner: Captioner) -> Any:
    """transformers' GitForCausalLM with the weights of ours.

    Raises:
        ImportError: transformers is not installed.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    ours: Any = captioner.network
    config: GITConfig = ours.config
    vision = {
        "hidden_size": config.vision_width,
        "intermediate_size": 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
    }
    theirs = transformers.GitForCausalLM(
        transformers.GitConfig(
            vision_config=vision,
            vocab_size=config.vocabulary,
            hidden_size=config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            intermediate_size=config.text_feedforward,
            max_position_embeddings=config.max_positions,
            bos_token_id=config.start,
            eos_token_id=config.end,
        )
    )
    renamed = {
        hub: part
        for name, tensor in ours.state_dict().items()
        if name != UNUSED
        for hub, part in zip(hub_names(name), tensor.chunk(len(hub_names(name))), strict=True)
    }
    missing = theirs.load_state_dict(renamed, strict=False)
    if missing.unexpected_keys or any(not name.endswith("position_ids") for name in missing.missing_keys):
        raise RuntimeError(f"transformers' GIT has other tensors than expected: {missing}")
    return theirs.eval()
