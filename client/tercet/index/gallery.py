"""Searching an index: which pictures of the gallery lie nearest to a query's embedding.

Candidates are proposed in float32, by matrix products over memory-mapped blocks, or by a graph or codes. Then
they are scored in float64, so that a score depends on its query and picture alone: equal pictures score
equal, in row order.
"""

import functools
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray

from tercet.compositions.scoring import ComposedQuery, Linear
from tercet.errors import IndexDamaged, IndexMismatch, InputError
from tercet.index import storage
from tercet.index.build import UNIT_TOLERANCE
from tercet.index.composed import Contest, scan
from tercet.index.exact import best
from tercet.index.proposals import Proposer, open_proposer
from tercet.index.storage import Catalogue

MARGIN = 32
"""Candidates that exact search takes beyond those wanted, to settle near-ties among them."""

PROPOSALS_AT_ONCE = 2**21
"""Bounds the memory of a search: queries times candidates that are held at once."""

QUERIES_AT_ONCE = 256
PROPOSALS_A_VECTOR = 1000
"""Candidates, at least, that are proposed for each vector of a query that is scored by several."""


class GalleryIndex:
    """A gallery's embeddings, f32 [len(index), dimension], one row per picture; `names[row]` is the picture.

    Load it with `GalleryIndex.load`. Searching from several threads at once is safe.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        root: Path,
        names: list[str],
        blocks: list[NDArray],
        proposer: Proposer | None,
    ) -> None:
        self.encoder_fingerprint = catalogue.encoder_fingerprint
        self.dimension = catalogue.dimension
        self.kind = catalogue.kind
        self.root = root
        self.names = names
        self._blocks = blocks
        self._starts = np.cumsum([0] + [len(block) for block in blocks])
        self._proposer = proposer

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        encoder_fingerprint: str | None = None,
        root: str | os.PathLike[str] | None = None,
        verify: bool = True,
    ) -> Self:
        """Open an index, its vectors memory-mapped.

        Args:
            path: the index.
            encoder_fingerprint: of the encoder that will embed the queries, if it is to be compared.
            root: where the gallery is now, if it has moved since it was indexed.
            verify: compare every file with its SHA-256, which reads the index once (about 1 GB a second).

        Raises:
            IndexDamaged: files are missing, truncated or altered.
            IndexMismatch: the index was built by another encoder.
        """
        index = Path(path)
        while True:
            catalogue = storage.read_catalogue(index)
            if encoder_fingerprint not in (None, catalogue.encoder_fingerprint):
                raise IndexMismatch(
                    f"{index} was built by encoder {catalogue.encoder_fingerprint[:12]}, the server runs "
                    f"encoder {str(encoder_fingerprint)[:12]}: their embeddings cannot be compared. Serve "
                    "the lineup it was built with, or embed the gallery anew: tercet index --rebuild"
                )
            try:
                names, blocks = _open(index, catalogue, verify)
                proposer = open_proposer(index, catalogue, verify)
            except IndexDamaged:
                if storage.read_catalogue(index) == catalogue:
                    raise
                # A build has replaced the index meanwhile: open the new one.
            else:
                return cls(catalogue, Path(catalogue.root if root is None else root), names, blocks, proposer)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> Sequence[Path]:
        """The pictures' files, by row."""
        return _Paths(self.root, self.names)

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    def row_of(self, path: str | os.PathLike[str]) -> int | None:
        """The row of a picture, by its name in the index or its file's path; None if it is not there."""
        row = self._rows.get(os.fspath(path))
        for absolute in (os.path.abspath(path), os.path.realpath(path)):
            if row is None:
                row = self._rows.get(os.path.relpath(absolute, self.root.resolve()))
        return row

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The embeddings of `rows` [N], f32 [N, dimension]."""
        vectors = np.empty((len(rows), self.dimension), np.float32)
        order = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows[order], self._starts)
        for block in np.flatnonzero(ends[1:] > ends[:-1]):
            of_block = order[ends[block] : ends[block + 1]]
            vectors[of_block] = self._blocks[block][rows[of_block] - self._starts[block]]
        return vectors

    def near(self, embedding: NDArray[np.float32], similarity: float) -> NDArray[np.int64]:
        """The rows whose cosine similarity to `embedding` [dimension] is `similarity` or more, best first."""
        wanted = 16
        while True:
            scores, rows = self.search(embedding[None], wanted)
            if scores[0, -1] < similarity or len(rows[0]) == len(self):
                return rows[0][scores[0] >= similarity]
            wanted *= 4

    def search(
        self,
        embeddings: NDArray[np.float32],
        k: int,
        *,
        exclude: Sequence[Collection[int | str | os.PathLike[str]]] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the best `k` pictures of each query, best first: cosine similarities and rows.

        Args:
            embeddings: queries of unit length, f32 [Q, dimension].
            k: pictures a query, at least 1; more than the index holds is as many as it holds.
            exclude: per query, rows or paths that are not candidates; paths not in the index are ignored.

        Returns:
            Scores f32 [Q, K], rows i64 [Q, K], K = min(k, len(index)). Equal scores are in row order. Where
            exclusion leaves fewer than K candidates, the rest is score -inf, row -1.

        Raises:
            InputError: a query is not a finite unit vector, k < 1, or `exclude` does not fit.
            IndexMismatch: queries of another dimension.
        """
        queries = self._checked(embeddings)
        found, excluded = self._wanted(len(queries), k, exclude)
        scores = np.full((len(queries), found), -np.inf, np.float32)
        rows = np.full((len(queries), found), -1, np.int64)
        depth = min(found + max(map(len, excluded), default=0), len(self))
        for query, ranked_scores, ranked_rows in self._ranked(queries, depth):
            if excluded[query]:
                candidates = ~np.isin(ranked_rows, list(excluded[query]))
                ranked_scores, ranked_rows = ranked_scores[candidates], ranked_rows[candidates]
            count = min(found, len(ranked_rows))
            scores[query, :count], rows[query, :count] = ranked_scores[:count], ranked_rows[:count]
        return scores, rows

    def search_composed(
        self,
        queries: Sequence[ComposedQuery],
        k: int,
        *,
        exclude: Sequence[Collection[int | str | os.PathLike[str]]] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the best `k` pictures of each composed query, best first: scores and rows.

        Those that `search` cannot answer are scored exactly over the whole gallery. With a graph or
        codes it is what these propose for each of their vectors that is scored exactly: a picture that is
        near none of them is not found. Near-duplicates of the reference (`ComposedQuery.exclusion`) are left
        out besides `exclude`.

        Args, returns and raises as `search` does; a score is what the query's scoring makes of it.
        """
        for number, query in enumerate(queries):
            if query.vectors.ndim != 2 or len(query.vectors) != query.scoring.vectors:
                raise InputError(
                    f"query {number} has vectors of shape {query.vectors.shape}; its scoring takes "
                    f"[{query.scoring.vectors}, {self.dimension}]"
                )
            self._checked(query.vectors)
            if query.exclusion is not None:
                self._checked(query.exclusion.reference[None])
        found, excluded = self._wanted(len(queries), k, exclude)
        scores = np.full((len(queries), found), -np.inf, np.float32)
        rows = np.full((len(queries), found), -1, np.int64)
        plain: list[int] = []
        contests: dict[int, Contest] = {}
        for number, query in enumerate(queries):
            if isinstance(query.scoring, Linear) and query.exclusion is None:
                plain.append(number)
            else:
                contests[number] = Contest(query, found, excluded[number])
        if plain:
            embeddings = np.concatenate([queries[number].vectors for number in plain])
            scores[plain], rows[plain] = self.search(
                embeddings, k, exclude=[excluded[number] for number in plain]
            )
        scan([contest for contest in contests.values() if not self._rank_proposed(contest)], self._blocks)
        for number, contest in contests.items():
            scores[number, : len(contest.rows)] = contest.scores
            rows[number, : len(contest.rows)] = contest.rows
        return scores, rows

    def _rank_proposed(self, contest: Contest) -> bool:
        """Rank what is proposed for the contest's vectors; False where that is too little."""
        depth = max(PROPOSALS_A_VECTOR, 4 * contest.k)
        if self._proposer is None or depth >= len(self):
            return False
        proposals = self._proposer.propose(contest.vectors, depth)
        rows = np.unique(proposals[proposals >= 0])
        return contest.rank(rows, self.vectors(rows))

    def _wanted(
        self, count: int, k: int, exclude: Sequence[Collection[int | str | os.PathLike[str]]] | None
    ) -> tuple[int, list[set[int]]]:
        """How many pictures a query can find, and the rows that each leaves out."""
        if k < 1:
            raise InputError(f"k is {k}; ask for at least 1 picture")
        if exclude is not None and len(exclude) != count:
            raise InputError(f"exclude has {len(exclude)} entries for {count} queries; give one per query")
        excluded = [self._excluded(items) for items in exclude] if exclude is not None else [set()] * count
        return min(k, len(self)), excluded

    def _checked(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        queries = np.ascontiguousarray(embeddings, dtype=np.float32)
        if queries.ndim != 2:
            raise InputError(f"queries have shape {queries.shape}; give [queries, {self.dimension}]")
        if queries.shape[1] != self.dimension:
            raise IndexMismatch(
                f"queries have {queries.shape[1]} dimensions, the index {self.dimension}: they come from "
                "different encoders; embed the queries with the one that built the index"
            )
        bad = np.flatnonzero(~(np.abs(np.linalg.norm(queries, axis=1) - 1) < UNIT_TOLERANCE))
        if len(bad):
            length = float(np.linalg.norm(queries[bad[0]]))
            raise InputError(f"query {bad[0]} has length {length:g}, not 1; divide it by its length")
        return queries

    def _excluded(self, items: Collection[int | str | os.PathLike[str]]) -> set[int]:
        rows = set()
        for item in items:
            row = self.row_of(item) if isinstance(item, str | os.PathLike) else int(item)
            if row is not None:
                if not 0 <= row < len(self):
                    raise InputError(f"cannot exclude row {row}: the index has rows 0 to {len(self) - 1}")
                rows.add(row)
        return rows

    def _ranked(
        self, queries: NDArray[np.float32], depth: int
    ) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.int64]]]:
        """Per query its number, and scores and rows of its best `depth` pictures or more, best first."""
        remaining: Sequence[int] = range(len(queries))
        if self._proposer is not None:
            remaining = []
            for numbers in _chunks(range(len(queries)), depth):
                proposals = self._proposer.propose(queries[numbers], depth)
                for number, rows in zip(numbers, proposals, strict=True):
                    if np.count_nonzero(rows >= 0) < depth:
                        remaining.append(number)  # A graph may reach too few: ask exactly.
                    else:
                        yield number, *self._rank(queries[number], rows[rows >= 0], depth)
        asked = depth
        while remaining:
            asked = min(asked + MARGIN, len(self))
            unsettled = []
            for numbers in _chunks(remaining, asked):
                proposed, proposals = best(queries[numbers], self._blocks, asked)
                for number, floor, rows in zip(numbers, proposed.min(axis=1), proposals, strict=True):
                    scores, rows = self._rank(queries[number], rows, depth)
                    # By the rounding of a float32 inner product of unit vectors.
                    highest_outside = floor + self.dimension * 2.0**-23
                    if asked == len(self) or highest_outside < scores[depth - 1]:
                        yield number, scores, rows
                    else:
                        unsettled.append(number)
            remaining = unsettled
            asked *= 4

    def _rank(
        self, query: NDArray[np.float32], rows: NDArray[np.int64], depth: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Scores and rows of the best `depth` of some rows, or more, best first."""
        rows = np.sort(rows)
        vectors = self.vectors(rows)
        if len(rows) > depth:
            # What float32 tells apart need not be scored again. Not by BLAS: its threads go on spinning for
            # milliseconds, on the processor that the next search wants.
            rough = np.einsum("ij,j->i", vectors, query)
            floor = np.partition(rough, -depth)[-depth] - self.dimension * 2.0**-22
            rows, vectors = rows[rough >= floor], vectors[rough >= floor]
        # Multiply and sum row by row: a matrix product may round equal rows differently.
        scores = (vectors * query.astype(np.float64)).sum(axis=1)
        order = np.argsort(-scores, kind="stable")
        return scores[order], rows[order]


@dataclass(frozen=True)
class _Paths(Sequence[Path]):
    """Paths that are made when they are asked for: a million of them take seconds, and 300 MB."""

    root: Path
    names: list[str]

    @overload
    def __getitem__(self, row: int) -> Path: ...
    @overload
    def __getitem__(self, row: slice) -> list[Path]: ...
    def __getitem__(self, row: int | slice) -> Path | list[Path]:
        if isinstance(row, slice):
            return [self.root / name for name in self.names[row]]
        return self.root / self.names[row]

    def __len__(self) -> int:
        return len(self.names)


def _chunks(numbers: Sequence[int], candidates: int) -> Iterator[list[int]]:
    size = max(1, min(QUERIES_AT_ONCE, PROPOSALS_AT_ONCE // candidates))
    for start in range(0, len(numbers), size):
        yield list(numbers[start : start + size])


def _open(index: Path, catalogue: Catalogue, verify: bool) -> tuple[list[str], list[NDArray]]:
    names: list[str] = []
    blocks = []
    for record in catalogue.shards:
        path = storage.vectors_path(index, record.name)
        if verify:
            storage.check_file(path, record.vectors_sha256)
            storage.check_file(storage.entries_path(index, record.name), record.entries_sha256)
        try:
            block = storage.map_vectors(index, record.name, catalogue.dimension)
        except OSError as error:
            raise storage.damaged(path, str(error.strerror)) from None
        if len(block) != record.count:
            raise storage.damaged(path, f"it holds {len(block)} vectors, the catalogue says {record.count}")
        blocks.append(block)
        names += storage.read_names(index, record)
    return names, blocks
