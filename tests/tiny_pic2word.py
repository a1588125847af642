"""Tiny mapping networks beside the tiny lineup's own: SEARLE's and LinCIR's, in their container."""

from pathlib import Path

import torch

from tercet_export.networks.phi import Phi
from tests.tiny import EMBEDDING, randomise


def write_phi(path: Path, features: int = EMBEDDING, width: int = 32) -> None:
    """A checkpoint as SEARLE's and LinCIR's training writes it."""
    torch.save({"epoch": 20, "Phi": randomise(Phi(features, 4 * features, width), 6)}, path)
