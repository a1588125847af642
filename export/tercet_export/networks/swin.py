"""Swin Transformer, a backbone of InSPyReNet: attention within windows that every other block shifts by half
their side (Liu et al. 2021, arXiv:2103.14030).

The modules carry the names of the official `SwinTransformer.py`. What follows from the picture's side alone
is worked out when the network is made: which token lies in which window, and which may see each other. So
nothing here depends on the batch: the official `window_reverse` bakes the traced one into a graph.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# The side in pixels of the patch that becomes one token.
PATCH = 4


class Windows(nn.Module):
    """Where each token of a `side` x `side` grid lies when it is cut into windows of `window` x `window`.

    The grid is padded to whole windows below and to the right, then moved up and left by `shift` around the
    edges. Tokens that this brings together from opposite edges must not see each other.
    """

    places: Tensor
    back: Tensor
    regions: Tensor

    def __init__(self, side: int, window: int, shift: int) -> None:
        super().__init__()
        across = -(-side // window)
        padded = across * window
        self.padding = padded > side
        self.shifted = shift > 0

        def cut(grid: Tensor) -> Tensor:  # (padded, padded) -> (windows, N)
            tiles = grid.view(across, window, across, window)
            return tiles.transpose(1, 2).reshape(across * across, window * window)

        tokens = side * side
        grid = torch.full((padded, padded), tokens)  # where there is no token: the row after the last
        grid[:side, :side] = torch.arange(tokens).view(side, side)
        places = cut(grid.roll((-shift, -shift), (0, 1))).flatten()
        strips = torch.zeros(padded, dtype=torch.int64)
        strips[-window:] = 1
        strips[padded - shift :] = 2
        self.register_buffer("places", places, persistent=False)  # (windows * N,)
        self.register_buffer("back", places.argsort(stable=True)[:tokens], persistent=False)  # (side * side,)
        self.register_buffer("regions", cut(3 * strips[:, None] + strips), persistent=False)  # (windows, N)

    def mask(self) -> Tensor:
        """What to add to the scores of tokens that must not see each other: (windows, 1, N, N)."""
        strangers = self.regions[:, None, :, None] != self.regions[:, None, None, :]
        return strangers * -100.0


def relative_positions(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens in a window: (N, N)."""
    steps = torch.arange(window)
    row, column = steps.repeat_interleave(window), steps.repeat(window)
    down = row[:, None] - row + window - 1
    right = column[:, None] - column + window - 1
    return down * (2 * window - 1) + right


class WindowAttention(nn.Module):
    """Attention among the N tokens of each window, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """(B, side * side, width) -> the same."""
        batch, _, width = x.shape
        head = width // self.heads
        length = len(self.relative_position_index)  # N
        qkv = self.qkv(x)
        if windows.padding:  # padding is zero before this layer, so after it is the bias
            qkv = torch.cat((qkv, self.qkv.bias.expand(batch, 1, -1)), dim=1)
        qkv = qkv.index_select(1, windows.places)
        qkv = qkv.view(batch, -1, length, 3, self.heads, head).permute(3, 0, 1, 4, 2, 5)
        query, key, value = qkv.unbind(0)  # each (B, windows, heads, N, head)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        scores = (query * head**-0.5) @ key.transpose(-2, -1)
        scores = scores + bias.view(length, length, self.heads).permute(2, 0, 1)
        if windows.shifted:
            scores = scores + windows.mask()
        seen = scores.softmax(dim=-1) @ value
        seen = seen.transpose(2, 3).reshape(batch, -1, width)  # (B, windows * N, width)
        return self.proj(seen.index_select(1, windows.back))


class Feedforward(nn.Module):
    """Linear, GELU, linear: `Mlp` in the official file."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return self.fc2(self.act(self.fc1(x)))


class SwinBlock(nn.Module):
    """Pre-norm attention within windows, then the feedforward network."""

    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, window, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Feedforward(width, 4 * width)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """(B, side * side, width) -> the same."""
        x = x + self.attn(self.norm1(x), windows)
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Four neighbouring tokens to one of twice their width."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, side * side, width) -> (B, side * side / 4, 2 * width)."""
        half, width = self.side // 2, x.shape[-1]
        x = x.view(-1, half, 2, half, 2, width).permute(0, 1, 3, 4, 2, 5)  # the lower neighbour comes second
        return self.reduction(self.norm(x.reshape(-1, half * half, 4 * width)))


class SwinStage(nn.Module):
    """The blocks of one resolution: `BasicLayer` in the official file."""

    def __init__(self, width: int, depth: int, heads: int, window: int, side: int, last: bool) -> None:
        super().__init__()
        self.straight = Windows(side, window, shift=0)
        self.shifted = Windows(side, window, shift=window // 2)
        self.blocks = nn.ModuleList(SwinBlock(width, window, heads) for _ in range(depth))
        self.downsample = nn.Identity() if last else PatchMerging(width, side)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, side * side, width) -> the same, and what the next stage takes."""
        for number, block in enumerate(self.blocks):
            x = block(x, self.shifted if number % 2 else self.straight)
        return x, self.downsample(x)


class PatchEmbedding(nn.Module):
    """Patches of 4x4 pixels to normalised tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, (S / 4)^2, width)."""
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class Swin(nn.Module):
    """The backbone for scenes of `size` x `size` pixels, `size` a multiple of 32.

    `channels` are those of the five feature maps that `forward` gives.
    """

    def __init__(
        self, width: int, depths: Sequence[int], heads: Sequence[int], window: int, size: int
    ) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in range(len(depths))]
        self.sides = [size // PATCH // 2**stage for stage in range(len(depths))]
        self.channels = (width, *widths)
        self.patch_embed = PatchEmbedding(width)
        self.layers = nn.ModuleList(
            SwinStage(channels, depth, number, window, side, last=side == self.sides[-1])
            for channels, depth, number, side in zip(widths, depths, heads, self.sides, strict=True)
        )
        for stage, channels in enumerate(widths):
            self.add_module(f"norm{stage}", nn.LayerNorm(channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, S, S) -> maps (B, channels, s, s): the patches, S / 4, and four stages, S / 4 to S / 32."""
        tokens = self.patch_embed(x)
        maps = [_as_map(tokens, self.sides[0])]
        for stage, (layer, side) in enumerate(zip(self.layers, self.sides, strict=True)):
            result, tokens = layer(tokens)
            maps.append(_as_map(self.get_submodule(f"norm{stage}")(result), side))
        return maps


def _as_map(tokens: Tensor, side: int) -> Tensor:
    """(B, side * side, C) -> (B, C, side, side)."""
    return tokens.transpose(1, 2).unflatten(2, (side, side))
