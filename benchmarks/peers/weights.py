"""Random weights of full size, the same in every layout: open_clip's for `tercet-export`, Hugging Face's for
the peers, and the rest of the `small` lineup for the whole composed query.
"""

import gzip
import json
import shutil
from pathlib import Path

import open_clip
import safetensors.torch
import torch
import transformers
from torch import Tensor

from tercet_export.lineup import export_lineup
from tercet_export.networks.clip import build, find_architecture
from tercet_export.networks.isnet import ISNet, ISNetConfig
from tercet_export.repository import HAND_WRITTEN
from tercet_export.vocabulary import BERT_SPECIALS, default_merges
from tests.export.parity import by_shape

MERGES = 49152 - 256 - 2  # of the file's lines; the rest of CLIP's ids are bytes and specials
WORDS = 30522  # git-base's
START, END = 49406, 49407
PICTURE_SIZES = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}


def write_clip(folder: Path, arch: str) -> None:
    """`open_clip.safetensors` and, in `hugging_face/`, the same network as transformers loads it."""
    torch.manual_seed(0)
    tensors = {name: by_shape(name, tuple(t.shape)) for name, t in clip_shapes(arch).items()}
    tensors["logit_scale"] = torch.tensor(4.6052)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, folder / "open_clip.safetensors")
    target = folder / "hugging_face"
    network = transformers.CLIPModel(clip_config(arch))
    missing = network.load_state_dict(as_hugging_face(tensors), strict=False)
    if missing.unexpected_keys or any(not key.endswith("position_ids") for key in missing.missing_keys):
        raise SystemExit(f"transformers' CLIP has other tensors than expected: {missing}")
    network.save_pretrained(target)
    transformers.CLIPImageProcessor(**PICTURE_SIZES).save_pretrained(target)
    write_tokenizer(target)


def clip_shapes(arch: str) -> dict[str, Tensor]:
    """The tensors of open_clip's network, without memory."""
    with torch.device("meta"):
        return build(find_architecture(arch, Path())).state_dict()


def clip_config(arch: str) -> transformers.CLIPConfig:
    """transformers' configuration of an architecture of open_clip's with OpenAI's activation."""
    sizes = open_clip.get_model_config(arch)
    vision, text, shared = sizes["vision_cfg"], sizes["text_cfg"], sizes["embed_dim"]
    common = {"hidden_act": "quick_gelu", "projection_dim": shared}
    return transformers.CLIPConfig(
        vision_config={
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            **layers(vision["width"], vision["layers"], vision["width"] // vision.get("head_width", 64)),
            **common,
        },
        text_config={
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "bos_token_id": START,
            "eos_token_id": END,
            "pad_token_id": END,
            **layers(text["width"], text["layers"], text["heads"]),
            **common,
        },
        projection_dim=shared,
    )


def layers(width: int, count: int, heads: int) -> dict[str, int]:
    """A transformer's sizes in transformers' words."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": count,
        "num_attention_heads": heads,
    }


def as_hugging_face(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors under transformers' names: three projections instead of one, matrices turned."""
    renamed = {
        "logit_scale": tensors["logit_scale"],
        "visual_projection.weight": tensors["visual.proj"].T,
        "text_projection.weight": tensors["text_projection"].T,
        "vision_model.embeddings.class_embedding": tensors["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": tensors["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": tensors["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": tensors["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": tensors["positional_embedding"],
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",  # the name has no e there
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    for theirs, ours in norms.items():
        renamed |= {f"{ours}.{kind}": tensors[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    blocks = {"visual.transformer.resblocks": "vision_model", "transformer.resblocks": "text_model"}
    parts = {
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for name, tensor in tensors.items():
        for prefix, tower in blocks.items():
            if not name.startswith(f"{prefix}."):
                continue
            number, _, rest = name.removeprefix(f"{prefix}.").partition(".")
            layer = f"{tower}.encoder.layers.{number}"
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    renamed[f"{layer}.self_attn.{letter}_proj.{kind}"] = part.clone()
            else:
                part, _, kind = rest.rpartition(".")
                renamed[f"{layer}.{parts[part]}.{kind}"] = tensor
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def write_tokenizer(folder: Path) -> None:
    """CLIP's own tokenizer as transformers reads it, from the merges that open_clip carries."""
    merges = gzip.decompress(default_merges().read_bytes()).decode().split("\n")[1 : MERGES + 1]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    tokens = open_clip.tokenizer.SimpleTokenizer().encoder
    names = {START: "<|startoftext|>", END: "<|endoftext|>"}
    vocabulary = {names.get(number, token): number for token, number in tokens.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    end = "<|endoftext|>"
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_rest(folder: Path) -> None:
    """IS-Net in its official layout, GIT-base in Hugging Face's, and a vocabulary for the captions.

    Random weights that never end a caption: each costs its 20 tokens. Its words are ones that CLIP reads as
    one token each, so that the fused text is about as long as a real one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = ISNet(ISNetConfig()).state_dict()
    isnet = {name: by_shape(name, tuple(tensor.shape)) for name, tensor in shapes.items()}
    safetensors.torch.save_file(isnet, folder / "isnet.safetensors")
    torch.manual_seed(0)
    git = transformers.GitForCausalLM(transformers.GitConfig())
    git.output.bias.data[: len(BERT_SPECIALS) + 100] = -1e4
    git.output.bias.data[102] = -1e4
    git.save_pretrained(folder / "git")
    known = [token.removesuffix("</w>") for token in open_clip.tokenizer.SimpleTokenizer().encoder]
    words = list(dict.fromkeys(word for word in known if word.isascii() and word.isalpha()))
    pad, *specials = BERT_SPECIALS
    lines = [pad, *(f"[unused{number}]" for number in range(99)), *specials, *words]
    lines += [f"[unused{number}]" for number in range(99, 99 + WORDS - len(lines))]
    (folder / "vocab.txt").write_text("\n".join(lines[:WORDS]) + "\n")


def prepare(folder: Path, arch: str, whole: bool) -> tuple[Path, Path]:
    """The peers' folder of weights and Tercet's model repository; made where they are not there yet.

    `whole`: the repository holds all of the `small` lineup, not CLIP alone.
    """
    weights = folder / arch
    if not (weights / "hugging_face" / "tokenizer_config.json").exists():
        write_clip(weights, arch)
    if whole and not (folder / "rest" / "vocab.txt").exists():
        write_rest(folder / "rest")
    sections = {
        role: {"network": network, "checkpoint": f"{arch}/open_clip.safetensors", "arch": arch}
        for role, network in (("clip_image", "clip-image"), ("clip_text", "clip-text"))
    }
    if whole:
        sections["background_remover"] = {"network": "isnet", "checkpoint": "rest/isnet.safetensors"}
        sections["captioner"] = {
            "network": "git-base",
            "checkpoint": "rest/git/model.safetensors",
            "tokenizer": "rest/vocab.txt",
        }
    name = f"{arch}-{'whole' if whole else 'clip'}"
    lines = [f'name = "{name}"']
    for role, settings in sections.items():
        lines += ["", f"[{role}]", *(f'{key} = "{value}"' for key, value in settings.items())]
    if whole:
        lines += ["beams = 1", "max_tokens = 20"]
    lineup = folder / f"{name}.toml"
    lineup.write_text("\n".join(lines) + "\n")
    repository = folder / "repositories" / name
    export_lineup(lineup, repository)
    # An export leaves configurations and code that are there as they are: they would be an older checkout's.
    exported = shutil.ignore_patterns("*.onnx", "*.data", "*.json", "__pycache__")
    shutil.copytree(HAND_WRITTEN, repository, ignore=exported, dirs_exist_ok=True)
    return weights / "hugging_face", repository
