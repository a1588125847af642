"""The six ways to ask, computed with PyTorch alone: what `make demo` measures on Triton, in seconds."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from safetensors.torch import load_file

from tercet.composition import TEMPLATES, compose
from tercet_export import registry
from tercet_export.networks.git import GIT, GITConfig
from tercet_export.networks.isnet import ISNet
from tercet_export.networks.pic2word import Im2Text
from tercet_training import train_isnet
from tercet_training.loop import normalise
from tercet_training.pictures import Pictures
from tercet_training.texts import clip_tokenizer, encode_for_clip
from tercet_training.train_clip import embed_pictures, embed_texts, encode_text
from tercet_training.train_git import caption_pictures, cut_out
from tercet_training.train_isnet import predict_masks
from tercet_training.world import Gallery


@dataclass(frozen=True)
class Networks:
    """The demo's trained networks and vocabularies."""

    isnet: ISNet
    git: GIT
    clip: CLIP
    pic2word: Im2Text
    lines: list[str]  # of vocab.txt
    merges: str  # the text of merges.txt


def load_networks(folder: Path) -> Networks:
    """The networks that `tercet-train demo` left in a folder."""
    isnet = ISNet(train_isnet.CONFIG)
    git = GIT(GITConfig(**json.loads((folder / "git.json").read_text())))
    clip = CLIP(**json.loads((folder / "clip.json").read_text()))
    for name, network in (("isnet", isnet), ("git", git), ("clip", clip)):
        network.load_state_dict(load_file(folder / f"{name}.safetensors"))
        network.eval()
    merges = (folder / "merges.txt").read_text(encoding="utf-8")
    pic2word = registry.network("pic2word").load(folder / "pic2word.safetensors").graph.network
    assert isinstance(pic2word, Im2Text)
    return Networks(isnet, git, clip, pic2word, (folder / "vocab.txt").read_text().splitlines(), merges)


def fuse(networks: Networks, captions: list[str], modifications: list[str]) -> list[str]:
    """Caption and modification side by side, as the client fuses them."""
    tokenizer = clip_tokenizer(networks.merges)

    def count(texts: list[str]) -> list[int]:
        return [len(tokenizer.encode(text)) + 2 for text in texts]

    return [
        compose(caption, modification, count_tokens=count).text
        for caption, modification in zip(captions, modifications, strict=True)
    ]


@torch.no_grad()
def embed_with_pseudo_words(networks: Networks, prompts: list[str], view: NDArray[np.uint8]) -> NDArray:
    """Prompts with a `*` and their pictures, u8 (N, P, P, 3) -> f32 (N, D) of unit length."""
    tokenizer = clip_tokenizer(networks.merges)
    ids = torch.from_numpy(encode_for_clip(tokenizer, prompts))
    (star,) = tokenizer.encode("*")
    words = networks.pic2word(networks.clip.encode_image(normalise(view)))
    return encode_text(networks.clip, ids, words, (ids == star).int().argmax(dim=1)).numpy()


def rank_targets(gallery: Gallery, embeddings: NDArray, candidates: NDArray) -> NDArray[np.int64]:
    """Rank of the first right answer of every query, 1 the best; the reference is no candidate."""
    scores = embeddings @ candidates.T
    ranks = np.empty(len(scores), np.int64)
    for number, query in enumerate(gallery.queries):
        row = scores[number]
        row[query.reference] = -np.inf
        ranks[number] = 1 + (row > max(row[target] for target in query.targets)).sum()
    return ranks


def compare(networks: Networks, gallery: Gallery, pictures: Pictures) -> dict[str, NDArray[np.int64]]:
    """The ranks of the answers by way of asking; `pictures` are the gallery's scenes, rendered."""
    references = [query.reference for query in gallery.queries]
    modifications = [query.modification for query in gallery.queries]
    view = pictures.view[references]
    candidates = embed_pictures(networks.clip, pictures.view)
    text = embed_texts(networks.clip, networks.merges, modifications)
    image = candidates[references]
    prompts = [TEMPLATES["pic2word"].format(modification=modification) for modification in modifications]
    pseudo = embed_with_pseudo_words(networks, prompts, view)
    masks = predict_masks(networks.isnet, pictures.scene[references])
    with torch.no_grad():
        kept = caption_pictures(networks.git, networks.lines, view)
        removed = caption_pictures(networks.git, networks.lines, cut_out(view, masks))
    ways = {
        "text only": text,
        "image only": image,
        "image + text": text + image,
        "Pic2Word": pseudo,
        "caption fusion, background kept": embed_texts(
            networks.clip, networks.merges, fuse(networks, kept, modifications)
        ),
        "caption fusion, background removed": embed_texts(
            networks.clip, networks.merges, fuse(networks, removed, modifications)
        ),
    }
    return {way: rank_targets(gallery, embeddings, candidates) for way, embeddings in ways.items()}


def recall(gallery: Gallery, ranks: dict[str, NDArray[np.int64]]) -> dict[str, dict[str, dict[str, float]]]:
    """Recall@1 and @10 in percent: way -> kind of modification (or `all`) -> `recall@1`, `recall@10`."""
    kinds = np.array([query.kind for query in gallery.queries])
    groups = {"all": np.ones(len(kinds), bool), **{str(kind): kinds == kind for kind in np.unique(kinds)}}
    return {
        way: {
            group: {f"recall@{k}": round(100 * float((of_way[chosen] <= k).mean()), 1) for k in (1, 10)}
            for group, chosen in groups.items()
        }
        for way, of_way in ranks.items()
    }
