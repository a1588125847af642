"""Exact search: the best of a gallery by matrix products with its blocks, in float32.

Only scores above a query's worst kept one are looked at again, which after the first block is one in
thousands.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tercet.index.products import products

__all__ = ["best"]

SCORES_AT_ONCE, LEAST_ROWS, MOST_ROWS = 2**18, 2**10, 2**14
"""Queries times rows: few enough for a core's cache, as many as a product needs to run at its speed; within
these numbers of rows."""


def best(
    queries: NDArray[np.float32], blocks: Iterable[NDArray[np.float32]], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `count` highest inner products of each query [Q, D] with the rows of all blocks, [B, D] each.

    Returns:
        Scores f32 [Q, count], best first, and rows i64 [Q, count], counted through the blocks; score -inf and
        row -1 where the blocks have fewer rows. Equal scores are in no order, and any of those at the end
        may be left out.
    """
    kept = _Kept(len(queries), count)
    rows_at_once = min(MOST_ROWS, max(LEAST_ROWS, SCORES_AT_ONCE // max(1, len(queries))))
    for start, _, scores in products(queries, blocks, rows_at_once):
        kept.see(scores, start)
    kept.merge()
    return kept.scores, kept.rows


class _Kept:
    """Each query's best so far, and what may be better and is not sorted in yet."""

    def __init__(self, queries: int, count: int) -> None:
        self.scores = np.full((queries, count), -np.inf, np.float32)
        self.rows = np.full((queries, count), -1, np.int64)
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]] = []
        self._waiting = 0

    def see(self, scores: NDArray[np.float32], start: int) -> None:
        """Consider the scores [Q, B] of rows `start` and following."""
        queries, count = self.scores.shape
        if np.isneginf(self.scores[:, -1]).any() and scores.shape[1] > count:
            # At first everything is better than nothing.
            columns = np.argpartition(scores, -count, axis=1)[:, -count:].ravel()
            numbers = np.repeat(np.arange(queries), count)
        else:
            numbers, columns = np.divmod(
                np.flatnonzero((scores > self.scores[:, -1:]).ravel()), scores.shape[1]
            )
        if len(columns):
            self._pending.append((numbers, scores[numbers, columns], columns + start))
            self._waiting += len(columns)
        if self._waiting >= self.scores.size:
            self.merge()

    def merge(self) -> None:
        """Sort in what waits."""
        queries, count = self.scores.shape
        numbers = np.concatenate(
            [np.repeat(np.arange(queries), count), *(numbers for numbers, _, _ in self._pending)]
        )
        scores = np.concatenate([self.scores.ravel(), *(scores for _, scores, _ in self._pending)])
        rows = np.concatenate([self.rows.ravel(), *(rows for _, _, rows in self._pending)])
        order = np.lexsort((-scores, numbers))
        # Every query has at least the `count` that it had.
        first = np.searchsorted(numbers[order], np.arange(queries))
        chosen = order[first[:, None] + np.arange(count)]
        self.scores, self.rows = scores[chosen], rows[chosen]
        self._pending, self._waiting = [], 0
