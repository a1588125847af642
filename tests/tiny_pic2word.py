"""What tests of mapping networks need: SEARLE's in its container, a tiny CLIP and pictures to train on."""

import gzip
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from tercet_export.networks.clip import Architecture, build
from tercet_export.networks.phi import Phi
from tercet_export.vocabulary import default_merges
from tests.tiny import CLIP, EMBEDDING, MERGES, randomise


def write_phi(path: Path, features: int = EMBEDDING, width: int = 32) -> None:
    """A checkpoint as SEARLE's and LinCIR's training writes it."""
    torch.save({"epoch": 20, "Phi": randomise(Phi(features, 4 * features, width), 6)}, path)


def write_clip(folder: Path, seed: int = 2) -> None:
    """The tiny lineup's CLIP alone: clip.safetensors, clip.json, merges.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(randomise(build(Architecture("tiny", CLIP, {})), seed), folder / "clip.safetensors")
    (folder / "clip.json").write_text(json.dumps(CLIP))
    merges = gzip.decompress(default_merges().read_bytes()).decode().split("\n")[1 : MERGES + 1]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def write_pictures(folder: Path, count: int, seed: int = 0, side: int = 48) -> list[Path]:
    """Pictures that differ in colours and layout, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{number:04d}.png" for number in range(count)]
    for path in paths:
        blocks = rng.integers(0, 256, (3, 3, 3), np.uint8)
        Image.fromarray(blocks).resize((side, side + 8), Image.Resampling.NEAREST).save(path)
    return paths
