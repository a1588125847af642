"""CLIP's vision transformer (Radford et al. 2021, arXiv:2103.00020) for captioners: every token is kept.

The modules carry the names of OpenAI's release, which GIT (`image_encoder.*`) and mPLUG
(`visual_encoder.visual.*`) keep. CLIP's own projection is among the weights and goes unused in both.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tercet_export.networks.bert import merge_heads, split_heads


@dataclass(frozen=True)
class VisionSizes:
    """Sizes of an image encoder; `projection` is the width of CLIP's own, unused one."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    projection: int


class VisionAttention(nn.Module):
    """Self-attention with its three projections in one matrix, under nn.MultiheadAttention's names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); `mask` f32 (N, N) is added to the products of queries and keys."""
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, N, 3 D)
        queries, keys, values = (split_heads(part, self.heads) for part in projected.chunk(3, dim=-1))
        return self.out_proj(merge_heads(F.scaled_dot_product_attention(queries, keys, values, mask)))


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
    """The whole transformer, up to the norm after its last block."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        width, patch = sizes.width, sizes.patch_size
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        positions = (sizes.image_size // patch) ** 2 + 1
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(positions, width))
        self.ln_pre = nn.LayerNorm(width)
        blocks = [VisionBlock(width, sizes.heads) for _ in range(sizes.layers)]
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(*blocks)})
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, sizes.projection))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised f32 (B, 3, V, V) -> (B, N, width), N = 1 + (V / patch_size)^2."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)  # (B, N - 1, D)
        start = self.class_embedding.expand(patches.shape[0], 1, -1)
        x = torch.cat([start, patches], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer["resblocks"](self.ln_pre(x)))
