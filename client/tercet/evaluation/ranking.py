"""Ranking a task's queries: the best candidates of each, and the exact rank of every target.

Matrix products over blocks of the gallery propose in float64, but how they round depends on a candidate's
place in the block. So whatever lies within rounding of a rank to decide is scored once more, multiplied and
summed alone: such a score depends on query and picture only. Equal pictures score equal, and equal scores
rank in the order of the gallery.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tercet.compositions.scoring import Linear, Scoring
from tercet.errors import DatasetError, InputError
from tercet.evaluation.values import Query, Ranking, Task

__all__ = ["near", "rank"]

UNIT_TOLERANCE = 0.01
"""How far from 1 the length of a vector may be."""

ROUNDING = 1e-9
"""Bounds how far two roundings of a score may lie apart: a similarity's, and what a scoring makes of that."""

SIMILARITY_ROUNDING = 1e-12
"""The same of a cosine similarity; the rounding of 1,000 dimensions gives 2e-13."""

# 100 MB each: a block of the gallery, and its scores.
CANDIDATES_AT_ONCE, VECTORS_AT_ONCE = 8192, 1024


def rank(
    task: Task,
    vectors: Sequence[NDArray[np.float32]] | NDArray[np.float32],
    gallery: NDArray[np.float32],
    rows: Mapping[str, int],
    *,
    scorings: Sequence[Scoring | None] | None = None,
    exclude: Sequence[Collection[int]] | None = None,
    top: int = 50,
) -> Ranking:
    """Rank the candidates of every query of `task` by cosine similarity.

    Args:
        task: the queries, whose names, targets and candidates are pictures' names.
        vectors: per query its unit vectors, f32 [M, D]; an array [Q, M, D] where M is the same for all.
        gallery: unit vectors of pictures, f32 [N, D]; may be memory-mapped.
        rows: the row of each picture of the task in `gallery`.
        scorings: per query how its M scores are combined, each candidate's by themselves, rising or falling
            with each similarity, and no more than a thousand times as fast; None is `Linear`, for M = 1.
        exclude: per query rows of `gallery` that are not candidates, besides the reference where
            `task.exclude_reference` says so.
        top: how many of the best to return.

    Raises:
        InputError: vectors are not finite or not of unit length, or the arguments do not fit each other.
        DatasetError: a candidate or a subset's picture has no embedding, or the gallery lists one twice.
    """
    count = len(task.queries)
    for name, given in (("vectors", vectors), ("scorings", scorings), ("exclude", exclude)):
        if given is not None and len(given) != count:
            raise InputError(f"{task.name}: {len(given)} {name} for {count} queries; give one per query")
    if top < 1:
        raise InputError(f"top is {top}; ask for at least 1 candidate")
    shared = _candidates(task.gallery, rows, f"the candidates of {task.name}")
    contests = []
    for number, query in enumerate(task.queries):
        excluded = set(exclude[number]) if exclude is not None else set()
        if task.exclude_reference and query.reference in rows:
            excluded.add(rows[query.reference])
        scoring = scorings[number] if scorings is not None else None
        contests.append(_Contest(query, vectors[number], scoring, gallery, rows, excluded, top))
    _run([contest for contest in contests if contest.query.candidates is None], shared, gallery)
    for contest in contests:
        if contest.query.candidates is not None:
            own = _candidates(contest.query.candidates, rows, f"the candidates of query {contest.query.name}")
            _run([contest], own, gallery)

    listed = [len(shared) if query.candidates is None else len(query.candidates) for query in task.queries]
    ranking = Ranking(
        top=np.full((count, min(top, max(listed, default=0))), -1, np.int64),
        scores=np.full((count, min(top, max(listed, default=0))), -np.inf),
        target_ranks=tuple(contest.target_ranks for contest in contests),
        subset_ranks=tuple(contest.subset_ranks for contest in contests),
        subset_top=tuple(contest.subset_top for contest in contests),
    )
    for number, contest in enumerate(contests):
        ranking.top[number, : len(contest.best)] = contest.best
        ranking.scores[number, : len(contest.best)] = contest.best_scores
    return ranking


def near(
    vectors: NDArray[np.float32], gallery: NDArray[np.float32], similarity: float
) -> list[NDArray[np.int64]]:
    """Per vector [Q, D], the rows of `gallery` [N, D] of cosine similarity `similarity` or more, ascending.

    Raises:
        InputError: vectors are not finite or not of unit length.
    """
    for number, vector in enumerate(vectors):
        _check_unit(vector[None], gallery.shape[1], f"vector {number}")
    found: list[list[NDArray[np.int64]]] = [[] for _ in vectors]
    for first in range(0, len(vectors), VECTORS_AT_ONCE):
        some = vectors[first : first + VECTORS_AT_ONCE].astype(np.float64)
        for start, block in _blocks(gallery, np.arange(len(gallery))):
            for number, scores in enumerate(some @ block.T, first):
                found[number].append(np.flatnonzero(scores >= similarity - ROUNDING) + start)
    return [np.concatenate([np.empty(0, np.int64), *rows]) for rows in found]


class _Contest:
    """One query and what it has seen of its candidates, which come block by block in their order."""

    def __init__(
        self,
        query: Query,
        vectors: NDArray[np.float32],
        scoring: Scoring | None,
        gallery: NDArray[np.float32],
        rows: Mapping[str, int],
        excluded: set[int],
        depth: int,
    ) -> None:
        self.query, self.depth = query, depth
        self.scoring = Linear() if scoring is None else scoring
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or len(vectors) != self.scoring.vectors:
            raise InputError(
                f"query {query.name} has vectors of shape {vectors.shape}; its scoring takes "
                f"[{self.scoring.vectors}, {gallery.shape[1]}]"
            )
        _check_unit(vectors, gallery.shape[1], f"query {query.name}")
        self.vectors = vectors
        self._excluded_rows = excluded
        self._excluded = np.empty(0, np.int64)  # places
        self.best = np.empty(0, np.int64)
        self.best_scores = np.empty(0)
        self._gallery, self._rows = gallery, rows
        # Of each target that is a candidate: its number in Query.targets, place among the candidates and
        # score; and how many rank before it.
        self._targets: list[tuple[int, int, float]] = []
        self._before: list[int] = []
        self.target_ranks = np.full(len(query.targets), np.inf)
        self.subset_ranks = np.full(len(query.targets) if query.subset else 0, np.inf)
        self.subset_top: tuple[str, ...] = ()

    def start(self, places: Mapping[int, int]) -> None:
        """Score targets and subset; `places` gives the place among the candidates of a row of the gallery."""
        excluded = self._excluded_rows
        self._excluded = np.array([places[row] for row in excluded if row in places], np.int64)
        targets = [
            (number, places[row])
            for number, name in enumerate(self.query.targets)
            if (row := self._rows.get(name, -1)) in places and row not in excluded
        ]
        scores = self._score_rows([self._rows[self.query.targets[number]] for number, _ in targets])
        self._targets = [(*target, score) for target, score in zip(targets, scores.tolist(), strict=True)]
        self._before = [0] * len(targets)

        rows = _rows_of(self.query.subset, self._rows, f"the subset of query {self.query.name}")
        if any(row not in places for row in rows.tolist()):
            raise DatasetError(
                f"the subset of query {self.query.name} holds pictures that are no candidates; "
                "check the data set's files"
            )
        names = [name for name in self.query.subset if self._rows[name] not in excluded]
        rows = _rows_of(names, self._rows, "")
        order = np.lexsort((np.array([places[row] for row in rows.tolist()]), -self._score_rows(rows)))
        self.subset_top = tuple(names[place] for place in order)
        for number, name in enumerate(self.query.targets):
            if name in self.subset_top:
                self.subset_ranks[number] = 1 + self.subset_top.index(name)

    def see(self, start: int, block: NDArray[np.float64], similarities: NDArray[np.float64]) -> None:
        """Rank candidates `start` and following: f64 [B, D] and their similarities, f64 [M, B]."""
        low, high = self._bounds(similarities)
        absent = self._excluded[(self._excluded >= start) & (self._excluded < start + len(block))] - start
        low[absent] = high[absent] = -np.inf

        def settle(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
            scores = low[numbers]
            uncertain = np.flatnonzero(scores < high[numbers])
            scores[uncertain] = self._score(block[numbers[uncertain]])
            return scores

        # Equal scores rank in the candidates' order: whoever comes later must be better.
        proposed = np.flatnonzero(high > (self.best_scores[-1] if len(self.best) == self.depth else -np.inf))
        if len(proposed) > self.depth:
            least = np.partition(low[proposed], -self.depth)[-self.depth]
            proposed = proposed[high[proposed] >= least]
        if len(proposed):
            scores = np.concatenate([self.best_scores, settle(proposed)])
            order = np.argsort(-scores, kind="stable")[: self.depth]
            self.best = np.concatenate([self.best, proposed + start])[order]
            self.best_scores = scores[order]
        for number, (_, place, score) in enumerate(self._targets):
            above = np.count_nonzero(low > score)
            self._before[number] += above
            if np.count_nonzero(high >= score) > above:
                close = np.flatnonzero((low <= score) & (high >= score))
                scores, earlier = settle(close), close + start < place
                self._before[number] += np.count_nonzero((scores > score) | ((scores == score) & earlier))

    def finish(self) -> None:
        """Every candidate has been seen."""
        for (number, _, _), before in zip(self._targets, self._before, strict=True):
            self.target_ranks[number] = 1 + before

    def _score_rows(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        return self._score(np.asarray(self._gallery[np.asarray(rows, np.int64)], np.float64))

    def _bounds(self, similarities: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What the scores that decide lie between, f64 [B] each, of similarities [M, B]; equal where certain.

        A product gives 0 to all below its floors, maybe most of the gallery: where rounding the similarities
        either way gives one and the same score, that is the score, and need not be calculated again.
        """
        if isinstance(self.scoring, Linear):
            return similarities[0] - ROUNDING, similarities[0] + ROUNDING
        rounded = [
            self._combine(similarities + SIMILARITY_ROUNDING * np.array(signs)[:, None])
            for signs in itertools.product((-1, 1), repeat=len(similarities))
        ]
        low, high = np.minimum.reduce(rounded), np.maximum.reduce(rounded)
        width = np.where(low < high, ROUNDING, 0)
        return low - width, high + width

    def _score(self, candidates: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores [n] that decide, of candidates [n, D]: each depends on its candidate alone."""
        similarities = np.stack([(candidates * vector).sum(axis=1) for vector in self.vectors], axis=1)
        return self._combine(similarities[:, :, None])[:, 0]

    def _combine(self, similarities: NDArray[np.float64]) -> NDArray[np.float64]:
        scores = np.asarray(self.scoring.combine(similarities), np.float64)
        if scores.shape != similarities.shape[:-2] + similarities.shape[-1:] or not np.isfinite(scores).all():
            raise InputError(
                f"the scoring of query {self.query.name} gave no finite score for every candidate: "
                f"shape {scores.shape} of similarities {similarities.shape}"
            )
        return scores


def _run(contests: Sequence[_Contest], rows: NDArray[np.int64], gallery: NDArray[np.float32]) -> None:
    """Show the candidates, rows of the gallery in the order that breaks ties, to the contests."""
    places = {row: place for place, row in enumerate(rows.tolist())}
    for contest in contests:
        contest.start(places)
    for some in _chunks(contests):
        vectors = np.concatenate([contest.vectors for contest in some]).astype(np.float64)
        for start, block in _blocks(gallery, rows):
            similarities = vectors @ block.T
            first = 0
            for contest in some:
                last = first + len(contest.vectors)
                contest.see(start, block, similarities[first:last])
                first = last
    for contest in contests:
        contest.finish()


def _chunks(contests: Sequence[_Contest]) -> Iterator[list[_Contest]]:
    """Contests together, as many as VECTORS_AT_ONCE allows."""
    some: list[_Contest] = []
    vectors = 0
    for contest in contests:
        if some and vectors + len(contest.vectors) > VECTORS_AT_ONCE:
            yield some
            some, vectors = [], 0
        some.append(contest)
        vectors += len(contest.vectors)
    if some:
        yield some


def _blocks(
    gallery: NDArray[np.float32], rows: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The vectors of `rows` in blocks: the first's place and f64 [B, D]."""
    for start in range(0, len(rows), CANDIDATES_AT_ONCE):
        some = rows[start : start + CANDIDATES_AT_ONCE]
        block = np.asarray(gallery[some], np.float64)
        bad = ~(np.abs(np.sqrt(np.einsum("nd,nd->n", block, block)) - 1) < UNIT_TOLERANCE)
        if bad.any():
            raise InputError(
                f"row {some[np.argmax(bad)]} of the gallery is not a finite vector of unit length; "
                "embed the gallery again"
            )
        yield start, block


def _candidates(names: Sequence[str], rows: Mapping[str, int], where: str) -> NDArray[np.int64]:
    found = _rows_of(names, rows, where)
    if len(np.unique(found)) < len(found):
        raise DatasetError(f"{where} list a picture twice; list each once")
    return found


def _rows_of(names: Sequence[str], rows: Mapping[str, int], where: str) -> NDArray[np.int64]:
    try:
        return np.array([rows[name] for name in names], np.int64)
    except KeyError as error:
        raise DatasetError(
            f"{where} names {error}, which has no embedding; check the data set's files"
        ) from None


def _check_unit(vectors: NDArray, dimension: int, whose: str) -> None:
    if vectors.shape[1] != dimension:
        raise InputError(
            f"{whose} has {vectors.shape[1]} dimensions, the gallery {dimension}: they come from different "
            "encoders; embed both with one"
        )
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not (np.abs(lengths - 1) < UNIT_TOLERANCE).all():
        raise InputError(f"{whose} has a vector of length {lengths[np.argmax(np.abs(lengths - 1))]:g}, not 1")
