"""GIT, the captioner of Wang et al. 2022 (arXiv:2205.14100): CLIP's image encoder, then a BERT-style decoder.

The modules carry the names of Microsoft's release (github.com/microsoft/GenerativeImage2Text), so that
`state_dict()` is the official layout. Image tokens attend to image tokens only, caption tokens to the
image and to the caption so far: the image's keys and values are computed once and serve every caption token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tercet_export import checkpoints
from tercet_export.networks.bert import AddAndNorm, merge_heads, split_heads
from tercet_export.networks.captioner import CLIP_MEAN, CLIP_STD, captioner
from tercet_export.networks.clip_vision import ImageEncoder, VisionSizes
from tercet_export.networks.search import Caches, KeysValues, Now, SearchOptions, store
from tercet_export.registry import Loaded, Options, Preprocessing, architecture, register


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

    def vision(self) -> VisionSizes:
        """The sizes of the image encoder."""
        return VisionSizes(
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.vision_width,
            layers=self.vision_layers,
            heads=self.vision_heads,
            projection=self.vision_projection,
        )


GIT_BASE = GITConfig()
GIT_LARGE = GITConfig(
    patch_size=14, vision_width=1024, vision_layers=24, vision_heads=16, vision_projection=768
)
ARCHITECTURES = {"git-base": GIT_BASE, "git-large": GIT_LARGE}

BEAMS = 4  # of the official search, whose other rules are SearchOptions' defaults

# Where the hub's layout (transformers' GitForCausalLM) says it otherwise; {} is q, k and v, split there.
HUB_NAMES = (
    ("textual.embedding.words", "git.embeddings.word_embeddings"),
    ("textual.embedding.positions", "git.embeddings.position_embeddings"),
    ("textual.embedding.layer_norm", "git.embeddings.LayerNorm"),
    ("textual.visual_projection", "git.visual_projection.visual_projection"),
    ("textual.transformer.encoder", "git.encoder"),
    ("textual.output", "output"),
    ("image_encoder.class", "git.image_encoder.vision_model.embeddings.class"),
    (
        "image_encoder.positional_embedding",
        "git.image_encoder.vision_model.embeddings.position_embedding.weight",
    ),
    ("image_encoder.conv1", "git.image_encoder.vision_model.embeddings.patch_embedding"),
    ("image_encoder.ln_pre", "git.image_encoder.vision_model.pre_layrnorm"),
    ("image_encoder.ln_post", "git.image_encoder.vision_model.post_layernorm"),
    ("image_encoder.transformer.resblocks", "git.image_encoder.vision_model.encoder.layers"),
    (".attn.in_proj_", ".self_attn.{}_proj."),
    (".attn.out_proj", ".self_attn.out_proj"),
    (".ln_1", ".layer_norm1"),
    (".ln_2", ".layer_norm2"),
    (".mlp.c_fc", ".mlp.fc1"),
    (".mlp.c_proj", ".mlp.fc2"),
)
UNUSED = "image_encoder.proj"  # left out of the hub's layout


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
        # A step has few queries: with the keys on the left they are read as they lie.
        to_image = (image[0] @ queries.transpose(-1, -2)).transpose(-1, -2)  # (B, heads, T, N)
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
    """The whole network: `logits` for training and checks, `encode` and `step` for the search."""

    def __init__(self, config: GITConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config.vision())
        self.textual = Textual(config)

    def encode(self, pixels: Tensor) -> list[KeysValues]:
        """Normalised f32 (B, 3, V, V) -> the image's keys and values for each decoder layer."""
        x = self.textual.visual_projection(self.image_encoder(pixels))  # (B, N, D)
        image = [self.textual.layers[0].keys_values(x)]
        for below, layer in pairwise(self.textual.layers):
            x = below.encode(x, image[-1])
            image.append(layer.keys_values(x))
        return image

    def step(
        self, memory: list[KeysValues], token_ids: Tensor, now: Now, caches: Caches
    ) -> tuple[Tensor, Caches]:
        """One token further, the beams in the place of positions; see `search.Step`."""
        x = self.textual.embed(token_ids, now.position)  # (B, beams, D)
        updated: list[KeysValues] = []
        for layer, image, cache in zip(self.textual.layers, memory, caches, strict=True):
            text = store(cache, now, layer.keys_values(x))
            updated.append(text)
            x = layer.decode(x, image, text, now.visible)
        return self.textual.output(x), tuple(updated)

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
        for layer, image in zip(self.textual.layers, self.encode(pixels), strict=True):
            x = layer.decode(x, image, layer.keys_values(x), causal)
        return self.textual.output(x)


def read_weights(network: GIT, checkpoint: Path) -> None:
    """Fill `network` from Microsoft's container or the hub's; CheckpointError names what does not fit."""
    tensors = checkpoints.read(checkpoint).tensors("model")
    if "git.embeddings.word_embeddings.weight" in tensors:
        tensors = from_hub(network, tensors, checkpoint)
    words, output = (tensors.get(f"textual.{name}.weight") for name in ("embedding.words", "output"))
    if words is not None and output is not None and not torch.equal(words, output):
        network.textual.output.weight = nn.Parameter(torch.empty_like(network.textual.output.weight))
    checkpoints.fill(network, tensors, checkpoint, "this GIT")


def from_hub(network: GIT, tensors: Mapping[str, Tensor], checkpoint: Path) -> dict[str, Tensor]:
    """The hub's layout under Microsoft's names; CheckpointError speaks in the hub's names."""
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".position_ids")}
    own = network.state_dict()
    parts = {name: hub_names(name) for name in own if name != UNUSED}
    expected = {
        hub: part
        for name, hubs in parts.items()
        for hub, part in zip(hubs, own[name].chunk(len(hubs)), strict=True)
    }
    checkpoints.check(expected, tensors, checkpoint, "this GIT in the hub's layout")
    joined = {name: torch.cat([tensors[hub] for hub in hubs]) for name, hubs in parts.items()}
    return joined | {UNUSED: torch.zeros_like(own[UNUSED])}


def hub_names(name: str) -> list[str]:
    """The tensors in the hub's layout that make up the one called `name` in Microsoft's."""
    for official, hub in HUB_NAMES:
        name = name.replace(official, hub)
    return [name.format(part) for part in "qkv"] if "{}" in name else [name]


def load(checkpoint: Path, options: Options) -> Loaded:
    """A GIT of any size, in either layout -> graph; preprocessing as in the official `inference.py`."""
    config = architecture(options.arch or "git-base", ARCHITECTURES, GITConfig)
    network = GIT(config)
    read_weights(network, checkpoint)
    return captioner(
        network,
        options,
        search=SearchOptions(config.start, config.end, config.max_tokens, beams=BEAMS),
        preprocessing=Preprocessing(
            "view", config.image_size, "shortest", "bicubic", antialias=True, mean=CLIP_MEAN, std=CLIP_STD
        ),
        tokenizer={
            "kind": "wordpiece",
            "vocabulary": config.vocabulary,
            "start": config.start,
            "end": config.end,
        },
        max_positions=config.max_positions,
    )


for size, arch, parameters in (("base", "ViT-B/16", 153_571_386), ("large", "ViT-L/14", 371_541_562)):
    register(
        name=f"git-{size}",
        role="captioner",
        title=f"GIT {size} ({arch}), greedy or beam search",
        source="https://github.com/microsoft/GenerativeImage2Text; hf://microsoft/git-" + size + "-coco",
        code_licence="MIT",
        weights_licence="MIT",
        arch=f"git-{size}",
        options=("arch", "beams", "max_tokens"),
        parameters=parameters,
        input_size=224,
    )(load)
