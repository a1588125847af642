"""Ranking for composed queries whose score is more than the similarity to one vector.

Float32 products over blocks of the gallery bound every candidate's score; those that may be among the best
are scored once more in float64, row by row, so that a score depends on its query and picture alone. Equal
scores are in row order.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tercet.compositions.scoring import ComposedQuery
from tercet.index.products import products

__all__ = ["Contest", "scan"]

# 16 MiB: the similarities that are held at once.
CANDIDATES_AT_ONCE, VECTORS_AT_ONCE = 8192, 512


class Contest:
    """One query and the best `k` candidates that it has seen: `scores` f64 and `rows` i64, best first.

    `excluded` are rows that are no candidates, besides the near-duplicates that the query leaves out.
    """

    def __init__(self, query: ComposedQuery, k: int, excluded: Iterable[int]) -> None:
        self.k = k
        self.scores = np.empty(0)
        self.rows = np.empty(0, np.int64)
        self._excluded = np.array(sorted(excluded), np.int64)
        self._scoring = query.scoring
        self._least_similarity = query.exclusion.similarity if query.exclusion else np.inf
        references = [query.exclusion.reference] if query.exclusion else []
        self.vectors = np.stack([*query.vectors, *references])
        """F32 [M, D], or [M + 1, D] with the reference whose near-duplicates are left out."""

    def see(self, start: int, block: NDArray[np.float32], similarities: NDArray[np.float32]) -> None:
        """Rank rows `start` and following: f32 [B, D], and their similarities to `vectors`, f32 [M, B].

        Blocks come in the order of their rows.
        """
        # How far a float32 inner product of unit vectors may be off.
        rounding = block.shape[1] * 2.0**-23
        wide = similarities[: self._scoring.vectors].astype(np.float64)
        # A score rises or falls with each similarity, so that it is bounded by what the bounds' score is.
        corners = [
            self._scoring.combine(wide + rounding * np.array(signs)[:, None])
            for signs in itertools.product((-1, 1), repeat=len(wide))
        ]
        low, high = np.min(corners, axis=0), np.max(corners, axis=0)
        absent = self._near_duplicates(block, similarities, rounding)
        first, last = np.searchsorted(self._excluded, [start, start + len(block)])
        absent[self._excluded[first:last] - start] = True
        low[absent] = high[absent] = -np.inf

        # An equal score in a later row ranks behind.
        proposed = np.flatnonzero(high > (self.scores[-1] if len(self.rows) == self.k else -np.inf))
        if len(proposed) > self.k:
            least = np.partition(low[proposed], -self.k)[-self.k]
            proposed = proposed[high[proposed] >= least]
        self._add(proposed + start, block[proposed])

    def rank(self, rows: NDArray[np.int64], candidates: NDArray[np.float32]) -> bool:
        """Rank some rows, ascending, and their vectors, f32 [n, D], unless fewer than `k` are candidates."""
        wanted = ~np.isin(rows, self._excluded)
        if np.isfinite(self._least_similarity):
            wanted &= _similarities(candidates, self.vectors[-1]) < self._least_similarity
        if np.count_nonzero(wanted) < self.k:
            return False
        self._add(rows[wanted], candidates[wanted])
        return True

    def _add(self, rows: NDArray[np.int64], candidates: NDArray[np.float32]) -> None:
        if not len(rows):
            return
        vectors = self.vectors[: self._scoring.vectors]
        similarities = np.stack([_similarities(candidates, vector) for vector in vectors])
        scores = np.concatenate([self.scores, self._scoring.combine(similarities)])
        order = np.argsort(-scores, kind="stable")[: self.k]
        self.scores, self.rows = scores[order], np.concatenate([self.rows, rows])[order]

    def _near_duplicates(
        self, block: NDArray[np.float32], similarities: NDArray[np.float32], rounding: float
    ) -> NDArray[np.bool_]:
        if np.isinf(self._least_similarity):
            return np.zeros(len(block), np.bool_)
        absent = similarities[-1] >= self._least_similarity
        unsure = np.flatnonzero(np.abs(similarities[-1] - self._least_similarity) <= rounding)
        absent[unsure] = _similarities(block[unsure], self.vectors[-1]) >= self._least_similarity
        return absent


def scan(contests: Sequence[Contest], blocks: Sequence[NDArray[np.float32]]) -> None:
    """Show the whole gallery, f32 [B, D] each, to the contests."""
    for some in _chunks(contests):
        vectors = np.concatenate([contest.vectors for contest in some])
        ends = np.cumsum([len(contest.vectors) for contest in some])[:-1]
        for start, part, similarities in products(vectors, blocks, CANDIDATES_AT_ONCE):
            for contest, of_contest in zip(some, np.split(similarities, ends), strict=True):
                contest.see(start, part, of_contest)


def _chunks(contests: Sequence[Contest]) -> Iterator[Sequence[Contest]]:
    size = max(1, VECTORS_AT_ONCE // max((len(contest.vectors) for contest in contests), default=1))
    for first in range(0, len(contests), size):
        yield contests[first : first + size]


def _similarities(candidates: NDArray[np.float32], vector: NDArray[np.float32]) -> NDArray[np.float64]:
    # Multiply and sum row by row: a matrix product may round equal rows differently.
    return (candidates * vector.astype(np.float64)).sum(axis=1)
