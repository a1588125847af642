"""Searching an index: equal to brute force, ties, exclusion, bad queries, memory."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.errors import IndexMismatch, InputError
from tercet.index import GalleryIndex
from tests.client.gallery_kit import write_index

D = 24


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def brute_force(queries: np.ndarray, vectors: np.ndarray, k: int, excluded: list[set[int]]) -> np.ndarray:
    """Rows by descending float64 inner product, ties by row, -1 where there are no more."""
    found = []
    for query, leave_out in zip(queries, excluded, strict=True):
        scores = [float(np.sum(query.astype(np.float64) * vector.astype(np.float64))) for vector in vectors]
        order = sorted(set(range(len(vectors))) - leave_out, key=lambda row: (-scores[row], row))[:k]
        found.append(order + [-1] * (min(k, len(vectors)) - len(order)))
    return np.array(found)


@pytest.fixture
def make_index(tmp_path: Path) -> Callable[..., GalleryIndex]:
    """Writes vectors [N, D] as an index with small shards, and loads it."""
    counter = iter(range(10**6))

    def make(vectors: np.ndarray, shard_size: int = 7, kind: str = "exact") -> GalleryIndex:
        path = tmp_path / str(next(counter))
        write_index(path, vectors, shard_size=shard_size, kind=kind)
        return GalleryIndex.load(path)

    return make


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_exact_search_is_brute_force_with_ties(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    count = data.draw(st.integers(1, 60), label="pictures")
    distinct = unit(rng.standard_normal((data.draw(st.integers(1, count), label="distinct"), D)))
    vectors = distinct[rng.integers(len(distinct), size=count)]
    queries = unit(rng.standard_normal((data.draw(st.integers(1, 30), label="queries"), D)))
    queries[0] = vectors[-1]
    k = data.draw(st.integers(1, 80), label="k")
    excluded = [set(rng.integers(count, size=rng.integers(0, 4)).tolist()) for _ in queries]
    path = tmp_path_factory.mktemp("index")
    write_index(path, vectors, shard_size=data.draw(st.integers(1, 70), label="shard size"))
    index = GalleryIndex.load(path)
    scores, rows = index.search(queries, k, exclude=excluded)
    np.testing.assert_array_equal(rows, brute_force(queries, vectors, k, excluded))
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    assert np.array_equal(np.isneginf(scores), rows == -1)


def test_near_ties_beyond_the_margin_are_settled(make_index: Callable[..., GalleryIndex]) -> None:
    """300 pictures whose scores differ less than float32 can tell: FAISS proposes fewer at first."""
    rng = np.random.default_rng(1)
    query = unit(rng.standard_normal((1, D)))
    vectors = unit(query + 1e-4 * rng.standard_normal((300, D)))
    index = make_index(np.concatenate([vectors, unit(rng.standard_normal((200, D)))]), shard_size=64)
    _, rows = index.search(query, 5)
    np.testing.assert_array_equal(rows, brute_force(query, vectors, 5, [set()]))


def test_an_answer_does_not_depend_on_its_neighbours(make_index: Callable[..., GalleryIndex]) -> None:
    rng = np.random.default_rng(2)
    index = make_index(unit(rng.standard_normal((500, D))), shard_size=100)
    queries = unit(rng.standard_normal((300, D)))
    scores, rows = index.search(queries, 9)
    for number in (0, 17, 299):
        alone = index.search(queries[number : number + 1], 9)
        np.testing.assert_array_equal(alone[0][0], scores[number])
        np.testing.assert_array_equal(alone[1][0], rows[number])


def test_the_graph_finds_what_exact_search_finds(make_index: Callable[..., GalleryIndex]) -> None:
    rng = np.random.default_rng(3)
    vectors = unit(rng.standard_normal((3000, D)))
    exact, graph = make_index(vectors, 1000), make_index(vectors, 1000, "hnsw")
    queries = unit(rng.standard_normal((100, D)))
    excluded = [{number} for number in range(100)]
    right, found = (
        exact.search(queries, 10, exclude=excluded)[1],
        graph.search(queries, 10, exclude=excluded)[1],
    )
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(right.tolist(), found.tolist(), strict=True)])
    assert recall > 0.99
    assert graph.search(queries[:2], 5000)[1].shape == (2, 3000)


def test_exclusion_by_path_and_by_row(make_index: Callable[..., GalleryIndex]) -> None:
    vectors = unit(np.random.default_rng(4).standard_normal((5, D)))
    index = make_index(vectors)
    for item in (2, index.names[2], index.paths[2], str(index.paths[2])):
        rows = index.search(vectors[2:3], 5, exclude=[[item]])[1][0]
        assert 2 not in rows
        assert rows[-1] == -1
    assert index.search(vectors[2:3], 1, exclude=[["elsewhere.png"]])[1][0, 0] == 2
    with pytest.raises(InputError, match="row 5"):
        index.search(vectors[:1], 1, exclude=[[5]])
    with pytest.raises(InputError, match="1 entries for 2 queries"):
        index.search(vectors[:2], 1, exclude=[[1]])


def test_near_duplicates(make_index: Callable[..., GalleryIndex]) -> None:
    rng = np.random.default_rng(5)
    one, others = unit(rng.standard_normal((1, D))), unit(rng.standard_normal((90, D)))
    index = make_index(np.concatenate([others, np.repeat(one, 40, axis=0)]))
    assert sorted(index.near(one[0], 0.9999).tolist()) == list(range(90, 130))
    assert len(index.near(unit(-one[0]), 0.9999)) == 0


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (np.full((1, D), np.nan), InputError, "length nan"),
        (np.full((1, D), np.inf), InputError, "length inf"),
        (np.zeros((1, D)), InputError, "query 0 has length 0, not 1"),
        (np.ones((2, D)), InputError, "query 0 has length 4.8"),
        (np.ones(D), InputError, "shape"),
        (unit(np.ones((1, D + 1))), IndexMismatch, f"{D + 1} dimensions, the index {D}"),
    ],
)
def test_bad_queries(
    make_index: Callable[..., GalleryIndex], query: np.ndarray, error: type[Exception], message: str
) -> None:
    index = make_index(unit(np.ones((3, D))))
    with pytest.raises(error, match=message):
        index.search(query, 1)
    with pytest.raises(InputError, match="k is 0"):
        index.search(unit(np.ones((1, D))), 0)
    assert index.search(np.empty((0, D), np.float32), 3)[1].shape == (0, 3)


MEMORY = """
import sys
import numpy as np
from tercet.index import GalleryIndex

def anonymous():
    # Memory mapped from files does not count: the kernel can drop it at any time.
    status = open("/proc/self/status").read()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024

index = GalleryIndex.load(sys.argv[1])
before = anonymous()
rng = np.random.default_rng(0)
queries = rng.standard_normal((500, index.dimension)).astype(np.float32)
queries /= np.linalg.norm(queries, axis=1, keepdims=True)
index.search(queries, 10)
print(len(index), anonymous() - before)
"""


def test_search_maps_vectors_instead_of_loading_them(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(6).standard_normal((200_000, 64), dtype=np.float32))
    write_index(tmp_path / "index", vectors, shard_size=4096)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "index")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count, grown = map(float, output.split())
    assert count == 200_000
    assert grown < vectors.nbytes / 2**20 / 2, f"{grown} MiB for an index of {vectors.nbytes / 2**20} MiB"
