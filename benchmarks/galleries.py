"""Synthetic galleries and queries with the geometry of CLIP's embeddings: to measure search without weights.

What a search index sees of CLIP is two narrow cones. Pictures lie around one direction, texts around another
(the modality gap): two pictures that have nothing in common have a cosine similarity of about 0.5, a picture
and a text about 0.15 to 0.2, and a text's best match of a million pictures only about 0.35. An index that is
built of pictures, and tried with pictures as queries, is tried inside the cloud that it was fitted to; a
composed query is an embedding of text, and comes from outside it.

Both kinds are made of the same content. A content is two topics of a few thousand, popular ones more often,
and something of its own, in a space whose directions matter less and less (a power law). Then

    picture = unit(PICTURE_OFFSET * a + content + noise)
    text    = unit(TEXT_OFFSET * b + TEXT_CONTENT * content + TEXT_OWN * what pictures hardly show + noise)

for fixed directions a and b. What pictures hardly show lies in the directions in which they vary least. A
composed query is the text of a content between a reference's and that of one more topic, the modification.
Everything follows from a seed, block by block: 2 GB need no 2 GB of memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["QueryKind", "World"]

BLOCK = 8192
TOPICS, POPULARITY = 4096, 0.7
DECAY = 0.7
"""The standard deviation of a content's j-th direction is proportional to (j + 8) ** -DECAY."""

PICTURE_OFFSET, PICTURE_NOISE = 1.0, 0.35
TEXT_OFFSET, TEXT_CONTENT, TEXT_OWN, TEXT_NOISE = 1.0, 0.45, 0.5, 0.25
OFFSETS_SIMILARITY = 0.4

QueryKind: TypeAlias = Literal["composed", "picture"]
Vectors: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class World:
    """Directions and topics that galleries and queries of one dimension and seed share."""

    dimension: int = 512
    seed: int = 0

    def pictures(self, count: int) -> Iterator[Vectors]:
        """A gallery of `count` pictures, f32 unit vectors [at most BLOCK, dimension] after another.

        A smaller gallery is the beginning of a larger one.
        """
        made = _Made(self)
        for number, start in enumerate(range(0, count, BLOCK)):
            generator = np.random.default_rng([self.seed, 1, number])
            yield made.pictures(made.contents(generator, BLOCK), generator)[: count - start]

    def queries(self, kind: QueryKind, count: int) -> Vectors:
        """Queries, f32 unit vectors [count, dimension]: composed ones, or pictures not in the gallery."""
        made = _Made(self)
        generator = np.random.default_rng([self.seed, 2 if kind == "composed" else 3])
        contents = made.contents(generator, count)
        if kind == "picture":
            return made.pictures(contents, generator)
        modification = made.topics[made.choose(generator, count)]
        return made.texts(_unit(0.6 * contents + 0.8 * _unit(modification)), generator)


class _Made:
    """What a world's seed stands for."""

    def __init__(self, world: World) -> None:
        dimension = world.dimension
        generator = np.random.default_rng([world.seed, 0])
        turned, _ = np.linalg.qr(generator.standard_normal((dimension, dimension)))
        spread = (np.arange(dimension) + 8.0) ** -DECAY
        # A random rotation: no axis of the vectors means anything, as in CLIP.
        self.directions = (turned * spread).T.astype(np.float32)
        self.text_directions = (turned * spread[::-1]).T.astype(np.float32)
        self.topics = _draw(generator, TOPICS, self.directions)
        weights = (np.arange(TOPICS) + 1.0) ** -POPULARITY
        self.popularity = weights / weights.sum()
        self.picture_offset = _unit(generator.standard_normal(dimension, np.float32))
        other = _unit(generator.standard_normal(dimension, np.float32))
        self.text_offset = _unit(OFFSETS_SIMILARITY * self.picture_offset + other)

    def choose(self, generator: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Topics, popular ones more often."""
        return generator.choice(TOPICS, count, p=self.popularity)

    def contents(self, generator: np.random.Generator, count: int) -> Vectors:
        """Unit vectors of two topics each and something of their own."""
        first, second = self.choose(generator, count), self.choose(generator, count)
        own = _draw(generator, count, self.directions)
        return _unit(0.6 * self.topics[first] + 0.4 * self.topics[second] + 0.7 * own)

    def pictures(self, contents: Vectors, generator: np.random.Generator) -> Vectors:
        """The embeddings of pictures with such contents."""
        noise = _unit(generator.standard_normal(contents.shape, np.float32))
        return _unit(PICTURE_OFFSET * self.picture_offset + contents + PICTURE_NOISE * noise)

    def texts(self, contents: Vectors, generator: np.random.Generator) -> Vectors:
        """The embeddings of texts with such contents."""
        own = _draw(generator, len(contents), self.text_directions)
        noise = _unit(generator.standard_normal(contents.shape, np.float32))
        return _unit(
            TEXT_OFFSET * self.text_offset + TEXT_CONTENT * contents + TEXT_OWN * own + TEXT_NOISE * noise
        )


def _draw(generator: np.random.Generator, count: int, directions: Vectors) -> Vectors:
    return _unit(generator.standard_normal((count, len(directions)), np.float32) @ directions)


def _unit(vectors: NDArray) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
