"""A tiny SigLIP with random weights, and small tokenizers of SigLIP's kind and of SigLIP 2's."""

import json
import string
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from open_clip.model import CustomTextCLIP
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE, Unigram
from tokenizers.normalizers import NFKC, Replace, Sequence
from tokenizers.pre_tokenizers import Metaspace, Split
from tokenizers.processors import TemplateProcessing

from tercet_export.networks.clip import Architecture, build
from tests.tiny import SIZE, WORDS, randomise

LENGTH = 64
SEED = 21
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def tiny_siglip_vit(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """timm's SigLIP tower: no class token, pooled by attention (`map`)."""
    return VisionTransformer(
        img_size=SIZE,
        patch_size=16,
        embed_dim=32,
        depth=2,
        num_heads=2,
        class_token=False,
        num_classes=options["num_classes"],
        global_pool=options["global_pool"],
    )


if not timm.is_model("tiny_siglip_vit"):
    register_model(tiny_siglip_vit)


def unigram() -> Tokenizer:
    """As T5's, which SigLIP has: pieces with scores, `</s>` at the end and for padding."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0)]
    pieces += [(f"\u2581{word}", -2.0 - 0.1 * n) for n, word in enumerate(WORDS)]
    pieces += [(letter, -4.0 - 0.01 * n) for n, letter in enumerate(string.ascii_lowercase + string.digits)]
    pieces += [("ing", -3.5), ("re", -3.7), ("\u00e9", -6.0), ("\u72d7", -6.5)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.normalizer = Sequence([NFKC(), Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="always")
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in ("<pad>", "</s>", "<unk>")]
    )
    return tokenizer


def bpe() -> Tokenizer:
    """As Gemma's, which SigLIP 2 has: merges over whole texts, bytes for what is unknown, `<eos>` last."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    tokens += [*string.ascii_lowercase, *string.digits, "\u00e9"]
    merges = [("a", "n"), ("i", "n"), ("in", "g"), ("r", "e"), ("re", "d"), ("\u2581", "a"), ("o", "n")]
    vocabulary = {token: number for number, token in enumerate([*tokens, *map("".join, merges)])}
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = Split(" ", "merged_with_previous")
    tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    specials = ("<pad>", "<eos>", "<bos>", "<unk>")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    return tokenizer


TOKENIZERS = {"SigLIP": (unigram(), "</s>", "</s>"), "SigLIP2": (bpe(), "<pad>", "<eos>")}


def siglip(family: str = "SigLIP") -> dict[str, Any]:
    """The architecture, in open_clip's form."""
    return {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": SIZE,
            "timm_model_name": "tiny_siglip_vit",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": LENGTH,
            "vocab_size": TOKENIZERS[family][0].get_vocab_size(),
            "hf_tokenizer_name": f"timm/ViT-tiny-{family}",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 32,
            "heads": 2,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    }


def network(family: str = "SigLIP") -> CustomTextCLIP:
    """open_clip's network with the weights that `write_siglip` saves."""
    clip = build(Architecture("tiny", siglip(family), {}))
    randomise(clip, SEED)
    with torch.no_grad():
        clip.logit_scale.fill_(4.7)
        clip.logit_bias.fill_(-12.5)
    return clip.eval()


def write_siglip(folder: Path, family: str = "SigLIP") -> Path:
    """Weights, configuration and tokenizer as a hub repository has them, and a lineup; the TOML file."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(network(family).state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": siglip(family), "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tokenizer, pad, end = TOKENIZERS[family]
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": pad, "eos_token": end, "unk_token": "<unk>", "padding_side": "right"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "siglip.toml").write_text(LINEUP)
    return folder / "siglip.toml"


LINEUP = """
name = "tiny-siglip"

[clip_image]
network = "clip-image"
checkpoint = "open_clip_model.safetensors"

[clip_text]
network = "clip-text"
checkpoint = "open_clip_model.safetensors"
"""
