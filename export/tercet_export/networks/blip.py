"""BLIP, the captioner of Li et al. 2022 (arXiv:2201.12086): a vision transformer, BERT that attends to it.

The modules carry the names of transformers' `BlipForConditionalGeneration`, so that `state_dict()` is the
hub's layout; Salesforce's own release (github.com/salesforce/BLIP, {"model": ...}) is read too. Captioning as
in that repository's `models/blip.py` and `configs/caption_coco.yaml`: 3 beams; every caption begins with "a
picture of", which is taken off it; 5 to 20 tokens, of which the start and those words are 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tercet_export import checkpoints
from tercet_export.networks import bert
from tercet_export.networks.bert import merge_heads, split_heads
from tercet_export.networks.captioner import CLIP_MEAN, CLIP_STD, captioner
from tercet_export.networks.rules import TRANSFORMERS
from tercet_export.networks.search import Caches, KeysValues, Now, SearchOptions
from tercet_export.registry import Loaded, Options, Preprocessing, architecture, register


@dataclass(frozen=True)
class BLIPConfig:
    """Sizes and ids of a BLIP; the defaults are blip-base's. `prompt` is what "a picture of" becomes."""

    image_size: int = 384
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision_epsilon: float = 1e-5
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_feedforward: int = 3072
    vocabulary: int = 30524
    max_positions: int = 512
    start: int = 30522
    end: int = 102
    prompt: tuple[int, ...] = (1037, 3861, 1997)
    max_tokens: int = 16
    min_tokens: int = 1

    def decoder(self) -> bert.DecoderSizes:
        """The sizes of the text decoder."""
        return bert.DecoderSizes(
            vocabulary=self.vocabulary,
            width=self.text_width,
            layers=self.text_layers,
            heads=self.text_heads,
            feedforward=self.text_feedforward,
            memory_width=self.vision_width,
            max_positions=self.max_positions,
        )


BLIP_BASE = BLIPConfig()
BLIP_LARGE = BLIPConfig(vision_width=1024, vision_layers=24, vision_heads=16)
ARCHITECTURES = {"blip-base": BLIP_BASE, "blip-large": BLIP_LARGE}

# The same parts in Salesforce's release, which differs in the LayerNorms' epsilon too: the hub's says 1e-5.
SALESFORCE_NAMES = (
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
    ("vision_model.post_layernorm", "visual_encoder.norm"),
    ("vision_model.encoder.layers", "visual_encoder.blocks"),
    (".self_attn.qkv", ".attn.qkv"),
    (".self_attn.projection", ".attn.proj"),
    (".layer_norm1", ".norm1"),
    (".layer_norm2", ".norm2"),
)
SALESFORCE_EPSILON = 1e-6


class VisionAttention(nn.Module):
    """Self-attention with its three projections in one linear map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        queries, keys, values = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.projection(merge_heads(F.scaled_dot_product_attention(queries, keys, values)))


class VisionLayer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps=epsilon)
        self.self_attn = VisionAttention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.layer_norm2(x))))


class PatchEmbeddings(nn.Module):
    """Patches, a class token before them, and their positions."""

    def __init__(self, image_size: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(1, 1, width))
        self.position_embedding = nn.Parameter(torch.randn(1, 1 + (image_size // patch_size) ** 2, width))
        self.patch_embedding = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """F32 (B, 3, V, V) -> (B, N, D), N = 1 + (V / patch_size)^2."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        start = self.class_embedding.expand(patches.shape[0], -1, -1)
        return torch.cat([start, patches], dim=1) + self.position_embedding


class BLIP(nn.Module):
    """The whole network: `encode` a picture, then `step` by step."""

    def __init__(self, config: BLIPConfig) -> None:
        super().__init__()
        width, epsilon = config.vision_width, config.vision_epsilon
        layers = [VisionLayer(width, config.vision_heads, epsilon) for _ in range(config.vision_layers)]
        self.vision_model = nn.ModuleDict(
            {
                "embeddings": PatchEmbeddings(config.image_size, config.patch_size, width),
                "encoder": nn.ModuleDict({"layers": nn.Sequential(*layers)}),
                "post_layernorm": nn.LayerNorm(width, eps=epsilon),
            }
        )
        self.text_decoder = bert.Decoder(config.decoder())

    def encode(self, pixels: Tensor) -> list[KeysValues]:
        """Normalised f32 (B, 3, V, V) -> the picture's keys and values for each decoder layer."""
        x = self.vision_model["embeddings"](pixels)  # (B, N, D)
        x = self.get_submodule("vision_model.encoder.layers")(x)
        return self.text_decoder.memory(self.vision_model["post_layernorm"](x))

    def step(
        self, memory: list[KeysValues], token_ids: Tensor, now: Now, caches: Caches
    ) -> tuple[Tensor, Caches]:
        """One token further; see `search.Step`."""
        return self.text_decoder.step(memory, token_ids, now, caches)


def read(checkpoint: Path, config: BLIPConfig) -> BLIP:
    """The network with its weights, in the hub's layout or Salesforce's.

    CheckpointError names what does not fit, in the file's own names.
    """
    tensors = checkpoints.read(checkpoint).tensors("model")
    salesforce = "visual_encoder.cls_token" in tensors
    network = BLIP(replace(config, vision_epsilon=SALESFORCE_EPSILON) if salesforce else config)
    tensors = bert.complete(tensors, network.text_decoder, "text_decoder.")
    if salesforce:
        tensors = from_salesforce(network, tensors, checkpoint)
    checkpoints.fill(network, tensors, checkpoint, "this BLIP")
    return network


def from_salesforce(network: BLIP, tensors: Mapping[str, Tensor], checkpoint: Path) -> dict[str, Tensor]:
    """Salesforce's layout under the hub's names; CheckpointError speaks in Salesforce's names."""
    own = network.state_dict()
    expected = {salesforce_name(name): tensor for name, tensor in own.items()}
    checkpoints.check(expected, tensors, checkpoint, "this BLIP in Salesforce's layout")
    return {name: tensors[salesforce_name(name)] for name in own}


def salesforce_name(name: str) -> str:
    """What Salesforce's release calls the tensor that the hub calls `name`."""
    if not name.startswith("vision_model."):
        return name
    for hub, salesforce in SALESFORCE_NAMES:
        name = name.replace(hub, salesforce)
    return name


def load(checkpoint: Path, options: Options) -> Loaded:
    """A BLIP of any size, in either layout -> graph; picture and search as in the official captioning."""
    config = architecture(options.arch or "blip-base", ARCHITECTURES, BLIPConfig)
    return captioner(
        read(checkpoint, config),
        options,
        search=SearchOptions(
            config.start,
            config.end,
            config.max_tokens,
            beams=3,
            length_penalty=1.0,
            rules=TRANSFORMERS,
            min_tokens=config.min_tokens,
            prompt=config.prompt,
        ),
        preprocessing=Preprocessing(
            "view", config.image_size, "stretch", "bicubic", antialias=True, mean=CLIP_MEAN, std=CLIP_STD
        ),
        tokenizer={
            "kind": "wordpiece",
            "vocabulary": config.vocabulary,
            "start": config.start,
            "end": config.end,
        },
        max_positions=config.max_positions,
    )


for size, arch, parameters in (("base", "ViT-B/16", 223_971_644), ("large", "ViT-L/16", 446_290_492)):
    register(
        name=f"blip-{size}",
        role="captioner",
        title=f'BLIP {size} ({arch}), led by "a picture of", beam search',
        source=f"hf://Salesforce/blip-image-captioning-{size}; https://github.com/salesforce/BLIP",
        code_licence="BSD-3-Clause",
        weights_licence="BSD-3-Clause",
        arch=f"blip-{size}",
        options=("arch", "beams", "max_tokens"),
        parameters=parameters,
        input_size=384,
    )(load)
