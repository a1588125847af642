"""Ranking against a plain sort in exact arithmetic, whatever the blocks, ties and exclusions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tercet.compositions.scoring import Increment, Linear, Product, Scoring
from tercet.errors import DatasetError, InputError
from tercet.evaluation import ranking
from tercet.evaluation.datasets.order import tie_order
from tercet.evaluation.metrics import measure
from tercet.evaluation.ranking import near, rank
from tercet.evaluation.values import Metric, Query, Task

DIMENSION = 16
STEP = 2.0**-22
"""Vectors are multiples of it: float32 holds them, and float64 their inner products, without any rounding."""


def exact(vectors: NDArray) -> NDArray[np.float32]:
    """Vectors of unit length to a millionth, multiples of STEP."""
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (np.round(unit / STEP) * STEP).astype(np.float32)


def gallery_of(generator: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Many equal vectors, and many that differ from another by one step in one place."""
    distinct = exact(generator.standard_normal((max(1, count // 4), DIMENSION)))
    gallery = distinct[generator.integers(len(distinct), size=count)]
    nudged = np.flatnonzero(generator.random(count) < 0.4)
    gallery[nudged, generator.integers(DIMENSION, size=len(nudged))] += np.float32(STEP)
    return gallery


def similarities(vectors: NDArray, candidates: NDArray) -> NDArray[np.float64]:
    """[M, N], in whole numbers, so exact."""
    whole = (vectors.astype(np.float64) / STEP).astype(np.int64)
    return (whole @ (candidates.astype(np.float64) / STEP).astype(np.int64).T) * STEP**2


SCORINGS: tuple[tuple[int, Scoring | None], ...] = (
    (1, None),
    (1, Linear()),
    (2, Product()),
    (2, Product(0.1, -0.1)),
    (2, Increment(0.5, -0.25)),
)


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 60),
    block=st.integers(1, 70),
    at_once=st.integers(1, 9),
    top=st.integers(1, 70),
    exclude_reference=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_ranking_is_that_of_a_plain_sort(
    seed: int, count: int, block: int, at_once: int, top: int, exclude_reference: bool
) -> None:
    generator = np.random.default_rng(seed)
    gallery = gallery_of(generator, count)
    names = [f"picture-{number}" for number in range(count)]
    rows = dict(zip(names, generator.permutation(count).tolist(), strict=True))

    def some(most: int) -> tuple[str, ...]:
        return tuple(generator.permutation(names)[: generator.integers(1, most + 1)].tolist())

    queries, vectors, scorings, exclude = [], [], [], []
    for number in range(6):
        size, scoring = SCORINGS[generator.integers(len(SCORINGS))]
        reference, candidates = some(1)[0], some(20) if number % 3 == 2 else None
        targets = (*some(4), "no candidate")
        subset = some(5) if candidates is None else candidates[:5]
        queries.append(Query(str(number), reference, ("",), targets, (), candidates, subset))
        near_others = gallery[generator.integers(count, size=size)] + 0.3 * generator.standard_normal(
            DIMENSION
        )
        vectors.append(exact(near_others))
        scorings.append(scoring)
        exclude.append(set(generator.integers(count, size=2).tolist()))
    task = Task("task", some(count), tuple(queries), exclude_reference)
    queries = [
        query if query.candidates else Query(**{**vars(query), "subset": task.gallery[:5]})
        for query in queries
    ]
    task = Task("task", task.gallery, tuple(queries), exclude_reference)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "CANDIDATES_AT_ONCE", block)
        patch.setattr(ranking, "VECTORS_AT_ONCE", at_once)
        found = rank(task, vectors, gallery, rows, scorings=scorings, exclude=exclude, top=top)

    longest = max(len(query.candidates or task.gallery) for query in queries)
    assert found.top.shape == found.scores.shape == (6, min(top, longest))
    for number, query in enumerate(queries):
        candidates = query.candidates or task.gallery
        plain = similarities(vectors[number], gallery[[rows[name] for name in candidates]])
        scoring = scorings[number]
        scores = scoring.combine(plain) if scoring else plain[0]
        gone = exclude[number] | ({rows[query.reference]} if exclude_reference else set())
        order = [place for place, name in enumerate(candidates) if rows[name] not in gone]
        order.sort(key=lambda place: (-scores[place], place))
        padding = [-1] * found.top.shape[1]
        assert found.top[number].tolist() == (order + padding)[: len(padding)]
        best = order[: len(padding)]
        assert found.scores[number, : len(best)].tolist() == scores[best].tolist()
        assert (found.scores[number, len(best) :] == -np.inf).all()

        def ranks(ranked: Sequence[str], query: Query = query) -> list[float]:
            return [ranked.index(name) + 1 if name in ranked else np.inf for name in query.targets]

        ranked = [candidates[place] for place in order]
        within = [name for name in ranked if name in query.subset]
        assert found.target_ranks[number].tolist() == ranks(ranked)
        assert found.subset_ranks[number].tolist() == ranks(within)
        assert list(found.subset_top[number]) == within


def unit(generator: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    vectors = generator.standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def plain_task(count: int, queries: int, targets: int = 0, exclude_reference: bool = False) -> Task:
    names = tuple(map(str, range(count)))
    return Task(
        "task",
        names,
        tuple(Query(str(number), names[number % count], ("",), names[:targets]) for number in range(queries)),
        exclude_reference,
    )


def numbered(task: Task) -> dict[str, int]:
    return {name: row for row, name in enumerate(task.gallery)}


@pytest.mark.parametrize("scoring", [Linear(), Product(-1, -1), Increment(0.5, -0.25)], ids=repr)
def test_equal_pictures_rank_in_the_gallerys_order_however_blas_rounds(
    scoring: Scoring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    distinct = unit(generator, 40, 768)
    which = generator.integers(40, size=6001)
    np.save(tmp_path / "gallery.npy", distinct[which])
    gallery = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    queries = unit(generator, 12, scoring.vectors, 768)
    task = plain_task(6001, 12, targets=300)
    monkeypatch.setattr(ranking, "CANDIDATES_AT_ONCE", 1001)
    found = rank(task, queries, gallery, numbered(task), scorings=[scoring] * 12, top=2000)
    for number, query in enumerate(queries.astype(np.float64)):
        scores = scoring.combine(query @ distinct.astype(np.float64).T)[which]
        order = np.argsort(-scores, kind="stable")
        assert found.top[number].tolist() == order[:2000].tolist()
        places = np.empty(6001)
        places[order] = np.arange(1, 6002)
        assert found.target_ranks[number].tolist() == places[:300].tolist()


def test_a_product_that_is_0_for_most_still_ranks_exactly() -> None:
    generator = np.random.default_rng(1)
    gallery = unit(generator, 20_000, 32)
    task = plain_task(20_000, 8, targets=20)
    vectors = unit(generator, 8, 2, 32)
    found = rank(task, vectors, gallery, numbered(task), scorings=[Product(0.3, 0.3)] * 8)
    for number, (text, image) in enumerate(vectors.astype(np.float64)):
        by_text, by_image = ((gallery * vector).sum(axis=1) for vector in (text, image))
        order = np.argsort(
            -np.maximum(by_text - 0.3, 0) * np.maximum(by_image - 0.3, 0), kind="stable"
        ).tolist()
        assert found.top[number].tolist() == order[:50]
        assert found.target_ranks[number].tolist() == [order.index(place) + 1 for place in range(20)]


def test_cirr_ranks_all_others_and_five_of_the_group() -> None:
    generator = np.random.default_rng(2)
    names = [f"dev-{number}" for number in range(30)]
    queries = []
    for number in range(12):
        group = generator.permutation(names)[:6].tolist()
        queries.append(
            Query(
                str(number), group[0], ("",), (group[3],), subset=tuple(generator.permutation(group).tolist())
            )
        )
    task = Task("cirr", tie_order(names), tuple(queries), exclude_reference=True)
    rows = {name: row for row, name in enumerate(names)}
    found = rank(task, unit(generator, 12, 1, 8), unit(generator, 30, 8), rows)
    for query, top, within, ranks, subset_ranks in zip(
        queries, found.top, found.subset_top, found.target_ranks, found.subset_ranks, strict=True
    ):
        listed = [task.gallery[row] for row in top if row >= 0]
        assert len(listed) == len(set(listed)) == 29
        assert query.reference not in listed
        assert len(within) == 5
        assert set(within) == set(query.subset) - {query.reference}
        assert listed.index(query.targets[0]) + 1 == ranks[0]
        assert within.index(query.targets[0]) + 1 == subset_ranks[0]


def test_constant_scores_give_chance_where_the_target_is_listed_first() -> None:
    names = [f"picture-{number}" for number in range(15)]
    queries = tuple(
        Query(str(number), names[1], ("",), (names[0],), candidates=tie_order(names, salt=str(number)))
        for number in range(3000)
    )
    task = Task("focus_object", (), queries)
    same = np.eye(1, 4, dtype=np.float32)
    found = rank(
        task, [same] * 3000, np.repeat(same, 15, axis=0), {name: row for row, name in enumerate(names)}
    )
    recall = measure(Metric("recall@1", "recall", 1), queries, found).mean()
    assert recall == pytest.approx(1 / 15, abs=4 * np.sqrt(1 / 15 * 14 / 15 / 3000))


@given(seed=st.integers(0, 2**32), block=st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_near_pictures_are_those_of_that_similarity(seed: int, block: int) -> None:
    generator = np.random.default_rng(seed)
    gallery, vectors = gallery_of(generator, 40), exact(generator.standard_normal((3, DIMENSION)))
    similarity = float(similarities(vectors[:1], gallery[7:8])[0, 0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "CANDIDATES_AT_ONCE", block)
        patch.setattr(ranking, "VECTORS_AT_ONCE", 2)
        found = near(vectors, gallery, similarity)
    assert 7 in found[0]
    for rows, of_vector in zip(found, similarities(vectors, gallery), strict=True):
        assert rows.tolist() == np.flatnonzero(of_vector >= similarity - ranking.ROUNDING).tolist()


def test_vectors_that_are_not_of_unit_length_are_refused() -> None:
    generator = np.random.default_rng(3)
    gallery, vectors = unit(generator, 10, 8), unit(generator, 3, 1, 8)
    task = plain_task(10, 3)
    for wrong in (np.nan, 2.0, np.inf):
        broken = vectors.copy()
        broken[1] *= wrong
        with pytest.raises(InputError, match="query 1 has a vector of length"):
            rank(task, broken, gallery, numbered(task))
        broken = gallery.copy()
        broken[4] *= wrong
        with pytest.raises(InputError, match="row 4 of the gallery"):
            rank(task, vectors, broken, numbered(task))
    with pytest.raises(InputError, match="vector 0 has 7 dimensions, the gallery 8"):
        near(vectors[:, 0, :7], gallery, 0.9)


def test_arguments_that_do_not_fit_are_refused() -> None:
    generator = np.random.default_rng(4)
    gallery, vectors = unit(generator, 10, 8), unit(generator, 3, 1, 8)
    task = plain_task(10, 3)
    rows = numbered(task)
    with pytest.raises(InputError, match="2 vectors for 3 queries"):
        rank(task, vectors[:2], gallery, rows)
    with pytest.raises(InputError, match=r"its scoring takes \[1, 8\]"):
        rank(task, unit(generator, 3, 2, 8), gallery, rows)
    with pytest.raises(InputError, match=r"its scoring takes \[2, 8\]"):
        rank(task, vectors, gallery, rows, scorings=[Product()] * 3)
    with pytest.raises(InputError, match="top is 0"):
        rank(task, vectors, gallery, rows, top=0)
    with pytest.raises(DatasetError, match="'9', which has no embedding"):
        rank(task, vectors, gallery, {name: row for name, row in rows.items() if name != "9"})
    with pytest.raises(DatasetError, match="twice"):
        rank(Task("task", ("1", "2", "1"), task.queries), vectors, gallery, rows)
    outside = Query("q", "1", ("",), subset=("1", "9"))
    with pytest.raises(DatasetError, match="the subset of query q"):
        rank(Task("task", ("1", "2"), (outside,)), vectors[:1], gallery, rows)


def test_a_scoring_that_gives_no_number_is_refused() -> None:
    class Broken:
        vectors = 1

        def combine(self, scores: NDArray) -> NDArray:
            return scores[..., 0, :] * np.nan

    generator = np.random.default_rng(5)
    task = plain_task(10, 1)
    with pytest.raises(InputError, match="the scoring of query 0"):
        rank(task, unit(generator, 1, 1, 8), unit(generator, 10, 8), numbered(task), scorings=[Broken()])
