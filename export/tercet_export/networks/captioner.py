"""What every captioner shares: the `captioner` graph around a network, and its entry in the registry's terms.

A captioner's own file declares its encoder, its cached step and its ids:

    class Network(nn.Module):
        layers: of the decoder, for the caches
        def encode(self, pixels) -> Memory: all that the steps need of a picture, as tensors
        def step(self, memory, token_ids, now, caches) -> logits, caches

    @register(name="git-base", role="captioner", ...)
    def load(checkpoint: Path, options: Options) -> Loaded:
        return captioner(network, options, preprocessing=..., search=SearchOptions(...), tokenizer={...})
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tercet.errors import ExportError
from tercet_export.networks.search import (
    Caches,
    KeysValues,
    Now,
    SearchOptions,
    Step,
    empty_caches,
    search,
)
from tercet_export.registry import Loaded, Options, Preprocessing

Memory = list[KeysValues]
"""The picture's keys and values (B, heads, N, d) for each decoder layer, computed once."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class CaptioningNetwork(Protocol):
    """What a network must offer to be captioned with."""

    def encode(self, pixels: Tensor) -> Memory:
        """Normalised f32 (B, 3, V, V) -> keys and values of each decoder layer."""

    def step(self, memory: Memory, token_ids: Tensor, now: Now, caches: Caches) -> tuple[Tensor, Caches]:
        """Ids (B, N) at `now` -> logits (B, N, vocabulary) and the caches with their keys and values.

        Its layers `store` their keys and values and attend to the rows that `now.visible` names.
        """


class Captioner(nn.Module):
    """The `captioner` graph: normalisation, encoder and search."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: CaptioningNetwork,
        options: SearchOptions,
        mean: tuple[float, ...] = CLIP_MEAN,
        std: tuple[float, ...] = CLIP_STD,
    ) -> None:
        super().__init__()
        self.network = network
        self.options = options
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def decoder(self, foreground: Tensor) -> tuple[Step, Caches]:
        """The cached step for pictures u8 (B, V, V, 3), and empty caches for a search."""
        pixels = foreground.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        memory = self.network.encode((pixels - self.mean) / self.std)

        def step(token_ids: Tensor, now: Now, caches: Caches) -> tuple[Tensor, Caches]:
            return self.network.step(memory, token_ids, now, caches)

        return step, empty_caches(len(memory), memory[0][0], self.options)

    def forward(self, foreground: Tensor) -> tuple[Tensor, Tensor]:
        """U8 (B, V, V, 3) -> token_ids i64 (B, max_tokens) and score f32 (B, 1); see `search`."""
        step, caches = self.decoder(foreground)
        return search(step, caches, foreground.shape[0], self.options)


def captioner(
    network: CaptioningNetwork,
    options: Options,
    *,
    search: SearchOptions,
    preprocessing: Preprocessing,
    tokenizer: Mapping[str, Any],
    max_positions: int | None = None,
) -> Loaded:
    """A network ready to export, with the user's `beams` and `max_tokens` in place of those of `search`.

    Args:
        network: with its weights.
        options: the user's choice.
        search: the official search.
        preprocessing: the official one; its mean and deviation enter the graph.
        tokenizer: what `tercet_export.vocabulary` needs to know, its kind first; size and ids it may need are
            the network's.
        max_positions: how long the decoder's sequence may become; ExportError for a longer one.
    """
    search = replace(
        search,
        beams=options.beams or search.beams,
        max_tokens=options.max_tokens or search.max_tokens,
        sort=options.precision == "fp16",
    )
    if max_positions is not None and search.positions > max_positions:
        raise ExportError(
            f"max_tokens {search.max_tokens} is more than this network's {max_positions} positions: "
            f"give at most {search.max_tokens - (search.positions - max_positions)}"
        )
    return Loaded(
        graph=Captioner(network, search, preprocessing.mean, preprocessing.std),
        sizes={"V": preprocessing.size, "L": search.max_tokens},
        preprocessing=preprocessing,
        details={"max_tokens": search.max_tokens, "tokenizer": dict(tokenizer)},
    )
