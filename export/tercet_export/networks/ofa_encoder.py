"""OFA's encoder for one fixed prompt and pictures of one size: a ResNet's cells, then the prompt's words.

Nothing is ever padded, so that there is no mask, and all that positions do is the same for every picture.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tercet_export.networks.ofa_layers import (
    EncoderLayer,
    OFAConfig,
    image_buckets,
    position_bias,
    tables,
    token_buckets,
)


class Bottleneck(nn.Module):
    """A residual block of three convolutions; the middle one has the stride."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample = (
            nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))
            if before != after
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, h, w) -> (B, 4 width, h / stride, w / stride)."""
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(inner))
        return F.relu(inner + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """The first three stages of a ResNet: a cell of 1024 numbers for every 16 x 16 pixels."""

    def __init__(self, blocks: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(64, 64, blocks[0], stride=1)
        self.layer2 = stage(256, 128, blocks[1], stride=2)
        self.layer3 = stage(512, 256, blocks[2], stride=2)

    def forward(self, pixels: Tensor) -> Tensor:
        """F32 (B, 3, V, V) -> (B, 1024, V / 16, V / 16), rounded up."""
        x = F.relu(self.bn1(self.conv1(pixels)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        return self.layer3(self.layer2(self.layer1(x)))


def stage(before: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """The blocks of one stage."""
    first = Bottleneck(before, width, stride)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)))


class Encoder(nn.Module):
    """`place` once, when the weights are there; then pictures."""

    token_rp_bucket: Tensor
    image_rp_bucket: Tensor
    prompt: Tensor
    position_bias: Tensor
    relative: Tensor

    def __init__(self, config: OFAConfig, embed_tokens: nn.Embedding) -> None:
        super().__init__()
        width, cells = config.width, config.image_bucket**2 + 1
        self.config = config
        self.register_buffer("image_rp_bucket", image_buckets(config.image_bucket))
        self.register_buffer("token_rp_bucket", token_buckets(config.token_bucket, config.max_positions))
        self.layernorm_embedding = nn.LayerNorm(width)
        self.embed_tokens = embed_tokens
        self.type_embedding = nn.Embedding(2, width)
        self.embed_images = ResNet(config.resnet)
        self.image_proj = nn.Linear(1024, width)
        self.patch_layernorm_embedding = nn.LayerNorm(width)
        self.embed_positions = nn.Embedding(config.max_positions + 2, width)
        self.embed_image_positions = nn.Embedding(cells, width)
        self.pos_ln = nn.LayerNorm(width)
        self.image_pos_ln = nn.LayerNorm(width)
        self.pos_q_linear = nn.Linear(width, width)
        self.pos_k_linear = nn.Linear(width, width)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(width)
        self.token_rel_pos_table_list = tables(config.encoder_layers, config.token_rows, config.heads)
        self.image_rel_pos_table_list = tables(config.encoder_layers, config.image_rows, config.heads)
        self.register_buffer("prompt", torch.tensor(config.prompt), persistent=False)

    def place(self) -> Tensor:
        """Prepare all that follows from positions alone; the embedded positions (N, D), cells then words."""
        config = self.config
        along = torch.arange(config.grid)
        cells = (along[:, None] * config.image_bucket + along + 1).flatten()  # of the largest grid, from 1
        words = torch.arange(len(config.prompt))
        positions = torch.cat(
            [
                self.image_pos_ln(self.embed_image_positions(cells)),
                self.pos_ln(self.embed_positions(words)),
            ]
        )
        bias = position_bias(self.pos_q_linear(positions), self.pos_k_linear(positions), config)
        self.register_buffer("position_bias", bias, persistent=False)

        # Rows of `table`: cells relate to cells, words to words, and neither to the other.
        relative = torch.full((len(positions), len(positions)), config.image_rows + config.token_rows)
        relative[: len(cells), : len(cells)] = self.image_rp_bucket[cells][:, cells]
        relative[len(cells) :, len(cells) :] = config.image_rows + self.token_rp_bucket[words][:, words]
        self.register_buffer("relative", relative, persistent=False)
        return positions

    def table(self, layer: int) -> Tensor:
        """The bias of every relative position (rows, heads), the last without any."""
        image = self.image_rel_pos_table_list[layer].get_parameter("weight")
        token = self.token_rel_pos_table_list[layer].get_parameter("weight")
        return torch.cat([image, token, torch.zeros_like(token[:1])])

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised f32 (B, 3, V, V) -> (B, N, D), N the cells and the words of the prompt."""
        cells = self.image_proj(self.embed_images(pixels).flatten(2).transpose(1, 2))
        image = self.patch_layernorm_embedding(cells + self.type_embedding.weight[1])
        text = self.layernorm_embedding(self.embed_tokens(self.prompt) + self.type_embedding.weight[0])
        x = torch.cat([image, text.expand(image.shape[0], -1, -1)], dim=1)
        for number, layer in enumerate(self.layers):
            # Follows from weights alone: a runtime computes it once, when it loads the file.
            relative = F.embedding(self.relative, self.table(number)).permute(2, 0, 1)  # (heads, N, N)
            x = layer(x, self.position_bias + relative)
        return self.layer_norm(x)
