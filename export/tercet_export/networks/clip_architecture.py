"""CLIP's architectures as data: what to build, how pictures and texts are prepared for it.

Nothing of this is in the weights. It comes from an open_clip name (`ViT-B-16-SigLIP`), where one name has
weights that were trained differently with the tag of the weights (`ViT-L-14:laion2b_s32b_b82k`), from a JSON
file of the same form, or from the `open_clip_config.json` that lies beside the weights.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import list_pretrained_tags_by_model

from tercet.errors import CheckpointError, ExportError
from tercet_export import checkpoints

HUB_CONFIG = "open_clip_config.json"

# Stored in OpenAI's archives as tensors, and in nobody else's.
OPENAI_NOTES = ("input_resolution", "context_length", "vocab_size")

PREPROCESS = ("mean", "std", "interpolation", "resize_mode")
OPENAI_PREPROCESS = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@dataclass(frozen=True)
class Architecture:
    """What to build: open_clip's `model_cfg` and `preprocess_cfg` (empty: not known), and what to call it."""

    name: str
    model: Mapping[str, Any]
    preprocess: Mapping[str, Any]

    @property
    def quick_gelu(self) -> bool:
        """Whether its activation is OpenAI's approximation x * sigmoid(1.702 x)."""
        return bool(self.model.get("quick_gelu", False))


def find_architecture(arch: str | None, checkpoint: Path) -> Architecture:
    """An open_clip name with or without a tag, a JSON file, or without either the configuration beside the
    checkpoint.

    Raises ExportError where there is none, or where it is not one of open_clip's form.
    """
    path = Path(arch) if arch else checkpoint.parent / HUB_CONFIG
    if path.suffix == ".json" and (arch or path.is_file()):
        return read_architecture(path)
    if arch is None:
        raise ExportError(
            f"{checkpoint} does not say its architecture: give --arch, an open_clip name such as "
            "ViT-B-32-quickgelu or a JSON file"
        )
    name, _, tag = arch.partition(":")
    model = open_clip.get_model_config(name)
    if model is None:
        alike = difflib.get_close_matches(name, open_clip.list_models(), n=5, cutoff=0.3)
        raise ExportError(
            f"open_clip has no architecture {name!r}: give a name such as {', '.join(alike)}, or a JSON file"
        )
    if not tag:
        return Architecture(name, model, {})
    trained = open_clip.get_pretrained_cfg(name, tag)
    if not trained:
        tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        raise ExportError(f"open_clip has no weights {tag!r} of {name}: its tags are {tags}")
    architecture = Architecture(name, model, trained)
    refuse_other_activation(architecture, trained.get("quick_gelu", False), f"{arch} was trained with")
    return architecture


def read_architecture(path: Path) -> Architecture:
    """The architecture in a JSON file, with or without a preprocessing; ExportError where it is none."""
    try:
        content = json.loads(path.read_text())
        model = content.get("model_cfg", content)
        if not {"embed_dim", "vision_cfg", "text_cfg"} <= model.keys():
            raise ValueError("open_clip's embed_dim, vision_cfg and text_cfg are needed")
    except (OSError, ValueError, AttributeError) as error:
        raise ExportError(f"architecture file {path} cannot be used: {error}") from error
    return Architecture(path.name, model, content.get("preprocess_cfg", {}))


def find_preprocess(architecture: Architecture, checkpoint: Path) -> Mapping[str, Any]:
    """How pictures are prepared for these weights: open_clip's `mean`, `std`, `interpolation`,
    `resize_mode`.

    As the architecture says, else the configuration beside the checkpoint, else the published weights of an
    open_clip name, where they agree. OpenAI's for an architecture of one's own that does not say, unless it
    is trained as SigLIP. ExportError where nothing tells.
    """
    beside = checkpoint.parent / HUB_CONFIG
    preprocess = architecture.preprocess
    if not preprocess and beside.is_file():
        preprocess = read_architecture(beside).preprocess
    if preprocess:
        return {
            **OPENAI_PREPROCESS,
            **{name: preprocess[name] for name in PREPROCESS if preprocess.get(name)},
        }
    tags = {
        tag: open_clip.get_pretrained_cfg(architecture.name, tag)
        for tag in list_pretrained_tags_by_model(architecture.name)
    }
    same = {
        tag: config
        for tag, config in tags.items()
        if config.get("quick_gelu", False) == architecture.quick_gelu
    }
    groups: dict[tuple[Any, ...], list[str]] = {}
    for tag, config in (same or tags).items():
        groups.setdefault(tuple(config[name] for name in PREPROCESS), []).append(tag)
    if len(groups) > 1:
        kinds = "; or ".join(", ".join(names) for names in groups.values())
        raise ExportError(
            f"published weights of {architecture.name} were trained with different preprocessing ({kinds}): "
            f"give the tag too, as in --arch {architecture.name}:{next(iter(groups.values()))[0]}, or put "
            f"{HUB_CONFIG} beside {checkpoint.name}"
        )
    if groups:
        return dict(zip(PREPROCESS, next(iter(groups)), strict=True))
    if "init_logit_bias" in architecture.model:
        raise ExportError(
            f"{architecture.name} does not say how pictures are prepared: add preprocess_cfg to it, "
            'SigLIP\'s is {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", '
            '"resize_mode": "squash"}'
        )
    return OPENAI_PREPROCESS


def check_activation(
    architecture: Architecture, checkpoint: checkpoints.Checkpoint, names: Mapping[str, Any]
) -> None:
    """Refuse QuickGELU weights in a GELU architecture, and the reverse: CheckpointError with the right name.

    The activation has no tensors. OpenAI's weights show by their container or by the notes stored with
    them, and a checkpoint from the hub by the configuration beside it; for any other the architecture given
    is believed.
    """
    beside = checkpoint.path.parent / HUB_CONFIG
    if checkpoint.container == "torchscript" or any(name in names for name in OPENAI_NOTES):
        why = f"{checkpoint.path} holds OpenAI's weights, which were trained with"
        refuse_other_activation(architecture, True, why)
    elif beside.is_file():
        why = f"{checkpoint.path}, says the {HUB_CONFIG} beside it, was trained with"
        refuse_other_activation(architecture, read_architecture(beside).quick_gelu, why)


def refuse_other_activation(architecture: Architecture, quick_gelu: bool, why: str) -> None:
    """CheckpointError with the right name unless the architecture has the activation of the weights."""
    if quick_gelu == architecture.quick_gelu:
        return
    name = architecture.name
    right = f"{name}-quickgelu" if quick_gelu else name.removesuffix("-quickgelu")
    cure = f"use --arch {right}"
    if right not in open_clip.list_models():
        cure = f'set "quick_gelu": {str(quick_gelu).lower()} in the architecture {name}'
    activation = "QuickGELU" if quick_gelu else "GELU"
    raise CheckpointError(f"{why} {activation}; {name} has the other activation: {cure}")


def tokenizer_details(architecture: Architecture, vocabulary: int) -> dict[str, Any]:
    """How texts are prepared, for the manifest: what `tokenize_text` and `vocabulary.build` go by.

    `clip-bpe`: start and end are the vocabulary's last two ids. `sentencepiece` (SigLIP's): no start; end
    and padding as open_clip's SigLipTokenizer has them: both 1 with T5's vocabularies, 1 and 0 with Gemma's
    of SigLIP 2. `placeholder` is what a pseudo-word replaces; SigLIP's cleaning leaves no `*` and nobody has
    trained pseudo-words for it. ExportError for any other tokenizer.
    """
    text = architecture.model["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    clean = options.pop("clean", None)
    published = text.get("hf_tokenizer_name")
    if options or text.get("tokenizer_mode") or text.get("embed_cls"):
        raise ExportError(f"{architecture.name} frames its tokens in a way of its own: not supported")
    if not published:
        return {
            "kind": "clip-bpe",
            "vocabulary": vocabulary,
            "clean": clean or "lower",
            "start": vocabulary - 2,
            "end": vocabulary - 1,
            "pad": text.get("pad_id", 0),
            "placeholder": None if clean == "canonicalize" else "*",
        }
    gemma = "siglip2" in published.lower()
    if "siglip" not in published.lower():
        raise ExportError(
            f"{architecture.name} reads tokens of {published}; CLIP's and SigLIP's are supported, no others"
        )
    return {
        "kind": "sentencepiece",
        "vocabulary": vocabulary,
        "clean": clean or "whitespace",
        "start": None,
        "end": 1,
        "end_token": "<eos>" if gemma else "</s>",
        "pad": 0 if gemma else 1,
        "placeholder": None,
        "published": f"hf://{published}",
    }
