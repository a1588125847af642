"""The six ways to ask that the demo compares, and how their answers are scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tercet import TEMPLATES, Client, ComposedQuery
from tercet.index import GalleryIndex

TEXT, IMAGE, SUM, PIC2WORD = "text only", "image only", "image + text", "Pic2Word"
KEPT, REMOVED = "caption fusion, background kept", "caption fusion, background removed"
METHODS = (TEXT, IMAGE, SUM, PIC2WORD, KEPT, REMOVED)


@dataclass(frozen=True)
class Answers:
    """Query embeddings by method, f32 [Q, D] each, and what the method made of each query on the way."""

    embeddings: dict[str, NDArray[np.float32]]
    removed: list[ComposedQuery]


def ask(client: Client, references: Sequence[Path], modifications: Sequence[str]) -> Answers:
    """Embed the queries in all six ways.

    `image + text` is the normalised sum of the two unit vectors, Pic2Word's mixture baseline (eval_utils.py).
    Pic2Word itself asks for "a photo of * , {modification}", `*` being the pseudo-word of the whole picture.
    """
    text = client.embed_texts(modifications)
    image = client.embed_images(references)
    mixed = text + image
    prompts = [TEMPLATES["pic2word"].format(modification=modification) for modification in modifications]
    pseudo = client.embed_texts(prompts, pseudo_tokens=client.pseudo_tokens(references))
    kept = client.compose_queries(references, modifications, background="keep")
    removed = client.compose_queries(references, modifications, background="remove")
    embeddings = {
        TEXT: text,
        IMAGE: image,
        SUM: mixed / np.linalg.norm(mixed, axis=1, keepdims=True),
        PIC2WORD: pseudo,
        KEPT: np.stack([query.embedding for query in kept]),
        REMOVED: np.stack([query.embedding for query in removed]),
    }
    return Answers(embeddings, removed)


def rank_of_target(
    index: GalleryIndex,
    embeddings: NDArray[np.float32],
    references: Sequence[int],
    targets: Sequence[frozenset[int]],
    depth: int,
) -> NDArray[np.int64]:
    """Rank (1 = first) of the first right answer of each query; `depth + 1` where it comes later.

    References and targets are rows of the index. The reference is not a candidate, as in CIRR's protocol.
    """
    _, rows = index.search(embeddings, depth, exclude=[[reference] for reference in references])
    ranks = np.full(len(embeddings), depth + 1, dtype=np.int64)
    for query, found in enumerate(rows):
        hits = [place for place, row in enumerate(found.tolist(), start=1) if row in targets[query]]
        if hits:
            ranks[query] = hits[0]
    return ranks
