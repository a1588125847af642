"""The parts of OFA's encoder and decoder: sizes, attention that knows positions by a bias, layers, buckets.

Modules carry the names of the hub's release, which ModelScope keeps (models/multi_modal/ofa/modeling_ofa.py).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tercet_export.networks.bert import merge_heads, split_heads
from tercet_export.networks.search import KeysValues


@dataclass(frozen=True)
class OFAConfig:
    """Sizes and ids of an OFA; the defaults are ofa-base's, as the official models/ofa/ofa.py has them.

    `resnet` counts the blocks of the trunk's three stages; `prompt` is what " what does the image describe?"
    becomes, with start and end. The buckets say how far apart tokens and cells are told from one another.
    """

    image_size: int = 480
    resnet: tuple[int, int, int] = (3, 4, 23)
    width: int = 768
    encoder_layers: int = 6
    decoder_layers: int = 6
    heads: int = 12
    feedforward: int = 3072
    vocabulary: int = 59457
    max_positions: int = 1024
    token_bucket: int = 256
    image_bucket: int = 42
    prompt: tuple[int, ...] = (0, 99, 473, 5, 2274, 6190, 116, 2)
    start: int = 0
    pad: int = 1
    end: int = 2
    max_tokens: int = 16

    @property
    def grid(self) -> int:
        """Cells along one side of the picture as the trunk sees it: it halves the side four times."""
        return math.ceil(self.image_size / 16)

    @property
    def token_rows(self) -> int:
        """Relative positions of two tokens that are told apart; see `token_buckets`."""
        return 2 * self.token_bucket - 1

    @property
    def image_rows(self) -> int:
        """Relative positions of two cells that are told apart; see `image_buckets`."""
        return (2 * self.image_bucket - 1) ** 2 + 3

    @property
    def scale(self) -> float:
        """Of every product of queries and keys, those of positions too (`attn_scale_factor` 2)."""
        return (self.width / self.heads * 2) ** -0.5


def token_buckets(size: int, positions: int) -> Tensor:
    """I64 (positions, positions): the row of a relative table for a query and a key.

    Near distances have one each, far ones share by their logarithm (`make_token_bucket_position`).
    """
    places = torch.arange(positions)
    distance = places[:, None] - places
    middle = size // 2
    far = torch.where(distance.abs() < middle, middle - 1, distance.abs())
    steps = torch.log(far / middle) / math.log((positions - 1) / middle) * (middle - 1)
    shared = ((torch.ceil(steps) + middle).int() * distance.sign()).long()
    return torch.where(far <= middle, distance, shared) + size - 1


def image_buckets(size: int) -> Tensor:
    """I64 (size^2 + 1, size^2 + 1): the row of a relative table for two cells of a square of that side.

    Place 0 stands before all cells and has three rows of its own (`make_image_bucket_position`).
    """
    side = 2 * size - 1
    cells = torch.arange(size * size)
    row, column = cells // size, cells % size
    down, right = row[:, None] - row + size - 1, column[:, None] - column + size - 1
    inner = down * side + right
    buckets = F.pad(inner, (1, 0, 1, 0), value=side * side)
    buckets[1:, 0] = side * side + 1
    buckets[0, 0] = side * side + 2
    return buckets


def tables(layers: int, rows: int, heads: int) -> nn.ModuleList:
    """A table of relative positions for each layer; they begin at zero."""
    made = nn.ModuleList(nn.Embedding(rows, heads) for _ in range(layers))
    for table in made:
        nn.init.zeros_(table.get_parameter("weight"))
    return made


def position_bias(queries: Tensor, keys: Tensor, config: OFAConfig) -> Tensor:
    """Projected positions (T, D) and (N, D) -> what they add to every head's products, (heads, T, N)."""
    queries, keys = (x.unflatten(-1, (config.heads, -1)).transpose(0, 1) for x in (queries, keys))
    return (queries * config.scale) @ keys.transpose(-1, -2)


class Attention(nn.Module):
    """Attention with a bias for positions and a learned scale for each head (`c_attn`, of NormFormer)."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.scale = config.heads, config.scale
        self.c_attn = nn.Parameter(torch.ones(config.heads))
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def keys_values(self, x: Tensor) -> KeysValues:
        """(B, T, D) -> keys and values, (B, heads, T, d) each."""
        return split_heads(self.k_proj(x), self.heads), split_heads(self.v_proj(x), self.heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """All of x (B, N, D) to each other, bias (heads, N, N) -> (B, N, D)."""
        queries = split_heads(self.q_proj(x), self.heads)
        attended = F.scaled_dot_product_attention(
            queries, *self.keys_values(x), attn_mask=bias.unsqueeze(0), scale=self.scale
        )
        return self.finish(attended)

    def attend(self, x: Tensor, seen: KeysValues, bias: Tensor, visible: Tensor | None = None) -> Tensor:
        """A few tokens (B, T, D) to keys and values (B, heads, R, d) -> (B, T, D).

        Bias (heads, T or 1, R); all is seen, or what is visible, bool (B, T, R).
        """
        keys, values = seen
        queries = split_heads(self.q_proj(x) * self.scale, self.heads)  # (B, heads, T, d)
        # With the keys on the left they are read as they lie.
        scores = (keys @ queries.transpose(-1, -2)).transpose(-1, -2) + bias  # (B, heads, T, R)
        if visible is not None:
            scores = scores.masked_fill(~visible.unsqueeze(1), torch.finfo(scores.dtype).min)
        return self.finish(scores.softmax(dim=-1) @ values)

    def finish(self, attended: Tensor) -> Tensor:
        """What the heads found (B, heads, T, d) -> (B, T, D)."""
        return self.out_proj(merge_heads(attended * self.c_attn[:, None, None]))


class EncoderLayer(nn.Module):
    """One pre-norm layer, with NormFormer's norms behind the attention and inside the feed-forward."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__()
        width, inner = config.width, config.feedforward
        self.self_attn = Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn_mid_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.ffn_layer_norm = nn.LayerNorm(inner)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, N, D), bias (heads, N, N) -> (B, N, D)."""
        attended = self.self_attn(self.self_attn_layer_norm(x), bias)
        return self.feed_forward(x + self.self_attn_mid_layer_norm(attended))

    def feed_forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        inner = F.gelu(self.fc1(self.final_layer_norm(x)))
        return x + self.fc2(self.ffn_layer_norm(inner))


class DecoderLayer(EncoderLayer):
    """One layer that attends to the caption so far, then to the encoder's result."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__(config)
        self.cross_attn = Attention(config)
        self.cross_attn_layer_norm = nn.LayerNorm(config.width)
        self.cross_attn_mid_layer_norm = nn.LayerNorm(config.width)

    def read_caption(self, x: Tensor, text: KeysValues, bias: Tensor, visible: Tensor) -> Tensor:
        """Normed tokens (B, T, D) to the caption's keys and values -> what is added to the tokens."""
        return self.self_attn_mid_layer_norm(self.self_attn.attend(x, text, bias, visible))

    def read_source(self, x: Tensor, source: KeysValues, bias: Tensor) -> Tensor:
        """Tokens (B, T, D) to the encoder's keys and values (B, heads, N, d) -> what is added to them."""
        attended = self.cross_attn.attend(self.cross_attn_layer_norm(x), source, bias)
        return self.cross_attn_mid_layer_norm(attended)
