"""A composed query: its vectors, and how their similarities to a candidate become one score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tercet.composition import Composition
from tercet.errors import InputError
from tercet.messages import Background, Caption

__all__ = ["ComposedQuery", "Exclusion", "Increment", "Linear", "Product", "Scoring", "blend", "unit"]

Vector = NDArray[np.float32]
Scores = NDArray[Any]


class Scoring(Protocol):
    """How the M cosine similarities of a query's vectors to a candidate become its score.

    A frozen dataclass, so that it can be compared and written down.
    """

    @property
    def vectors(self) -> int:
        """M, how many vectors are scored."""

    def combine(self, scores: Scores) -> Scores:
        """The score of each of N candidates: [..., M, N] to [..., N], of the same floating type."""


@dataclass(frozen=True)
class Linear:
    """One vector, whose similarity is the score: any index can search it.

    A weighted sum of cosine similarities is the similarity to the weighted sum of the vectors, but for a
    factor that changes no order: `blend`.
    """

    vectors = 1

    def combine(self, scores: Scores) -> Scores:
        """The only vector's similarities."""
        return scores[..., 0, :]


@dataclass(frozen=True)
class Product:
    """Text times image: `max(s_text - text_floor, 0) * max(s_image - image_floor, 0)`.

    A candidate must answer both. Billy Psomas's BASIC (billpsomas/icir, utils_retrieval.py) subtracts the
    least similarity of each kind and clamps at 0 before it multiplies; its scales change no order.
    """

    text_floor: float = 0.0
    image_floor: float = 0.0

    vectors = 2

    def combine(self, scores: Scores) -> Scores:
        """The product of what lies above the floors; vectors are the text's and the image's."""
        text = np.maximum(scores[..., 0, :] - self.text_floor, 0)
        image = np.maximum(scores[..., 1, :] - self.image_floor, 0)
        return text * image


@dataclass(frozen=True)
class Increment:
    """The semantic increment: `s_edited + negative * min(d, 0) + positive * max(d, 0)`.

    `d = s_edited - s_original` is how much better a candidate fits the edited text than the caption.

    SEIZE (yzy-bupt/SEIZE, src/semantic_editing_search.py): a candidate that fits the reference's own caption
    better than the edited text is what was not asked for.
    """

    negative: float
    positive: float

    vectors = 2

    def combine(self, scores: Scores) -> Scores:
        """The score; vectors are the edited text's and the original caption's."""
        edited, original = scores[..., 0, :], scores[..., 1, :]
        increment = edited - original
        return edited + self.negative * np.minimum(increment, 0) + self.positive * np.maximum(increment, 0)


@dataclass(frozen=True, eq=False)
class Exclusion:
    """Leaves out candidates whose similarity to `reference` (f32 [D], unit) is `similarity` or more."""

    reference: Vector
    similarity: float


@dataclass(frozen=True, eq=False)
class ComposedQuery:
    """A query ready to search with, and how it came about.

    vectors: f32 [M, D], unit length; M is 1 where `scoring` is `Linear`.
    scoring: how similarities to the vectors become a candidate's score.
    composition: the text that was embedded and what it was made of (of several, that of the whole picture);
        its text is empty where none was.
    captions: what the captioner said, the whole picture's first; empty where it was not asked.
    background: what was done to the reference before it was captioned; None where it was not.
    background_reason: why, in a few words.
    exclusion: near-duplicates of the reference to leave out, or None.
    notes: what did not go as asked, such as a language model that failed.
    texts: all that were embedded to be searched with, `composition`'s first.
    """

    vectors: Vector
    scoring: Scoring
    composition: Composition
    captions: tuple[Caption, ...] = ()
    background: Background | None = None
    background_reason: str = ""
    exclusion: Exclusion | None = None
    notes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def embedding(self) -> Vector:
        """The first vector, f32 [D]: all there is of a linear query; the edited text's of another."""
        return self.vectors[0]

    @property
    def caption(self) -> Caption | None:
        """The whole picture's caption; None where there is none."""
        return self.captions[0] if self.captions else None

    @property
    def caption_cut(self) -> bool:
        """Whether words of the caption were left out to leave room for the modification."""
        return self.composition.caption_cut


def unit(vector: NDArray[Any]) -> Vector:
    """`vector` [..., D] divided by its length, f32.

    Raises:
        InputError: the length is 0: opposite vectors cancelled each other.
    """
    lengths = np.linalg.norm(np.asarray(vector, np.float64), axis=-1, keepdims=True)
    if not (lengths > 1e-6).all():
        raise InputError("the vectors to be mixed cancel each other; change the weights")
    return (vector / lengths).astype(np.float32)


def blend(vectors: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """The unit vector along the weighted sum of `vectors`, f32 [D]: the blend of their cosines as scores.

    Where only one has a weight, it is returned as it is, to the bit.

    Raises:
        InputError: the sum has no direction.
    """
    weighed = [vector for vector, weight in zip(vectors, weights, strict=True) if weight]
    if len(weighed) == 1:
        return weighed[0]
    total = sum(weight * vector.astype(np.float64) for vector, weight in zip(vectors, weights, strict=True))
    return unit(np.asarray(total))
