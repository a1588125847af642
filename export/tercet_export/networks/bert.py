"""BERT as a captioner's decoder: causal self-attention on cached tokens, and attention to a picture.

The modules carry the names of transformers' `BertLMHeadModel`, which BLIP (`text_decoder.*`) and others keep.
The picture's keys and values are computed once for each layer and serve every token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tercet_export.networks.search import Caches, KeysValues, Now, store

EPSILON = 1e-12


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of a decoder; the defaults are bert-base-uncased's.

    `memory_width` is the picture's; `token_types` says whether the embeddings have a table of segments, of
    which a caption uses the first.
    """

    vocabulary: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    feedforward: int = 3072
    memory_width: int = 768
    max_positions: int = 512
    token_types: bool = False


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, D) -> (B, heads, T, D / heads)."""
    if is_one(x.shape[1]):
        return x.reshape(-1, heads, 1, x.shape[2] // heads)
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, T, d) -> (B, T, heads * d)."""
    if is_one(x.shape[2]):
        return x.reshape(-1, 1, x.shape[1] * x.shape[3])
    return x.transpose(1, 2).flatten(2)


def is_one(length: int | torch.SymInt) -> bool:
    """Whether an axis has one entry in every run: moving it moves nothing, and the graph should say so.

    On a GPU each transpose of a step is a kernel, and a greedy step decodes one token.
    """
    return isinstance(length, int) and length == 1


class AddAndNorm(nn.Module):
    """A linear map, a residual and a LayerNorm: the end of each part of a BERT layer."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, x: Tensor, update: Tensor) -> Tensor:
        """(B, T, width) and (B, T, inner) -> (B, T, width)."""
        return self.LayerNorm(x + self.dense(update))


class Attention(nn.Module):
    """Attention of the tokens to keys and values that are there already, with residual and norm."""

    def __init__(self, width: int, heads: int, memory_width: int) -> None:
        super().__init__()
        self.heads = heads
        projections = {
            "query": nn.Linear(width, width),
            "key": nn.Linear(memory_width, width),
            "value": nn.Linear(memory_width, width),
        }
        self.add_module("self", nn.ModuleDict(projections))
        self.output = AddAndNorm(width, width)

    def project(self, name: str, x: Tensor) -> Tensor:
        """`name` is query, key or value: (B, T, D) -> (B, heads, T, d)."""
        return split_heads(self.get_submodule(f"self.{name}")(x), self.heads)

    def keys_values(self, x: Tensor) -> KeysValues:
        """(B, T, memory_width) -> keys and values, (B, heads, T, d) each."""
        return self.project("key", x), self.project("value", x)

    def forward(self, x: Tensor, seen: KeysValues, visible: Tensor | None = None) -> Tensor:
        """Tokens (B, T, D) to keys and values (B, heads, R, d), all or visible (B, T, R) -> (B, T, D)."""
        keys, values = seen
        queries = self.project("query", x)  # (B, heads, T, d)
        queries = queries * queries.shape[-1] ** -0.5
        # A step has few queries: with the keys on the left they are read as they lie.
        scores = (keys @ queries.transpose(-1, -2)).transpose(-1, -2)  # (B, heads, T, R)
        if visible is not None:
            scores = scores.masked_fill(~visible.unsqueeze(1), torch.finfo(scores.dtype).min)
        return self.output(x, merge_heads(scores.softmax(dim=-1) @ values))


class Layer(nn.Module):
    """One post-norm layer: attention to the caption, attention to the picture, feed-forward."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        width, inner = sizes.width, sizes.feedforward
        self.attention = Attention(width, sizes.heads, width)
        self.crossattention = Attention(width, sizes.heads, sizes.memory_width)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = AddAndNorm(inner, width)

    def forward(self, x: Tensor, picture: KeysValues, text: KeysValues, visible: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D); picture (B, heads, N, d), text (B, heads, R, d), visible bool (B, T, R)."""
        x = self.crossattention(self.attention(x, text, visible), picture)
        return self.output(x, F.gelu(self.intermediate["dense"](x)))


class Decoder(nn.Module):
    """The whole decoder: `memory` once a picture, then `step` by step."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        width = sizes.width
        embeddings: dict[str, nn.Module] = {
            "word_embeddings": nn.Embedding(sizes.vocabulary, width),
            "position_embeddings": nn.Embedding(sizes.max_positions, width),
            "LayerNorm": nn.LayerNorm(width, eps=EPSILON),
        }
        if sizes.token_types:
            embeddings["token_type_embeddings"] = nn.Embedding(2, width)
        layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.bert = nn.ModuleDict(
            {"embeddings": nn.ModuleDict(embeddings), "encoder": nn.ModuleDict({"layer": layers})}
        )
        transform = {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=EPSILON)}
        predictions = {"transform": nn.ModuleDict(transform), "decoder": nn.Linear(width, sizes.vocabulary)}
        self.cls = nn.ModuleDict({"predictions": nn.ModuleDict(predictions)})
        self.output.weight = self.words.weight

    @property
    def layers(self) -> list[Layer]:
        """The layers, first to last."""
        return cast(list[Layer], list(self.get_submodule("bert.encoder.layer").children()))

    @property
    def words(self) -> nn.Embedding:
        """The table of words."""
        return cast(nn.Embedding, self.get_submodule("bert.embeddings.word_embeddings"))

    @property
    def output(self) -> nn.Linear:
        """The map to logits; its weight is the table of words unless a checkpoint has another."""
        return cast(nn.Linear, self.get_submodule("cls.predictions.decoder"))

    def memory(self, picture: Tensor) -> list[KeysValues]:
        """The picture's tokens (B, N, memory_width) -> its keys and values for each layer."""
        return [layer.crossattention.keys_values(picture) for layer in self.layers]

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Ids (B, T) at positions (T) or () -> (B, T, D)."""
        embeddings = cast(nn.ModuleDict, self.get_submodule("bert.embeddings"))
        x = embeddings["word_embeddings"](token_ids) + embeddings["position_embeddings"](positions)
        if "token_type_embeddings" in embeddings:
            x = x + self.get_parameter("bert.embeddings.token_type_embeddings.weight")[0]
        return embeddings["LayerNorm"](x)

    def step(
        self, memory: list[KeysValues], token_ids: Tensor, now: Now, caches: Caches
    ) -> tuple[Tensor, Caches]:
        """One token further, the beams in the place of positions; see `search.Step`."""
        x = self.embed(token_ids, now.position)  # (B, beams, D)
        updated: list[KeysValues] = []
        for layer, picture, cache in zip(self.layers, memory, caches, strict=True):
            text = store(cache, now, layer.attention.keys_values(x))
            updated.append(text)
            x = layer(x, picture, text, now.visible)
        transform = cast(nn.ModuleDict, self.get_submodule("cls.predictions.transform"))
        return self.output(transform["LayerNorm"](F.gelu(transform["dense"](x)))), tuple(updated)


def complete(tensors: Mapping[str, Tensor], decoder: Decoder, prefix: str) -> dict[str, Tensor]:
    """`tensors` of a checkpoint with exactly the names that `decoder` has after `prefix`.

    Checkpoints store the tied output once or twice, its bias under one of two names or both, and perhaps the
    positions' numbers. The output is untied where it is stored and differs from the words.
    """
    words, output = f"{prefix}bert.embeddings.word_embeddings.weight", f"{prefix}cls.predictions.decoder"
    bias = f"{prefix}cls.predictions.bias"
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".position_ids")}
    if words in tensors:
        tensors.setdefault(f"{output}.weight", tensors[words])
    if bias in tensors:
        tensors.setdefault(f"{output}.bias", tensors.pop(bias))
    tensors.pop(bias, None)
    weight = tensors.get(f"{output}.weight")
    if weight is not None and words in tensors and not torch.equal(weight, tensors[words]):
        decoder.output.weight = nn.Parameter(torch.empty_like(decoder.output.weight))
    return tensors
