"""Searching an index with composed queries: equal to brute force, exclusions and ties included."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.composition import Composition
from tercet.compositions.scoring import ComposedQuery, Exclusion, Increment, Linear, Product, Scoring
from tercet.errors import IndexMismatch, InputError
from tercet.index import GalleryIndex
from tercet.index.composed import CANDIDATES_AT_ONCE
from tests.client.gallery_kit import write_index

D = 24
NOTHING = Composition("", "", "in blue", "", caption_cut=False)
SCORINGS = (
    Linear(),
    Product(),
    Product(0.1, 0.2),
    Product(0.95, 0.95),
    Increment(2.1, 0.13),
    Increment(0.0, 10.0),
)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def query_of(vectors: np.ndarray, scoring: Scoring, exclusion: Exclusion | None = None) -> ComposedQuery:
    return ComposedQuery(vectors[: scoring.vectors], scoring, NOTHING, exclusion=exclusion)


def score(query: ComposedQuery, candidate: np.ndarray) -> float:
    """One candidate's score, written out."""
    first, *second = (
        float(np.sum(vector.astype(np.float64) * candidate.astype(np.float64))) for vector in query.vectors
    )
    scoring = query.scoring
    if isinstance(scoring, Product):
        return max(first - scoring.text_floor, 0) * max(second[0] - scoring.image_floor, 0)
    if isinstance(scoring, Increment):
        better = first - second[0]
        return first + (scoring.negative if better < 0 else scoring.positive) * better
    return first


def brute_force(query: ComposedQuery, vectors: np.ndarray, k: int, leave_out: set[int]) -> list[int]:
    """Rows by descending score, ties by row, -1 where there are no more."""
    absent = set(leave_out)
    if query.exclusion is not None:
        reference = query.exclusion.reference.astype(np.float64)
        absent |= {
            row
            for row, vector in enumerate(vectors)
            if np.sum(reference * vector.astype(np.float64)) >= query.exclusion.similarity
        }
    candidates = [row for row in range(len(vectors)) if row not in absent]
    order = sorted(candidates, key=lambda row: (-score(query, vectors[row]), row))[:k]
    return order + [-1] * (min(k, len(vectors)) - len(order))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_scoring_is_brute_force_with_ties(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    count = data.draw(st.integers(1, 60), label="pictures")
    distinct = unit(rng.standard_normal((data.draw(st.integers(1, count), label="distinct"), D)))
    vectors = distinct[rng.integers(len(distinct), size=count)]
    k = data.draw(st.integers(1, 80), label="k")
    queries = []
    for scoring in data.draw(st.lists(st.sampled_from(SCORINGS), min_size=1, max_size=8), label="scorings"):
        parts = unit(rng.standard_normal((2, D)))
        if data.draw(st.booleans(), label="asks with a picture of the gallery"):
            parts[-1] = vectors[rng.integers(count)]
        least = data.draw(st.sampled_from([None, 0.5, 0.9, 1 - 1e-6]), label="exclusion")
        exclusion = None if least is None else Exclusion(vectors[rng.integers(count)], least)
        queries.append(query_of(parts, scoring, exclusion))
    excluded = [set(rng.integers(count, size=rng.integers(0, 4)).tolist()) for _ in queries]
    path = tmp_path_factory.mktemp("index")
    write_index(path, vectors, shard_size=data.draw(st.integers(1, 70), label="shard size"))
    scores, rows = GalleryIndex.load(path).search_composed(queries, k, exclude=excluded)
    for query, leave_out, of_query, found in zip(queries, excluded, scores, rows.tolist(), strict=True):
        assert found == brute_force(query, vectors, k, leave_out)
        best = [row for row in found if row >= 0]
        np.testing.assert_allclose(
            of_query[: len(best)], [score(query, vectors[row]) for row in best], rtol=1e-6, atol=1e-7
        )
        assert np.isneginf(of_query[len(best) :]).all()


@pytest.mark.parametrize("scoring", SCORINGS)
def test_near_ties_are_settled_over_more_than_one_piece(tmp_path: Path, scoring: Scoring) -> None:
    """Pictures whose scores differ less than float32 can tell, in the first and in the last piece."""
    rng = np.random.default_rng(1)
    parts = unit(rng.standard_normal((2, D)))
    middle = unit(parts.sum(axis=0))
    others = unit(rng.standard_normal((CANDIDATES_AT_ONCE + 500, D)))
    vectors = np.concatenate(
        [unit(middle + 1e-5 * rng.standard_normal((200, D))), others, unit(middle + 1e-5 * others[:200])]
    )
    write_index(tmp_path / "index", vectors, shard_size=6000)
    index = GalleryIndex.load(tmp_path / "index")
    near = Exclusion(vectors[-1], float(np.sum(vectors[-1].astype(np.float64) * vectors[3])))
    for exclusion in (None, near):
        query = query_of(parts, scoring, exclusion)
        _, rows = index.search_composed([query], 30, exclude=[{0, 9000}])
        assert rows[0].tolist() == brute_force(query, vectors, 30, {0, 9000})


def test_an_answer_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    write_index(tmp_path / "index", unit(rng.standard_normal((500, D))), shard_size=100)
    index = GalleryIndex.load(tmp_path / "index")
    queries = [
        query_of(unit(rng.standard_normal((2, D))), SCORINGS[number % len(SCORINGS)]) for number in range(600)
    ]
    scores, rows = index.search_composed(queries, 9)
    for number in (0, 17, 599):
        alone = index.search_composed([queries[number]], 9)
        np.testing.assert_array_equal(alone[0][0], scores[number])
        np.testing.assert_array_equal(alone[1][0], rows[number])


def test_linear_queries_are_those_of_search(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    vectors = unit(rng.standard_normal((100, D)))
    write_index(tmp_path / "index", vectors, shard_size=30)
    index = GalleryIndex.load(tmp_path / "index")
    embeddings = unit(rng.standard_normal((5, D)))
    found = index.search_composed([query_of(row[None], Linear()) for row in embeddings], 7)
    for mine, other in zip(found, index.search(embeddings, 7), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert index.search_composed([], 3)[1].shape == (0, 3)


def test_the_graph_proposes_and_exact_scores_decide(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    vectors = unit(rng.standard_normal((6000, D)))
    vectors[5000:5020] = vectors[:20]
    write_index(tmp_path / "exact", vectors, shard_size=1000)
    write_index(tmp_path / "graph", vectors, shard_size=1000, kind="hnsw")
    exact, graph = GalleryIndex.load(tmp_path / "exact"), GalleryIndex.load(tmp_path / "graph")
    # What is near none of a query's vectors, or not to be told from others, no graph can propose.
    proposable = [
        scoring for scoring in SCORINGS if scoring not in (Product(0.95, 0.95), Increment(0.0, 10.0))
    ]
    queries, excluded = [], []
    for number in range(60):
        parts = unit(vectors[number % 20] + 0.1 * rng.standard_normal((2, D)))
        exclusion = Exclusion(vectors[number % 20], 0.999) if number % 2 else None
        queries.append(query_of(parts, proposable[number % len(proposable)], exclusion))
        excluded.append({number, 5999})
    right = exact.search_composed(queries, 10, exclude=excluded)
    found = graph.search_composed(queries, 10, exclude=excluded)
    shared = [len(set(a) & set(b)) for a, b in zip(right[1].tolist(), found[1].tolist(), strict=True)]
    assert sum(shared) > 0.99 * 10 * len(queries)
    for number, query in enumerate(queries):
        best = found[1][number]
        np.testing.assert_allclose(found[0][number], [score(query, vectors[row]) for row in best], atol=1e-6)
        assert not excluded[number] & set(best.tolist())
        if query.exclusion is not None:
            assert not {number % 20, 5000 + number % 20} & set(best.tolist())


def test_where_the_graph_leaves_too_few_the_gallery_is_scanned(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    crowd = unit(rng.standard_normal(D) + 0.01 * rng.standard_normal((2500, D)))
    vectors = np.concatenate([crowd, unit(rng.standard_normal((50, D)))])
    write_index(tmp_path / "graph", vectors, shard_size=1000, kind="hnsw")
    query = query_of(crowd[:2], Increment(1.0, 0.22), Exclusion(crowd[0], 0.9))
    _, rows = GalleryIndex.load(tmp_path / "graph").search_composed([query], 10)
    assert rows[0].tolist() == brute_force(query, vectors, 10, set())
    assert (rows >= 2500).all()


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (query_of(np.ones((2, D), np.float32), Product()), InputError, "length 4.8"),
        (query_of(unit(np.ones((2, D + 1))), Product()), IndexMismatch, f"{D + 1} dimensions"),
        (query_of(unit(np.ones((1, D))), Product()), InputError, r"scoring takes \[2, 24\]"),
        (
            query_of(unit(np.ones((1, D))), Linear(), Exclusion(np.zeros(D, np.float32), 0.9)),
            InputError,
            "length 0",
        ),
    ],
)
def test_bad_queries(tmp_path: Path, query: ComposedQuery, error: type[Exception], message: str) -> None:
    write_index(tmp_path / "index", unit(np.ones((3, D))), shard_size=7)
    index = GalleryIndex.load(tmp_path / "index")
    with pytest.raises(error, match=message):
        index.search_composed([query], 1)
    good = query_of(unit(np.ones((2, D))), Product())
    with pytest.raises(InputError, match="k is 0"):
        index.search_composed([good], 0)
    with pytest.raises(InputError, match="2 entries for 1 queries"):
        index.search_composed([good], 1, exclude=[[], []])
