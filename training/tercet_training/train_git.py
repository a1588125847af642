"""GIT as the demo's captioner: whole pictures with their background, cut-outs with their subject alone.

First its image encoder learns to see, then the whole to speak. From captions alone a fresh vision transformer
needs far more pictures before it tells shapes apart.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tercet_export.networks.clip_vision import ImageEncoder
from tercet_export.networks.git import GIT, GITConfig
from tercet_training import world
from tercet_training.labels import AspectHead, PatchHead, label_scenes
from tercet_training.loop import Report, Schedule, batches, fit, normalise, shift
from tercet_training.pictures import SIDE, Pictures
from tercet_training.texts import END, MAX_CAPTION_TOKENS, PAD, START, decode_for_git, encode_for_git

WHOLE_SHARE = 3 / 8  # of every batch; the rest are cut-outs, which the method captions
PREDICTED_SHARE = (
    0.8  # of cut-outs: made with the background remover's masks, so that its mistakes are nothing new
)


def config(vocabulary: int) -> GITConfig:
    """A GIT of 1.3 million parameters over a vocabulary of the given size."""
    return GITConfig(
        image_size=SIDE,
        patch_size=8,
        vision_width=128,
        vision_layers=4,
        vision_heads=4,
        vision_projection=128,
        text_width=128,
        text_layers=2,
        text_heads=4,
        text_feedforward=512,
        vocabulary=vocabulary,
        max_positions=32,
        start=START,
        end=END,
        max_tokens=MAX_CAPTION_TOKENS,
    )


def cut_out(view: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The view over white, as the served graph cuts it: u8 (B, V, V, 3) and (B, V, V) -> u8 (B, V, V, 3)."""
    share = mask[..., None].astype(np.float32) / 255
    return np.round(view * share + 255 * (1 - share)).astype(np.uint8)


def mixed_batches(
    pictures: Pictures, predicted: np.ndarray, batch: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, int, Tensor, Tensor]]:
    """For ever: rows (B), how many are whole, pixels f32 (B, 3, V, V), true masks f32 (B, V, V) in 0..1."""
    whole = round(batch * WHOLE_SHARE)
    for chosen in batches(rng, len(pictures), batch):
        true = pictures.mask[chosen]
        masks = np.where((rng.random(batch) < PREDICTED_SHARE)[:, None, None], predicted[chosen], true)
        view = pictures.view[chosen]
        view[whole:] = cut_out(view[whole:], masks[whole:])
        view, true = shift(rng, view, true)
        yield chosen, whole, normalise(view), torch.from_numpy(np.ascontiguousarray(true)).float() / 255


def wave_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of the place of every patch, (side * side, width): neighbours start out alike."""
    down, across = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    rates = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    waves = [
        wave(place.flatten()[:, None] * rates) for place in (across, down) for wave in (torch.sin, torch.cos)
    ]
    return torch.cat(waves, dim=1)


def matrices(network: nn.Module) -> list[Tensor]:
    """The matrices of the transformers' blocks: what Muon trains."""
    return [
        parameter
        for name, parameter in network.named_parameters()
        if parameter.ndim == 2 and ("resblocks" in name or "encoder.layer" in name)
    ]


class Classifier(nn.Module):
    """An image encoder with the two heads that teach it."""

    def __init__(self, encoder: ImageEncoder, width: int) -> None:
        super().__init__()
        self.encoder, self.aspects, self.patches = encoder, AspectHead(2 * width), PatchHead(width)

    def aspect_loss(self, tokens: Tensor, labels: Tensor, whole: int) -> Tensor:
        """Of tokens (B, 1 + N, width) as the encoder gives them."""
        return self.aspects.loss(torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1), labels, whole)


def new_classifier() -> Classifier:
    """An untrained image encoder that knows where its patches are, with untrained heads."""
    sizes = config(vocabulary=1)
    encoder = ImageEncoder(sizes.vision())
    with torch.no_grad():
        encoder.positional_embedding[1:] = 0.3 * wave_positions(SIDE // sizes.patch_size, sizes.vision_width)
    return Classifier(encoder, sizes.vision_width)


def train_encoder(pictures: Pictures, schedule: Schedule, seed: int, report: Report) -> Classifier:
    """An image encoder that tells the aspects of pictures, cut-outs (with true masks) and patches."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = new_classifier()
    labels = torch.from_numpy(label_scenes(pictures.scenes))
    draws = mixed_batches(pictures, pictures.mask, schedule.batch, rng)

    def losses() -> list[Tensor]:
        chosen, whole, pixels, masks = next(draws)
        tokens, truth = network.encoder(pixels), labels[chosen]
        of_pictures = network.aspect_loss(tokens, truth, whole)
        return [of_pictures + network.patches.loss(tokens[:, 1:], truth, masks, whole), of_pictures]

    fit("GIT, image encoder", network, schedule, losses, report, matrices(network))
    return network


def train_git(
    pictures: Pictures,
    predicted: np.ndarray,
    lines: list[str],
    start: Classifier,
    schedule: Schedule,
    seed: int,
    report: Report,
) -> GIT:
    """Next-word prediction of the usual captions, with the classifier's loss beside it.

    Args:
        pictures: what to caption.
        predicted: u8 (N, V, V), the masks of the trained background remover.
        lines: the vocabulary, one word a line.
        start: the image encoder to begin with, and its heads.
        schedule: Muon's learning rate; the batch counts whole pictures and cut-outs.
        seed: decides everything.
        report: told of the progress.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vocabulary = {word: number for number, word in enumerate(lines)}
    network = GIT(config(len(lines)))
    network.image_encoder = start.encoder
    labels = torch.from_numpy(label_scenes(pictures.scenes))
    draws = mixed_batches(pictures, predicted, schedule.batch, rng)
    seen: list[Tensor] = []
    hook = start.encoder.register_forward_hook(lambda _module, _inputs, tokens: seen.append(tokens))

    def losses() -> list[Tensor]:
        chosen, whole, pixels, _ = next(draws)
        captions = [
            world.caption(pictures.scenes[row], background=place < whole, style=place < whole)
            for place, row in enumerate(chosen)
        ]
        ids = torch.from_numpy(encode_for_git(vocabulary, captions))
        logits = network.logits(pixels, ids[:, :-1])
        words = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)
        return [3 * words + start.aspect_loss(seen.pop(), labels[chosen], whole), words]

    taught = nn.ModuleList([network, start.aspects])
    fit("GIT, captions", taught, schedule, losses, report, matrices(network))
    hook.remove()
    return network


@torch.no_grad()
def caption_pictures(network: GIT, lines: list[str], view: np.ndarray, batch: int = 250) -> list[str]:
    """Greedy captions of u8 views (N, V, V, 3). The served search does the same with a cache."""
    texts: list[str] = []
    for start in range(0, len(view), batch):
        pixels = normalise(view[start : start + batch])
        ids = torch.full((len(pixels), 1), START)
        for _ in range(MAX_CAPTION_TOKENS):
            following = network.logits(pixels, ids)[:, -1].argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, following], dim=1)
            if bool((ids == END).any(dim=1).all()):
                break
        texts += [decode_for_git(lines, row) for row in ids[:, 1:].tolist()]
    return texts
