"""CLIP on the world's pictures and captions: a small ResNet of CLIP's kind and a small transformer."""

from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional as F

from tercet_training import world
from tercet_training.labels import AspectHead, label_scenes
from tercet_training.loop import Report, Schedule, batches, fit, normalise, shift
from tercet_training.pictures import SIDE, Pictures
from tercet_training.texts import clip_tokenizer, encode_for_clip

BACKGROUND_SHARE, STYLE_SHARE = 0.75, 0.7
START_LOGIT_SCALE, MAX_LOGIT_SCALE = 2.9957, 4.6052  # ln 20; ln 100 as in CLIP's paper
EMBEDDING = 128


def config(vocabulary: int) -> dict[str, Any]:
    """open_clip's JSON form. Convolutions learn to see from fewer pictures than patches."""
    return {
        "embed_dim": EMBEDDING,
        "quick_gelu": True,
        "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 24, "head_width": 32},
        "text_cfg": {"context_length": 77, "vocab_size": vocabulary, "width": 128, "heads": 4, "layers": 2},
    }


def encode_text(
    network: CLIP, ids: Tensor, words: Tensor | None = None, places: Tensor | None = None
) -> Tensor:
    """`network.encode_text`, normalised, for ids (B, T) shorter than the context, which causality allows.

    `words` (B, W) are pseudo-words that stand at `places` (B) instead of the ids there.
    """
    length = ids.shape[1]
    x = network.token_embedding(ids)
    if words is not None:
        x[torch.arange(len(ids)), places] = words
    x = x + network.positional_embedding[:length]
    x = network.transformer(x, attn_mask=network.attn_mask[:length, :length])
    x = network.ln_final(x)[torch.arange(len(ids)), ids.argmax(dim=-1)]
    return F.normalize(x @ network.text_projection, dim=-1)


def draw_caption(scene: world.Scene, rng: np.random.Generator) -> str:
    """A paraphrase that now and then leaves out the background or the style, as people do."""
    background, style = rng.random() < BACKGROUND_SHARE, rng.random() < STYLE_SHARE
    return world.caption(scene, background=background, style=style, rng=rng)


def train_clip(pictures: Pictures, merges: str, schedule: Schedule, seed: int, report: Report) -> CLIP:
    """The symmetric contrastive loss over pictures and paraphrases, drawn anew in every epoch.

    A classifier of the aspects on the image's features adds a fifth of its loss.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = clip_tokenizer(merges)
    network = CLIP(**config(tokenizer.vocab_size), init_logit_scale=START_LOGIT_SCALE)
    network.visual.to(memory_format=torch.channels_last)
    head = AspectHead(EMBEDDING)
    labels = torch.from_numpy(label_scenes(pictures.scenes))
    rows = batches(rng, len(pictures), schedule.batch)

    def losses() -> list[Tensor]:
        chosen = next(rows)
        view, _ = shift(rng, pictures.view[chosen], pictures.mask[chosen])
        features = network.encode_image(normalise(view).contiguous(memory_format=torch.channels_last))
        captions = [draw_caption(pictures.scenes[row], rng) for row in chosen]
        text = encode_text(network, torch.from_numpy(encode_for_clip(tokenizer, captions)))
        scale = network.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        logits = scale * F.normalize(features, dim=-1) @ text.T
        truth = torch.arange(len(chosen))
        contrast = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
        return [contrast + 0.2 * head.loss(features, labels[chosen], whole=len(chosen)), contrast]

    fit("CLIP", nn.ModuleList([network, head]), schedule, losses, report)
    with torch.no_grad():
        network.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
    return network


@torch.no_grad()
def embed_pictures(network: CLIP, view: np.ndarray, batch: int = 250) -> np.ndarray:
    """u8 (N, P, P, 3) -> f32 (N, D) of unit length."""
    parts = [
        network.encode_image(normalise(view[start : start + batch]), normalize=True).numpy()
        for start in range(0, len(view), batch)
    ]
    return np.concatenate(parts)


@torch.no_grad()
def embed_texts(network: CLIP, merges: str, texts: list[str]) -> np.ndarray:
    """N texts -> f32 (N, D) of unit length."""
    ids = torch.from_numpy(encode_for_clip(clip_tokenizer(merges), texts))
    return encode_text(network, ids).numpy()
