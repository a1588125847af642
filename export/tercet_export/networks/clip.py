"""CLIP (Radford et al. 2021, arXiv:2103.00020) in any architecture of open_clip: `clip_image` and
`clip_text` graphs.

The network is open_clip's own. Its architecture is an open_clip name, a JSON file of the same form, or the
`open_clip_config.json` that lies beside the weights.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn

from tercet.errors import CheckpointError, ExportError
from tercet_export import checkpoints
from tercet_export.registry import Loaded, Options, Preprocessing, register

HUB_CONFIG = "open_clip_config.json"

# Stored in OpenAI's archives as tensors, and in nobody else's.
OPENAI_NOTES = ("input_resolution", "context_length", "vocab_size")

# Biases, norms and, of most, the text's positions: enough to tell two trainings apart, and read in no time.
DIGESTED = 100_000

RESIZE = {"shortest": "shortest", "squash": "stretch"}


@dataclass(frozen=True)
class Architecture:
    """What to build: open_clip's `model_cfg` and `preprocess_cfg`, and what to call it in messages."""

    name: str
    model: Mapping[str, Any]
    preprocess: Mapping[str, Any]

    @property
    def quick_gelu(self) -> bool:
        """Whether its activation is OpenAI's approximation x * sigmoid(1.702 x)."""
        return bool(self.model.get("quick_gelu", False))


def find_architecture(arch: str | None, checkpoint: Path) -> Architecture:
    """An open_clip name, a JSON file, or without either the configuration beside the checkpoint.

    Raises ExportError where there is none, or where it is not one of open_clip's form.
    """
    path = Path(arch) if arch else checkpoint.parent / HUB_CONFIG
    if path.suffix == ".json" and (arch or path.is_file()):
        try:
            content = json.loads(path.read_text())
            model = content.get("model_cfg", content)
            if not {"embed_dim", "vision_cfg", "text_cfg"} <= model.keys():
                raise ValueError("open_clip's embed_dim, vision_cfg and text_cfg are needed")
        except (OSError, ValueError, AttributeError) as error:
            raise ExportError(f"architecture file {path} cannot be used: {error}") from error
        return Architecture(path.name, model, content.get("preprocess_cfg", {}))
    if arch is None:
        raise ExportError(
            f"{checkpoint} does not say its architecture: give --arch, an open_clip name such as "
            "ViT-B-32-quickgelu or a JSON file"
        )
    model = open_clip.get_model_config(arch)
    if model is None:
        alike = difflib.get_close_matches(arch, open_clip.list_models(), n=5, cutoff=0.3)
        raise ExportError(
            f"open_clip has no architecture {arch!r}: give a name such as {', '.join(alike)}, or a JSON file"
        )
    return Architecture(arch, model, {})


def check_activation(architecture: Architecture, checkpoint: checkpoints.Checkpoint, names: Mapping) -> None:
    """Refuse QuickGELU weights in a GELU architecture, and the reverse: CheckpointError with the right name.

    The activation has no tensors. OpenAI's weights show by their container or by the notes stored with
    them, and a checkpoint from the hub by the configuration beside it; for any other the architecture given
    is believed.
    """
    beside = checkpoint.path.parent / HUB_CONFIG
    if checkpoint.container == "torchscript" or any(name in names for name in OPENAI_NOTES):
        wanted, why = True, "holds OpenAI's weights, which were trained with QuickGELU"
    elif beside.is_file():
        wanted = find_architecture(str(beside), beside).quick_gelu
        why = f"was trained with {'QuickGELU' if wanted else 'GELU'}, says the {HUB_CONFIG} beside it"
    else:
        return
    if wanted == architecture.quick_gelu:
        return
    name = architecture.name
    right = f"{name}-quickgelu" if wanted else name.removesuffix("-quickgelu")
    cure = f"use --arch {right}"
    if right not in open_clip.list_models():
        cure = f'set "quick_gelu": {str(wanted).lower()} in the architecture {name}'
    raise CheckpointError(f"{checkpoint.path} {why}; {name} has the other activation: {cure}")


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


def load_network(checkpoint: Path, options: Options) -> tuple[CLIP | CustomTextCLIP, Architecture]:
    """The whole network with the checkpoint's weights in f32."""
    content = checkpoints.read(checkpoint)
    tensors = content.tensors("state_dict")
    architecture = find_architecture(options.arch, checkpoint)
    check_activation(architecture, content, tensors)
    for note in OPENAI_NOTES:
        tensors.pop(note, None)
    network = build(architecture)
    checkpoints.fill(network, tensors, checkpoint, f"CLIP {architecture.name}")
    return network.eval(), architecture


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

    attn_mask: Tensor | None

    def __init__(self, tower: Any, pool_type: str, end: int) -> None:
        super().__init__()
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.transformer = tower.transformer
        self.ln_final = tower.ln_final
        self.text_projection = tower.text_projection
        self.register_buffer("attn_mask", tower.attn_mask, persistent=False)
        self.pool_type, self.end = pool_type, end

    def forward(self, token_ids: Tensor, pseudo_token: Tensor, pseudo_index: Tensor) -> tuple[Tensor]:
        """Ids (B, T), pseudo-token (B, W), its place (B, 1) or -1 -> embedding f32 (B, D) of unit length."""
        words = self.token_embedding(token_ids)  # (B, T, W)
        places = torch.arange(words.shape[1], device=words.device, dtype=pseudo_index.dtype)
        here = places[None, :] == pseudo_index  # (B, T)
        x = torch.where(here[:, :, None], pseudo_token.to(words.dtype)[:, None, :], words)
        x = self.ln_final(self.transformer(x + self.positional_embedding, attn_mask=self.attn_mask))
        x = text_global_pool(x, token_ids, self.pool_type, eos_token_id=self.end)
        if isinstance(self.text_projection, nn.Linear):
            x = self.text_projection(x)
        elif self.text_projection is not None:
            x = x @ self.text_projection
        return (F.normalize(x.float(), dim=-1),)


WEIGHTS_LICENCE = "OpenAI: MIT; others: see their model card"
SOURCE = "https://github.com/mlfoundations/open_clip (weights of OpenAI, LAION and others)"


@register(
    name="clip-image",
    role="clip_image",
    title="CLIP's image encoder, any open_clip architecture",
    source=SOURCE,
    code_licence="MIT",
    weights_licence=WEIGHTS_LICENCE,
)
def load_image(checkpoint: Path, options: Options) -> Loaded:
    """The visual tower; preprocessing as the architecture says, OpenAI's where it does not."""
    network, architecture = load_network(checkpoint, options)
    size = network.visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    preprocess = architecture.preprocess
    resize = RESIZE.get(preprocess.get("resize_mode", "shortest"))
    if height != width or resize is None:
        raise ExportError(f"{architecture.name} takes pictures that are not square, or padded: not supported")
    mean = tuple(preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN))
    std = tuple(preprocess.get("std", open_clip.OPENAI_DATASET_STD))
    return Loaded(
        graph=ImageTower(network.visual, mean, std),
        sizes={"P": height, "D": architecture.model["embed_dim"]},
        preprocessing=Preprocessing(
            "pixels",
            height,
            resize,
            preprocess.get("interpolation", "bicubic"),
            antialias=True,
            mean=mean,
            std=std,
        ),
        details={
            "arch": architecture.name,
            "embedding_dimension": architecture.model["embed_dim"],
            "clip_digest": clip_digest(network.state_dict()),
        },
    )


@register(
    name="clip-text",
    role="clip_text",
    title="CLIP's text encoder with a pseudo-word, any open_clip architecture",
    source=SOURCE,
    code_licence="MIT",
    weights_licence=WEIGHTS_LICENCE,
)
def load_text(checkpoint: Path, options: Options) -> Loaded:
    """The text tower. Start and end are the vocabulary's last two ids, as in CLIP's BPE."""
    network, architecture = load_network(checkpoint, options)
    tower = network.text if isinstance(network, CustomTextCLIP) else network
    text = architecture.model["text_cfg"]
    if text.get("hf_tokenizer_name") or text.get("embed_cls") or text.get("use_pad_mask"):
        raise ExportError(f"{architecture.name} does not read CLIP's BPE tokens, which is not supported")
    vocabulary, length = int(tower.vocab_size), int(tower.context_length)
    start, end = vocabulary - 2, vocabulary - 1
    custom = isinstance(tower, TextTransformer)
    pool_type = tower.pool_type if custom else tower.text_pool_type
    end_id = tower.eos_id if custom else tower.text_eos_id
    if pool_type == "eos" and end_id != end:
        raise ExportError(f"{architecture.name} pools at token {end_id}, which CLIP's BPE does not end with")
    width = int(tower.token_embedding.embedding_dim)
    return Loaded(
        graph=TextTower(tower, pool_type, end_id),
        sizes={"T": length, "W": width, "D": architecture.model["embed_dim"]},
        details={
            "arch": architecture.name,
            "context_length": length,
            "token_width": width,
            "embedding_dimension": architecture.model["embed_dim"],
            "tokenizer": {"kind": "clip-bpe", "vocabulary": vocabulary, "start": start, "end": end, "pad": 0},
        },
    )
