"""The five ways to ask that the demo compares, and how their answers are scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tercet.client import Caption, Client
from tercet.composition import Composition, compose
from tercet.index import GalleryIndex

TEXT, IMAGE, SUM = "text only", "image only", "image + text"
KEPT, REMOVED = "caption fusion, background kept", "caption fusion, background removed"
METHODS = (TEXT, IMAGE, SUM, KEPT, REMOVED)


@dataclass(frozen=True)
class Fusion:
    """What caption fusion made of the queries: one caption and one composed text per query."""

    captions: list[Caption]
    compositions: list[Composition]


@dataclass(frozen=True)
class Answers:
    """Query embeddings by method, f32 [Q, D] each, and what the two fusions said on the way."""

    embeddings: dict[str, NDArray[np.float32]]
    kept: Fusion
    removed: Fusion


def fuse(client: Client, references: Sequence[Path], modifications: Sequence[str], *, remove: bool) -> Fusion:
    """Caption every reference and fuse the caption with its modification."""
    captions = client.caption(list(references), background="remove" if remove else "keep")
    limit = client.lineup().context_length
    compositions = [
        compose(caption.text, modification, count_tokens=client.token_counts, limit=limit)
        for caption, modification in zip(captions, modifications, strict=True)
    ]
    return Fusion(captions, compositions)


def ask(client: Client, references: Sequence[Path], modifications: Sequence[str]) -> Answers:
    """Embed the queries in all five ways.

    `image + text` is the normalised sum of the two unit vectors, the mixture baseline of Pic2Word (eval_utils.py).
    """
    text = client.embed_texts(list(modifications))
    image = client.embed_images(list(references))
    mixed = text + image
    kept = fuse(client, references, modifications, remove=False)
    removed = fuse(client, references, modifications, remove=True)
    return Answers(
        {
            TEXT: text,
            IMAGE: image,
            SUM: mixed / np.linalg.norm(mixed, axis=1, keepdims=True),
            KEPT: client.embed_texts([composition.text for composition in kept.compositions]),
            REMOVED: client.embed_texts([composition.text for composition in removed.compositions]),
        },
        kept,
        removed,
    )


def rank_of_target(
    index: GalleryIndex,
    embeddings: NDArray[np.float32],
    references: Sequence[int],
    targets: Sequence[frozenset[int]],
    depth: int,
) -> NDArray[np.int64]:
    """Rank (1 = first) of the first right answer of each query, `depth + 1` where none is among the first `depth`.

    References and targets are rows of the index. The reference is not a candidate, as in CIRR's protocol.
    """
    _, rows = index.search(embeddings, depth, exclude=[[reference] for reference in references])
    ranks = np.full(len(embeddings), depth + 1, dtype=np.int64)
    for query, found in enumerate(rows):
        hits = [place for place, row in enumerate(found.tolist(), start=1) if row in targets[query]]
        if hits:
            ranks[query] = hits[0]
    return ranks
