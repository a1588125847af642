"""GIT, the captioner of Wang et al. 2022 (arXiv:2205.14100): CLIP's image encoder, then a BERT-style decoder.

The modules carry the names of Microsoft's release (github.com/microsoft/GenerativeImage2Text), so that
`state_dict()` is the official layout. Image tokens attend to image tokens only, caption tokens to the
image and to the caption so far: the image's keys and values are computed once and serve every caption token.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class GITConfig:
    """Sizes and ids of a GIT; the defaults are git-base's."""

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision_projection: int = 512  # width of CLIP's own projection: in the checkpoint, never used
    text_width: int = 768
    text_layers: int = 6
    text_heads: int = 12
    text_feedforward: int = 3072
    vocabulary: int = 30522
    max_positions: int = 1024
    start: int = 101
    end: int = 102
    max_tokens: int = 20

    @classmethod
    def read(cls, path: Path) -> "GITConfig":
        """The configuration in a JSON file: an object with any of the fields above."""
        values: dict[str, Any] = json.loads(path.read_text())
        return cls(**values)


GIT_BASE = GITConfig()
GIT_LARGE = GITConfig(
    patch_size=14, vision_width=1024, vision_layers=24, vision_heads=16, vision_projection=768
)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, D) -> (B, heads, T, D / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, T, d) -> (B, T, heads * d)."""
    return x.transpose(1, 2).flatten(2)


class VisionAttention(nn.Module):
    """Self-attention with its three projections in one matrix, under nn.MultiheadAttention's names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, N, 3 D)
        queries, keys, values = (split_heads(part, self.heads) for part in projected.chunk(3, dim=-1))
        return self.out_proj(merge_heads(F.scaled_dot_product_attention(queries, keys, values)))


class VisionBlock(nn.Module):
    """One pre-norm transformer block of CLIP, with its QuickGELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = VisionAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.attn(self.ln_1(x))
        inner = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](inner * torch.sigmoid(1.702 * inner))


class ImageEncoder(nn.Module):
    """CLIP's vision transformer; every token is kept and `proj` goes unused, as in the official code."""

    def __init__(self, config: GITConfig) -> None:
        super().__init__()
        width, patch = config.vision_width, config.patch_size
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        positions = (config.image_size // patch) ** 2 + 1
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(positions, width))
        self.ln_pre = nn.LayerNorm(width)
        blocks = [VisionBlock(width, config.vision_heads) for _ in range(config.vision_layers)]
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(*blocks)})
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, config.vision_projection))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised f32 (B, 3, V, V) -> (B, N, vision_width), N = 1 + (V / patch_size)^2."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)  # (B, N - 1, D)
        start = self.class_embedding.expand(patches.shape[0], 1, -1)
        x = torch.cat([start, patches], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer["resblocks"](self.ln_pre(x)))


class AddAndNorm(nn.Module):
    """A linear map, a residual and a LayerNorm: the end of both halves of a BERT layer."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, update: Tensor) -> Tensor:
        """(B, T, width) and (B, T, inner) -> (B, T, width)."""
        return self.LayerNorm(x + self.dense(update))


class TextLayer(nn.Module):
    """One post-norm transformer layer of BERT."""

    def __init__(self, config: GITConfig) -> None:
        super().__init__()
        width, inner = config.text_width, config.text_feedforward
        self.heads = config.text_heads
        projections = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict(
            {"self": nn.ModuleDict(projections), "output": AddAndNorm(width, width)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = AddAndNorm(inner, width)

    def project(self, name: str, x: Tensor) -> Tensor:
        """`name` is query, key or value: (B, T, D) -> (B, heads, T, d)."""
        return split_heads(self.get_submodule(f"attention.self.{name}")(x), self.heads)

    def keys_values(self, x: Tensor) -> KeysValues:
        """(B, T, D) -> keys and values, (B, heads, T, d) each."""
        return self.project("key", x), self.project("value", x)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """All that follows attention: x (B, T, D), attended (B, heads, T, d) -> (B, T, D)."""
        x = self.attention["output"](x, merge_heads(attended))
        return self.output(x, F.gelu(self.intermediate["dense"](x)))

    def encode(self, x: Tensor, own: KeysValues) -> Tensor:
        """Image tokens attend to their own keys and values only: (B, N, D) -> (B, N, D)."""
        return self.finish(x, F.scaled_dot_product_attention(self.project("query", x), *own))

    def decode(self, x: Tensor, image: KeysValues, text: KeysValues, visible: Tensor) -> Tensor:
        """Caption tokens attend to the image and to what of the text is visible: (B, T, D) -> (B, T, D).

        Image (B, heads, N, d), text (B, heads, S, d), visible bool (B or 1, T, S). Image and text are never
        joined in memory: every step of a search reads the image's keys and values where they are.
        """
        queries = self.project("query", x)  # (B, heads, T, d)
        queries = queries * queries.shape[-1] ** -0.5
        to_image = queries @ image[0].transpose(-1, -2)  # (B, heads, T, N)
        to_text = queries @ text[0].transpose(-1, -2)  # (B, heads, T, S)
        to_text = to_text.masked_fill(~visible.unsqueeze(1), torch.finfo(to_text.dtype).min)
        weights = torch.cat([to_image, to_text], dim=-1).softmax(dim=-1)
        from_image = weights[..., : to_image.shape[-1]] @ image[1]
        return self.finish(x, from_image + weights[..., to_image.shape[-1] :] @ text[1])


class Textual(nn.Module):
    """The decoder: projects the image into the text's space and predicts the next token at every position."""

    def __init__(self, config: GITConfig) -> None:
        super().__init__()
        width = config.text_width
        words = nn.Embedding(config.vocabulary, width)
        layers = nn.ModuleList(TextLayer(config) for _ in range(config.text_layers))
        self.visual_projection = nn.Sequential(nn.Linear(config.vision_width, width), nn.LayerNorm(width))
        self.embedding = nn.ModuleDict(
            {
                "words": words,
                "positions": nn.Embedding(config.max_positions, width),
                "layer_norm": nn.LayerNorm(width, eps=1e-8),
            }
        )
        self.transformer = nn.ModuleDict({"encoder": nn.ModuleDict({"layer": layers})})
        self.output = nn.Linear(width, config.vocabulary)
        self.apply(initialise_as_bert)
        self.output.weight = words.weight  # tied, and stored twice in the checkpoint

    @property
    def layers(self) -> list[TextLayer]:
        """The decoder's layers, first to last."""
        return cast(list[TextLayer], list(self.get_submodule("transformer.encoder.layer").children()))

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Ids (B, T) at positions (T) or () -> (B, T, D)."""
        words = self.embedding["words"](token_ids) + self.embedding["positions"](positions)
        return self.embedding["layer_norm"](words)


def initialise_as_bert(module: nn.Module) -> None:
    """Weights from N(0, 0.02) and no bias, as the official decoder starts its training."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


class GIT(nn.Module):
    """The whole network: `logits` for training and checks, `encode_image` and the layers for the search."""

    def __init__(self, config: GITConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.textual = Textual(config)

    def encode_image(self, pixels: Tensor) -> list[KeysValues]:
        """Normalised f32 (B, 3, V, V) -> the image's keys and values for each decoder layer."""
        x = self.textual.visual_projection(self.image_encoder(pixels))  # (B, N, D)
        image = [self.textual.layers[0].keys_values(x)]
        for below, layer in pairwise(self.textual.layers):
            x = below.encode(x, image[-1])
            image.append(layer.keys_values(x))
        return image

    def logits(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Next-token logits at every position, differentiable.

        Args:
            pixels: f32 (B, 3, V, V), with CLIP's mean and standard deviation.
            token_ids: i64 (B, T), beginning with the start token.

        Returns:
            f32 (B, T, vocabulary); row t predicts token t + 1.
        """
        steps = torch.arange(token_ids.shape[1], device=token_ids.device)
        causal = (steps <= steps[:, None]).unsqueeze(0)  # (1, T, T)
        x = self.textual.embed(token_ids, steps)
        for layer, image in zip(self.textual.layers, self.encode_image(pixels), strict=True):
            x = layer.decode(x, image, layer.keys_values(x), causal)
        return self.textual.output(x)
