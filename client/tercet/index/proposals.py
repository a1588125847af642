"""What proposes candidates when a gallery is too large to compare with every query: a graph, or codes.

Both are files of FAISS beside the vectors, and only propose: the gallery scores what they propose with the
vectors themselves. A graph (HNSW) holds all the vectors once more, in memory.

Codes are a bit for every dimension, in segments of a quarter of a million pictures: a segment is made from
its own shards alone, in little memory, and stays as it is as long as they do. They are a product quantiser's,
whose books of 16 get as many of the principal directions as 4 bits are due to by the pictures' variance along
them (reverse water-filling: Cover and Thomas, "Elements of Information Theory", 10.3.3). All of a segment's
codes are read for a query, 32 at a time by table look-ups in registers (Andre, Kermarrec and Le Scouarnec,
"Cache locality is not enough", VLDB 2015, as FAISS's fast-scan does it): there is no list that a query from
outside the pictures' cloud could miss.
"""

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from tercet.errors import GalleryIndexError
from tercet.index import storage
from tercet.index.storage import Catalogue, ProposerRecord, ShardRecord

__all__ = ["Codes", "Graph", "Proposer", "build_codes", "build_graph", "open_proposer"]

# FAISS's own default of neighbours; its default effort of 40 loses recall.
GRAPH_NEIGHBOURS, GRAPH_BUILD_EFFORT = 32, 128
# FAISS's default of 16 loses much recall, the more as queries made of text lie outside the pictures' cloud.
GRAPH_SEARCH_EFFORT = 512

SEGMENT = 2**18
"""Pictures a segment of codes, at least, but for a gallery's only or last one."""
SAMPLE = 20_000
"""Vectors of a segment that its code book is fitted to."""
CODES_PROPOSALS = 1000
"""Candidates, at least, that codes propose for a query: their order is rough."""
BOOK, BOOK_BITS = 16, 4
DIMENSIONS_A_BOOK = 4
MOST_A_BOOK = 8
ENCODED_AT_ONCE = 8192
FAST_SCAN = 15
"""FAISS's number of the way to scan that reads memory fastest when one query is asked."""


class Proposer(Protocol):
    """Names candidates for queries."""

    def propose(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Rows [Q, count or more], probably the best of each query [Q, D]; -1 where there are no more."""


class Graph:
    """An HNSW graph. Searching it from several threads at once is safe."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def propose(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Rows i64 [Q, count]."""
        effort = faiss.SearchParametersHNSW(efSearch=max(GRAPH_SEARCH_EFFORT, 2 * count))  # type: ignore[attr-defined]
        return self._graph.search(queries, count, params=effort)[1]


class Codes:
    """Codes in segments, `starts[s]` the first row of the s-th. Searching from several threads is safe."""

    def __init__(self, segments: Sequence[Any]) -> None:
        self._segments = segments
        self._starts = np.cumsum([0] + [segment.ntotal for segment in segments])
        self._searching, self._counting = 0, threading.Lock()

    def propose(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Rows i64 [Q, P], P = max(`CODES_PROPOSALS`, 4 `count`), if there are so many."""
        count = min(max(CODES_PROPOSALS, 4 * count), int(self._starts[-1]))
        with self._counting:
            self._searching += 1
            # Several queries are shared out by FAISS itself, and several callers are threads already.
            shared = len(queries) == 1 and self._searching == 1 < self._threads
        try:
            found = self._search(queries, count, shared)
        finally:
            with self._counting:
                self._searching -= 1
        if len(found) == 1:
            return found[0][1]
        scores = np.concatenate([scores for scores, _ in found], axis=1)
        rows = np.concatenate(
            [
                np.where(rows < 0, -1, rows + start)
                for (_, rows), start in zip(found, self._starts, strict=False)
            ],
            axis=1,
        )
        scores[rows < 0] = -np.inf
        best = np.argpartition(scores, -count, axis=1)[:, -count:]
        return np.take_along_axis(rows, best, axis=1)

    def _search(
        self, queries: NDArray[np.float32], count: int, shared: bool
    ) -> list[tuple[NDArray, NDArray]]:
        def search(segment: Any) -> tuple[NDArray, NDArray]:
            return segment.search(queries, min(count, segment.ntotal))

        if not shared:
            return [search(segment) for segment in self._segments]
        # The others begin at the front, this thread takes from the end what nobody has begun: one that waits
        # instead is in the way of those that it wakes, on the processor that it has just left.
        begun = [self._pool.submit(search, segment) for segment in self._segments]
        found = [
            search(segment) if future.cancel() else future.result()
            for segment, future in zip(reversed(self._segments), reversed(begun), strict=True)
        ]
        return found[::-1]

    @property
    def _threads(self) -> int:
        return min(len(self._segments), faiss.omp_get_max_threads())

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads - 1, "tercet-codes")


def build_graph(
    index: Path,
    shards: Sequence[ShardRecord],
    dimension: int,
    old: Sequence[ProposerRecord],
    on_progress: Callable[[int], None],
) -> ProposerRecord:
    """The HNSW graph of the shards' vectors: the old one if it is whole and theirs, else a new one."""
    file = f"graph-{_rows(shards)[:16]}.faiss"
    if (kept := _kept(index, file, shards, old)) is not None:
        return kept
    graph = faiss.IndexHNSWFlat(dimension, GRAPH_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = GRAPH_BUILD_EFFORT
    for shard in shards:
        graph.add(np.ascontiguousarray(storage.map_vectors(index, shard.name, dimension)))
        on_progress(graph.ntotal)
    return _write(index, file, shards, graph)


def build_codes(
    index: Path,
    shards: Sequence[ShardRecord],
    dimension: int,
    old: Sequence[ProposerRecord],
    on_progress: Callable[[int], None],
    *,
    segment: int = SEGMENT,
) -> list[ProposerRecord]:
    """The codes of the shards' vectors: old segments that are whole and theirs, new ones for the others."""
    records = []
    done = 0
    for some in _segments(shards, segment):
        file = f"codes-{_rows(some)[:16]}.faiss"
        record = _kept(index, file, some, old)
        done += sum(shard.count for shard in some)
        if record is None:
            record = _write(index, file, some, _encode(index, some, dimension))
            on_progress(done)
        records.append(record)
    return records


def _segments(shards: Sequence[ShardRecord], size: int) -> list[list[ShardRecord]]:
    """The shards in groups of at least `size` vectors, what is left at the end in the last group."""
    groups: list[list[ShardRecord]] = [[]]
    for shard in shards:
        if sum(other.count for other in groups[-1]) >= size:
            groups.append([])
        groups[-1].append(shard)
    if len(groups) > 1 and sum(shard.count for shard in groups[-1]) < size // 2:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def _encode(index: Path, shards: Sequence[ShardRecord], dimension: int) -> Any:
    blocks = [storage.map_vectors(index, shard.name, dimension) for shard in shards]
    step = max(1, sum(map(len, blocks)) // SAMPLE)
    sample = np.concatenate([block[::step] for block in blocks])
    books = -(-dimension // DIMENSIONS_A_BOOK)
    directions = _shared_out(sample, books)
    quantiser = faiss.IndexPQFastScan(len(directions), books, BOOK_BITS, faiss.METRIC_INNER_PRODUCT)
    quantiser.pq.cp.min_points_per_centroid = 1  # FAISS warns of small galleries on standard output.
    quantiser.implem = FAST_SCAN
    turn = faiss.LinearTransform(dimension, len(directions))
    faiss.copy_array_to_vector(directions.ravel(), turn.A)
    turn.is_trained = True
    codes = faiss.IndexPreTransform(turn, quantiser)
    codes.train(np.resize(sample, (max(len(sample), BOOK), dimension)))
    for block in blocks:
        for start in range(0, len(block), ENCODED_AT_ONCE):
            codes.add(block[start : start + ENCODED_AT_ONCE])
    return codes


def _shared_out(sample: NDArray[np.float32], books: int) -> NDArray[np.float32]:
    """A sample's [N, D] principal directions as books get them, f32 [books * S, D], zeros for none."""
    centred = sample - sample.mean(axis=0, dtype=np.float64)
    covariance = centred.T @ centred / len(sample)
    variances, principal = np.linalg.eigh(covariance)
    variances, principal = np.maximum(variances[::-1], 1e-9), principal[:, ::-1].T

    def bits(level: float) -> NDArray[np.float64]:
        due = np.log2(variances / level) / 2
        return np.clip(due, BOOK_BITS / MOST_A_BOOK, BOOK_BITS)

    low, high = variances[-1] * 2.0 ** (-2 * BOOK_BITS), variances[0]
    for _ in range(60):
        level = np.sqrt(low * high)
        low, high = (level, high) if bits(level).sum() > BOOK_BITS * books else (low, level)
    due = bits(high)
    book = ((np.cumsum(due) - due / 2) * books / due.sum()).astype(np.int64)
    counts = np.bincount(book, minlength=books)
    place = np.arange(len(book)) - np.repeat(np.cumsum(counts) - counts, counts)
    directions = np.zeros((books, counts.max(), len(book)), np.float32)
    directions[book, place] = principal
    return directions.reshape(-1, len(book))


def _rows(shards: Sequence[ShardRecord]) -> str:
    """Identifies what the shards' vectors are, in order."""
    return hashlib.sha256("".join(shard.vectors_sha256 for shard in shards).encode()).hexdigest()


def _kept(
    index: Path, file: str, shards: Sequence[ShardRecord], old: Sequence[ProposerRecord]
) -> ProposerRecord | None:
    path = index / file
    for record in old:
        same = record.file == file and record.rows == _rows(shards)
        if same and path.exists() and storage.file_sha256(path) == record.sha256:
            return record
    return None


def _write(index: Path, file: str, shards: Sequence[ShardRecord], made: Any) -> ProposerRecord:
    path = index / file
    unfinished = path.with_name(file + ".partial")
    try:
        faiss.write_index(made, str(unfinished))
    except RuntimeError as error:
        raise GalleryIndexError(f"cannot write {unfinished}: {error}; make room and run again") from None
    with unfinished.open("rb") as written:
        os.fsync(written.fileno())
    unfinished.replace(path)
    return ProposerRecord(file, storage.file_sha256(path), _rows(shards))


def open_proposer(index: Path, catalogue: Catalogue, verify: bool) -> Proposer | None:
    """What proposes candidates for this index; None where all are compared.

    Raises:
        IndexDamaged: a file is missing, truncated or altered.
    """
    records = [catalogue.graph] if catalogue.graph else catalogue.codes
    opened = []
    for record in records:
        path = index / record.file
        if verify:
            storage.check_file(path, record.sha256)
        try:
            opened.append(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if catalogue.graph else 0))
        except RuntimeError as error:
            raise storage.damaged(path, str(error)) from None
    if catalogue.graph:
        return Graph(opened[0])
    return Codes(opened) if opened else None
