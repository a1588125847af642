"""CLIP (Radford et al. 2021, arXiv:2103.00020) and SigLIP (Zhai et al. 2023, arXiv:2303.15343; SigLIP 2,
arXiv:2502.14786) in any architecture of open_clip: `clip_image` and `clip_text` graphs.

The network is open_clip's own, or timm's inside open_clip. Its architecture is an open_clip name, a JSON
file of the same form, or the `open_clip_config.json` that lies beside the weights (`clip_architecture.py`).
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, text_global_pool
from torch import Tensor, nn

from tercet.errors import CheckpointError, ExportError
from tercet_export import checkpoints
from tercet_export.networks.clip_architecture import (
    OPENAI_NOTES,
    Architecture,
    check_activation,
    find_architecture,
    find_preprocess,
    tokenizer_details,
)
from tercet_export.networks.clip_vision import VisionAttention
from tercet_export.registry import Loaded, Options, Preprocessing, register

# Biases, norms and, of most, the text's positions: enough to tell two trainings apart, and read in no time.
DIGESTED = 100_000

LOGITS = ("logit_scale", "logit_bias")

# Texts are cut to a multiple of so many tokens: an engine that prepares itself for each shape meets few.
ROUNDED = 4

RESIZE = {"shortest": "shortest", "squash": "stretch"}


def build(architecture: Architecture) -> CLIP | CustomTextCLIP:
    """The network of an architecture, with random weights."""
    config = dict(architecture.model)
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    if config["text_cfg"].get("hf_model_name") or "multimodal_cfg" in config:
        raise ExportError(f"{architecture.name} has a text tower that is not CLIP's, which is not supported")
    try:
        return kind(**config)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ExportError(f"architecture {architecture.name} cannot be built: {error}") from error


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Parameters made inside have shapes and no memory (torch's meta device); buffers are as always."""
    register_parameter = nn.Module.register_parameter

    def register_shape(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register_parameter(module, name, parameter)

    nn.Module.register_parameter = register_shape  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register_parameter  # type: ignore[method-assign]


def load_network(checkpoint: Path, options: Options) -> tuple[CLIP | CustomTextCLIP, Architecture]:
    """The whole network with the checkpoint's weights in f32.

    Weights that are f32 already are not copied: they stay in the file until they are read, so that several
    gigabytes of them need no memory of their own.
    """
    content = checkpoints.read(checkpoint)
    tensors = content.tensors("state_dict")
    architecture = find_architecture(options.arch, checkpoint)
    check_activation(architecture, content, tensors)
    for note in OPENAI_NOTES:
        tensors.pop(note, None)
    with without_weights():
        network = build(architecture)
    shapes = network.state_dict()
    for name in LOGITS:  # a scalar or a vector of one, as the training had it
        if name in tensors and name in shapes and tensors[name].numel() == 1:
            tensors[name] = tensors[name].reshape(shapes[name].shape)
    try:
        checkpoints.check(shapes, tensors, checkpoint, f"open_clip's {architecture.name}")
    except CheckpointError as error:
        if right := architectures_of(tensors):
            raise CheckpointError(f"{error}. These weights are of --arch {' or '.join(right)}") from error
        raise
    weights = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    network.load_state_dict(weights, assign=True)
    return network.eval(), architecture


def architectures_of(tensors: Mapping[str, Tensor]) -> list[str]:
    """open_clip's names whose networks have exactly these tensors; some differ in the activation alone."""
    prefix = "text." if "text.token_embedding.weight" in tensors else ""
    words = tensors.get(f"{prefix}token_embedding.weight")
    places = tensors.get(f"{prefix}positional_embedding")
    if words is None or places is None:
        return []
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    names = []
    for name in open_clip.list_models():
        architecture = Architecture(name, open_clip.get_model_config(name), {})
        text = {"vocab_size": 49408, "width": 512, "context_length": 77, **architecture.model["text_cfg"]}
        sizes = ([text["vocab_size"], text["width"]], [text["context_length"], text["width"]])
        if "hf_model_name" in text or sizes != (list(words.shape), list(places.shape)):
            continue  # cheap to see; the network takes a second to build
        with contextlib.suppress(ExportError), without_weights():
            wanted = build(architecture).state_dict()
            if {tensor: weight.shape for tensor, weight in wanted.items()} == shapes:
                names.append(name)
    return names


def described(network: CLIP | CustomTextCLIP, architecture: Architecture) -> dict[str, Any]:
    """What the manifest says of either tower.

    A cosine times `logit_scale` plus `logit_bias` is a logit. SigLIP's probability that a text fits a picture
    is the sigmoid of it; CLIP's, without bias, the softmax over several texts.
    """
    scale, bias = network.logit_scale.item(), network.logit_bias
    return {
        "arch": architecture.name,
        "embedding_dimension": architecture.model["embed_dim"],
        "logit_scale": round(math.exp(scale), 4),
        "logit_bias": 0.0 if bias is None else round(bias.item(), 4),
    }


def clip_digest(tensors: Mapping[str, Tensor]) -> str:
    """Names a CLIP by its smaller tensors, as f16: equal for every copy of its weights in open_clip's layout,
    in f32 or in f16, whatever the file. A mapping network notes by it which CLIP it was trained for.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if tensor.is_floating_point() and tensor.numel() <= DIGESTED:
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().half().numpy().tobytes())
    return digest.hexdigest()


class BlockAttention(VisionAttention):
    """What open_clip's blocks call as nn.MultiheadAttention, with that one's weights."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        with torch.device("meta"):
            super().__init__(attention.embed_dim, attention.num_heads)
        self.load_state_dict(attention.state_dict(), assign=True)

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, None]:
        """The attention of (B, N, D) to itself, and no weights."""
        return super().forward(query, attn_mask), None


def plain_attention(tower: nn.Module) -> None:
    """Replace nn.MultiheadAttention in open_clip's blocks.

    That one puts batch and heads into one axis, which no exporter takes apart again: 200 operations of a
    graph of 600 turn tensors round.
    """
    for block in list(tower.modules()):
        if isinstance(block, ResidualAttentionBlock) and isinstance(block.attn, nn.MultiheadAttention):
            block.attn = BlockAttention(block.attn).requires_grad_(False)


class ImageTower(nn.Module):
    """The `clip_image` graph around a visual tower that takes normalised pictures."""

    mean: Tensor
    std: Tensor

    def __init__(self, visual: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels u8 (B, P, P, 3) -> embedding of unit length and features, both f32 (B, D)."""
        x = pixels.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        features = self.visual((x - self.mean) / self.std).float()
        return F.normalize(features, dim=-1), features


class TextTower(nn.Module):
    """The `clip_text` graph: open_clip's text tower with the embedding of one token replaced."""

    def __init__(self, tower: Any, pool_type: str, end: int) -> None:
        super().__init__()
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.transformer = tower.transformer
        self.ln_final = tower.ln_final
        self.text_projection = tower.text_projection
        self.causal, self.pool_type, self.end = tower.attn_mask is not None, pool_type, end

    def forward(self, token_ids: Tensor, pseudo_token: Tensor, pseudo_index: Tensor) -> tuple[Tensor]:
        """Ids (B, T), pseudo-token (B, W), its place (B, 1) or -1 -> embedding f32 (B, D) of unit length."""
        length = self.length_read(token_ids)
        token_ids = token_ids[:, :length]
        words = self.token_embedding(token_ids)  # (B, T, W), with T the longest text's from here on
        places = torch.arange(words.shape[1], device=words.device, dtype=pseudo_index.dtype)
        here = places[None, :] == pseudo_index  # (B, T)
        x = torch.where(here[:, :, None], pseudo_token.to(words.dtype)[:, None, :], words)
        mask = words.new_full((length, length), -math.inf).triu(1) if self.causal else None
        x = self.ln_final(self.transformer(x + self.positional_embedding[:length], attn_mask=mask))
        x = text_global_pool(x, token_ids, self.pool_type, eos_token_id=self.end)
        if isinstance(self.text_projection, nn.Linear):
            x = self.text_projection(x)
        elif self.text_projection is not None:
            x = x @ self.text_projection
        return (F.normalize(x.float(), dim=-1),)

    def length_read(self, token_ids: Tensor) -> int:
        """How many of T tokens the embeddings depend on, a multiple of `ROUNDED`.

        In a causal tower what follows the pooled token has no part in it, and most texts are a quarter of T.
        A traced graph reads all of them: tracing would keep the length of its example.
        """
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
        if not self.causal or self.pool_type not in ("argmax", "eos") or tracing:
            return token_ids.shape[1]
        ends = token_ids if self.pool_type == "argmax" else (token_ids == self.end).int()
        longest = ends.argmax(dim=1).max() + 1
        rounded = (longest + ROUNDED - 1) // ROUNDED * ROUNDED
        length: Any = rounded.clamp(max=token_ids.shape[1]).item()  # a symbol while it is exported
        torch._check(length > 0)
        torch._check(length <= token_ids.shape[1])
        return length


WEIGHTS_LICENCE = "OpenAI: MIT; SigLIP: Apache-2.0; others: see their model card"
SOURCE = "https://github.com/mlfoundations/open_clip (weights of OpenAI, LAION, Google and others)"


@register(
    name="clip-image",
    role="clip_image",
    title="CLIP's or SigLIP's image encoder, any open_clip architecture",
    source=SOURCE,
    code_licence="MIT",
    weights_licence=WEIGHTS_LICENCE,
)
def load_image(checkpoint: Path, options: Options) -> Loaded:
    """The visual tower; preprocessing as the weights were trained with, as far as anything tells."""
    network, architecture = load_network(checkpoint, options)
    visual, name = network.visual, architecture.name
    plain_attention(visual)
    size = visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    preprocess = find_preprocess(architecture, checkpoint)
    resize = RESIZE.get(preprocess["resize_mode"])
    if height != width or resize is None:
        raise ExportError(f"{name} takes pictures that are not square, or padded: not supported")
    mean, std = tuple(preprocess["mean"]), tuple(preprocess["std"])
    return Loaded(
        graph=ImageTower(visual, mean, std),
        sizes={"P": height, "D": architecture.model["embed_dim"]},
        preprocessing=Preprocessing(
            "pixels", height, resize, preprocess["interpolation"], antialias=True, mean=mean, std=std
        ),
        details={**described(network, architecture), "clip_digest": clip_digest(network.state_dict())},
    )


@register(
    name="clip-text",
    role="clip_text",
    title="CLIP's text encoder with a pseudo-word, or SigLIP's, any open_clip architecture",
    source=SOURCE,
    code_licence="MIT",
    weights_licence=WEIGHTS_LICENCE,
)
def load_text(checkpoint: Path, options: Options) -> Loaded:
    """The text tower, and how `tokenize_text` must prepare its tokens."""
    network, architecture = load_network(checkpoint, options)
    tower = network.text if isinstance(network, CustomTextCLIP) else network
    plain_attention(tower.transformer)
    length, width = int(tower.context_length), int(tower.token_embedding.embedding_dim)
    tokenizer = tokenizer_details(architecture, int(tower.vocab_size))
    custom = isinstance(tower, TextTransformer)
    pool_type = tower.pool_type if custom else tower.text_pool_type
    end = tower.eos_id if custom else tower.text_eos_id
    if pool_type == "eos" and end != tokenizer["end"]:
        raise ExportError(
            f"{architecture.name} pools at token {end}, and its texts end with {tokenizer['end']}"
        )
    return Loaded(
        graph=TextTower(tower, pool_type, end),
        sizes={"T": length, "W": width, "D": architecture.model["embed_dim"]},
        details={
            **described(network, architecture),
            "context_length": length,
            "token_width": width,
            "tokenizer": tokenizer,
        },
    )
