"""The official recipe as defaults.

From README.md, src/main.py and src/params.py of github.com/google-research/composed_image_retrieval.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import nn

from tercet.errors import InputError

PROMPT = "a photo of *"
OFFICIAL_WARM_UP = 10_000
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which weights come out, beside CLIP and the pictures.

    `batch` counts the pictures of one step over all processes. `warm_up` None is the official 10,000 steps,
    or a tenth of a run for which that is more than half. `crop` is the least share of a picture's area that a
    random crop keeps. `gradient_norm` None leaves gradients as they are, as officially.
    """

    epochs: int = 30
    batch: int = 128
    learning_rate: float = 1e-4
    weight_decay: float = 0.1
    warm_up: int | None = None
    beta2: float = 0.98
    epsilon: float = 1e-6
    middle: int = 512
    layers: int = 2
    dropout: float = 0.1
    crop: float = 0.9
    gradient_norm: float | None = None
    held_out: int = 0
    precision: str = "fp32"
    seed: int = 0

    def warm_up_steps(self, steps: int) -> int:
        """How many of `steps` the rate climbs; InputError where the run is shorter than the warm-up given."""
        if self.warm_up is None:
            return OFFICIAL_WARM_UP if steps / 2 >= OFFICIAL_WARM_UP else max(1, steps // 10)
        if self.warm_up >= steps:
            raise InputError(
                f"the warm-up of {self.warm_up:,} steps does not fit into a run of {steps:,}: "
                f"give --warm-up {max(1, steps // 10)}, or more --epochs"
            )
        return self.warm_up

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, from 0: a linear climb, then half a cosine to nothing."""
        climb = self.warm_up_steps(steps)
        if step < climb:
            return self.learning_rate * (step + 1) / climb
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - climb) / (steps - climb)))


def adam_defaults(architecture: str) -> tuple[float, float]:
    """AdamW's beta2 and epsilon for a CLIP, as `get_default_params` has them: ResNets and ViT-H differ."""
    return (0.999, 1e-8) if architecture.startswith(("RN", "ViT-H-14")) else (0.98, 1e-6)


def optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; biases do not decay. Parameters by name, which is the official order in checkpoints."""
    named = sorted(network.named_parameters())
    biases = [value for name, value in named if "bias" in name]
    weights = [value for name, value in named if "bias" not in name]
    groups = [
        {"params": biases, "weight_decay": 0.0},
        {"params": weights, "weight_decay": recipe.weight_decay},
    ]
    return torch.optim.AdamW(groups, recipe.learning_rate, (0.9, recipe.beta2), recipe.epsilon)


def seed_for(*what: object) -> int:
    """A seed of 63 bits that these values alone decide."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8]) >> 1
