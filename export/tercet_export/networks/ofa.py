"""OFA, the captioner of Wang et al. 2022 (arXiv:2202.03052): one encoder for picture and prompt, one decoder.

`state_dict()` is the hub's and ModelScope's layout without what only image generation uses; the files of
github.com/OFA-Sys/OFA (fairseq) are read too. Captioning as in that repository's
`run_scripts/caption/evaluate_caption.sh`: 480 pixels, 5 beams, at most 16 tokens, no trigram twice.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from tercet.errors import CheckpointError, ExportError
from tercet_export import checkpoints
from tercet_export.networks.captioner import Captioner, captioner
from tercet_export.networks.ofa_encoder import Encoder
from tercet_export.networks.ofa_layers import (
    DecoderLayer,
    OFAConfig,
    position_bias,
    tables,
    token_buckets,
)
from tercet_export.networks.rules import FAIRSEQ
from tercet_export.networks.search import Caches, KeysValues, Now, SearchOptions, row_positions, store
from tercet_export.registry import Loaded, Options, Preprocessing, architecture, register

TINY = OFAConfig(resnet=(3, 4, 6), width=256, encoder_layers=4, decoder_layers=4, heads=4, feedforward=1024)
MEDIUM = OFAConfig(width=512, encoder_layers=4, decoder_layers=4, heads=8, feedforward=2048)
BASE = OFAConfig()
LARGE = OFAConfig(
    resnet=(3, 8, 36), width=1024, encoder_layers=12, decoder_layers=12, heads=16, feedforward=4096
)
ARCHITECTURES = {"ofa-tiny": TINY, "ofa-medium": MEDIUM, "ofa-base": BASE, "ofa-large": LARGE}

# What fairseq's files say otherwise than the hub's, in the encoder's layers and in the decoder's.
FAIRSEQ_NAMES = {
    "encoder.layers.": (
        (".self_attn_mid_layer_norm.", ".attn_ln."),
        (".ffn_layer_norm.", ".ffn_layernorm."),
    ),
    "decoder.layers.": (
        (".self_attn_mid_layer_norm.", ".self_attn_ln."),
        (".cross_attn_mid_layer_norm.", ".cross_attn_ln."),
        (".cross_attn_layer_norm.", ".encoder_attn_layer_norm."),
        (".cross_attn.", ".encoder_attn."),
        (".ffn_layer_norm.", ".ffn_layernorm."),
    ),
}

# One table, of which a file may hold one copy or three; the official code keeps the last of these.
WORDS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")

# fairseq writes the first two and reads neither; the third it computes anew, whatever the file says.
IGNORED = ("encoder.version", "decoder.version", "decoder.image_position_idx")


class Decoder(nn.Module):
    """`place` once, when the weights are there; then `memory` once a picture and `step` by step."""

    token_rp_bucket: Tensor
    self_bias: Tensor
    cross_bias: Tensor

    def __init__(self, config: OFAConfig, embed_tokens: nn.Embedding) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.register_buffer("token_rp_bucket", token_buckets(config.token_bucket, config.max_positions))
        self.embed_tokens = embed_tokens
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.layernorm_embedding = nn.LayerNorm(width)
        self.embed_positions = nn.Embedding(config.max_positions + 2, width)
        self.pos_ln = nn.LayerNorm(width)
        self.self_pos_q_linear = nn.Linear(width, width)
        self.self_pos_k_linear = nn.Linear(width, width)
        self.cross_pos_q_linear = nn.Linear(width, width)
        self.cross_pos_k_linear = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width)
        self.output_projection = nn.Linear(width, config.vocabulary, bias=False)
        self.output_projection.weight = embed_tokens.weight
        self.token_rel_pos_table_list = tables(config.decoder_layers, config.token_rows, config.heads)

    def place(self, source: Tensor, count: int, rows: Tensor) -> None:
        """Prepare the biases of `count` positions to the cache's rows (R) and to the source's (N, D)."""
        config, places = self.config, torch.arange(count)
        positions = self.pos_ln(self.embed_positions(places))  # (T, D)
        own = position_bias(self.self_pos_q_linear(positions), self.self_pos_k_linear(positions), config)
        buckets = self.token_rp_bucket[places][:, places]
        relative = [table(buckets).permute(2, 0, 1) for table in self.token_rel_pos_table_list]
        self_bias = torch.stack([own + bias for bias in relative])[..., rows]  # (layers, heads, T, R)
        cross_bias = position_bias(
            self.cross_pos_q_linear(positions), self.cross_pos_k_linear(source), config
        )
        self.register_buffer("self_bias", self_bias, persistent=False)
        self.register_buffer("cross_bias", cross_bias, persistent=False)  # (heads, T, N)

    def memory(self, source: Tensor) -> list[KeysValues]:
        """What the encoder found (B, N, D) -> its keys and values for each layer."""
        return [layer.cross_attn.keys_values(source) for layer in cast(list[DecoderLayer], self.layers)]

    def step(
        self, memory: list[KeysValues], token_ids: Tensor, now: Now, caches: Caches
    ) -> tuple[Tensor, Caches]:
        """One token further, the beams in the place of positions; see `search.Step`."""
        # Positions act by biases alone: every official file was trained with `--disable-entangle`.
        x = self.layernorm_embedding(self.embed_tokens(token_ids))  # (B, beams, D)
        place = now.position.reshape(-1)
        self_biases = self.self_bias.index_select(2, place).unbind()  # (heads, 1, R) of each layer
        cross_bias = self.cross_bias.index_select(1, place)  # (heads, 1, N)
        updated: list[KeysValues] = []
        layers = cast(list[DecoderLayer], self.layers)
        for layer, self_bias, source, cache in zip(layers, self_biases, memory, caches, strict=True):
            normed = layer.self_attn_layer_norm(x)
            text = store(cache, now, layer.self_attn.keys_values(normed))
            updated.append(text)
            x = x + layer.read_caption(normed, text, self_bias, now.visible)
            x = x + layer.read_source(x, source, cross_bias)
            x = layer.feed_forward(x)
        return self.output_projection(self.layer_norm(x)), tuple(updated)


class OFA(nn.Module):
    """The whole network: `place`, then `encode` a picture and `step` by step."""

    def __init__(self, config: OFAConfig) -> None:
        super().__init__()
        embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.encoder = Encoder(config, embed_tokens)
        self.decoder = Decoder(config, embed_tokens)

    @torch.no_grad()
    def place(self, options: SearchOptions) -> None:
        """Prepare what follows from the positions of prompt, cells and caption alone."""
        self.decoder.place(self.encoder.place(), options.positions, row_positions(options))

    def encode(self, pixels: Tensor) -> list[KeysValues]:
        """Normalised f32 (B, 3, V, V) -> the picture's keys and values for each decoder layer."""
        return self.decoder.memory(self.encoder(pixels))

    def step(
        self, memory: list[KeysValues], token_ids: Tensor, now: Now, caches: Caches
    ) -> tuple[Tensor, Caches]:
        """One token further; see `search.Step`."""
        return self.decoder.step(memory, token_ids, now, caches)


def unused(config: OFAConfig) -> dict[str, Tensor]:
    """What every official file holds for generating pictures and captioning never reads, without values."""
    width, cells = config.width, config.image_bucket**2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "image_rp_bucket": (cells, cells),
        "embed_image_positions.weight": (cells, width),
        **{
            f"{norm}.{part}": (width,)
            for norm in ("image_pos_ln", "code_layernorm_embedding")
            for part in ("weight", "bias")
        },
        **{
            f"image_rel_pos_table_list.{layer}.weight": (config.image_rows, config.heads)
            for layer in range(config.decoder_layers)
        },
    }
    return {f"decoder.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}


def fairseq_name(name: str) -> str:
    """What fairseq's files call the tensor that the hub calls `name`."""
    for layers, renamed in FAIRSEQ_NAMES.items():
        if name.startswith(layers):
            for hub, fairseq in renamed:
                name = name.replace(hub, fairseq)
    return name


def read(checkpoint: Path, config: OFAConfig) -> OFA:
    """The network with its weights, in the hub's layout or fairseq's.

    CheckpointError names what does not fit, in the file's own names.
    """
    given = checkpoints.read(checkpoint).tensors("model")
    given = {name: tensor for name, tensor in given.items() if name not in IGNORED}
    words = next((given[name] for name in reversed(WORDS) if name in given), None)
    if words is not None:
        given |= dict.fromkeys(WORDS, words)
    network = OFA(config)
    own: Mapping[str, Tensor] = network.state_dict()
    fairseq = any(".encoder_attn." in name for name in given)
    called = {name: fairseq_name(name) if fairseq else name for name in own}
    expected = {called[name]: tensor for name, tensor in own.items()} | unused(config)
    layout = "fairseq's layout" if fairseq else "the hub's layout"
    checkpoints.check(expected, given, checkpoint, f"this OFA in {layout}")
    network.load_state_dict({name: given[called[name]] for name in own})
    for name, rows in (
        ("encoder.image_rp_bucket", config.image_rows),
        ("encoder.token_rp_bucket", config.token_rows),
        ("decoder.token_rp_bucket", config.token_rows),
    ):
        if int(own[name].min()) < 0 or int(own[name].max()) >= rows:
            raise CheckpointError(
                f"{checkpoint} is damaged: {name} points past {rows} relative positions. Download it again"
            )
    return network


def load(checkpoint: Path, options: Options) -> Loaded:
    """An OFA of any size, in either layout -> graph; picture and search as in the official captioning.

    `size` is the side of the pictures that the checkpoint was finetuned with.
    """
    config = architecture(options.arch or "ofa-base", ARCHITECTURES, OFAConfig)
    config = replace(config, image_size=options.size or config.image_size)
    if config.grid > config.image_bucket:
        raise ExportError(
            f"pictures of {config.image_size} pixels are too large for this network, whose positions are "
            f"{config.image_bucket} in a row: give --size {16 * config.image_bucket} or less"
        )
    network = read(checkpoint, config)
    loaded = captioner(
        network,
        options,
        search=SearchOptions(
            config.start,
            config.end,
            config.max_tokens,
            beams=5,
            length_penalty=1.0,
            rules=FAIRSEQ,
            min_tokens=1,
            no_repeat_ngram=3,
            never=(config.pad,),
        ),
        preprocessing=Preprocessing(
            "view",
            config.image_size,
            "stretch",
            "bicubic",
            antialias=True,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        tokenizer={
            "kind": "ofa-bpe",
            "vocabulary": config.vocabulary,
            "start": config.start,
            "end": config.end,
            "published": "hf://OFA-Sys/ofa-base",
        },
        max_positions=config.max_positions,
    )
    network.place(cast(Captioner, loaded.graph).options)
    return loaded


for size, trunk, parameters in (
    ("tiny", "50", 33_488_336),
    ("medium", "101", 92_892_000),
    ("base", "101", 182_238_536),
    ("large", "152", 472_977_152),
):
    finetuned = size in ("base", "large")
    register(
        name=f"ofa-{size}",
        role="captioner",
        title=f"OFA {size} (ResNet-{trunk}), asked what the image describes, beam search",
        source="https://github.com/OFA-Sys/OFA/blob/main/checkpoints.md"
        + ("" if finetuned else " (pretrained, for 256 pixels)"),
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0",
        arch=f"ofa-{size}",
        options=("arch", "size", "beams", "max_tokens"),
        parameters=parameters,
        input_size=480,
    )(load)
