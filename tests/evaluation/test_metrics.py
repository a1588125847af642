"""The metrics against the official evaluators' own way of counting, written here from rankings, not ranks."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tercet.errors import InputError
from tercet.evaluation.metrics import MEASURES, by_aspect, mean_over_tasks, measure
from tercet.evaluation.values import Metric, Query, Ranking

MISSING = 1000
"""A picture that is no candidate."""


def random_rankings(seed: int) -> Iterator[tuple[NDArray[np.int64], list[int], int, np.random.Generator]]:
    """Candidates best first, equal scores in their order; targets, some repeated, some missing; a cut-off."""
    generator = np.random.default_rng(seed)
    for _ in range(30):
        count = int(generator.integers(1, 40))
        ranked = np.argsort(-generator.integers(0, 5, size=count), kind="stable")
        targets = generator.integers(0, count, size=generator.integers(1, 14))
        targets[generator.random(len(targets)) < 0.1] = MISSING
        yield ranked, targets.tolist(), int(generator.integers(1, 51)), generator


def ranks_of(ranked: NDArray[np.int64], targets: list[int]) -> NDArray[np.float64]:
    places = {int(picture): place for place, picture in enumerate(ranked, 1)}
    return np.array([places.get(target, np.inf) for target in targets], np.float64)


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_average_precision_and_recall_are_circos(seed: int) -> None:
    for ranked, targets, k, _ in random_rankings(seed):
        labels = np.isin(ranked, targets)
        precisions = np.cumsum(labels) * labels / np.arange(1, len(ranked) + 1)
        ranks = ranks_of(ranked, targets)
        expected = precisions[:k].sum() / min(len(targets), k)
        assert MEASURES["average_precision"](ranks, k) == pytest.approx(expected, abs=1e-12)
        assert MEASURES["recall"](ranks, k) == (ranked == targets[0])[:k].sum()
        assert MEASURES["recall_any"](ranks, k) == labels[:k].any()


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_recall_and_subset_recall_are_cirrs(seed: int) -> None:
    """As SEARLE does: the reference is deleted from the sorted names, then all but the group are."""
    for ranked, (target, *_), k, generator in random_rankings(seed):
        reference = int(generator.choice([name for name in ranked if name != target] or [MISSING + 1]))
        names = ranked[ranked != reference]
        labels = names == target
        within = np.isin(names, [*generator.choice(ranked, size=5), target])
        ranks, subset_ranks = ranks_of(names, [target]), ranks_of(names[within], [target])
        assert MEASURES["recall"](ranks, k) == labels[:k].sum()
        assert MEASURES["subset_recall"](subset_ranks, k) == labels[within][:k].sum()


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_fractional_recall_and_precision_are_pic2words(seed: int) -> None:
    """By one-hot labels: which of the sorted gallery have the query's, the first K over all of them."""
    for ranked, _, k, generator in random_rankings(seed):
        labels, wanted = generator.integers(0, 4, size=len(ranked)), int(generator.integers(0, 4))
        relevant = np.eye(4)[labels][ranked] @ np.eye(4)[wanted]
        ranks = ranks_of(ranked, np.flatnonzero(labels == wanted).tolist())
        expected = relevant[:k].sum() / (relevant.sum() + 1e-5)
        assert MEASURES["fractional_recall"](ranks, k) == pytest.approx(expected, abs=1e-12)
        assert MEASURES["precision"](ranks, k) == pytest.approx(relevant[:k].sum() / k, abs=1e-12)


@pytest.mark.parametrize("targets", [1, 3, 5, 10, 11, 14])
@pytest.mark.parametrize("k", [5, 10])
def test_a_perfect_list_has_average_precision_1(targets: int, k: int) -> None:
    assert MEASURES["average_precision"](np.arange(1.0, targets + 1), k) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_measures_are_0_where_nothing_is_right_and_never_above_1(name: str) -> None:
    assert MEASURES[name](np.empty(0), 5) == 0
    assert MEASURES[name](np.array([np.inf, np.inf]), 5) == 0
    assert 0.2 <= MEASURES[name](np.array([1.0]), 5) <= 1


def ranking(*ranks: list[float], subset: tuple[list[float], ...] = ()) -> Ranking:
    return Ranking(
        top=np.empty((len(ranks), 0), np.int64),
        scores=np.empty((len(ranks), 0)),
        target_ranks=tuple(np.array(of_query) for of_query in ranks),
        subset_ranks=tuple(np.array(of_query) for of_query in subset),
    )


def query(name: str, *targets: str, aspects: tuple[str, ...] = (), subset: tuple[str, ...] = ()) -> Query:
    return Query(name, "reference", ("",), targets, aspects, subset=subset)


def test_a_metric_is_measured_for_every_query() -> None:
    queries = [query("0", "a", "b"), query("1", "c"), query("2")]
    ranked = ranking([3.0, 1.0], [2.0], [])
    assert measure(Metric("recall@2", "recall", 2), queries, ranked).tolist() == [0, 1, 0]
    assert measure(Metric("recall@2", "recall_any", 2), queries, ranked).tolist() == [1, 1, 0]


def test_the_subset_recall_takes_the_ranks_within_the_subset() -> None:
    queries = [query("0", "a", subset=("a", "b"))]
    metric = Metric("recall_subset@1", "subset_recall", 1)
    assert measure(metric, queries, ranking([40.0], subset=([1.0],))).tolist() == [1]
    with pytest.raises(InputError, match="query-without has none"):
        measure(metric, [query("query-without", "a")], ranking([40.0], subset=([],)))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="average_precision"):
        measure(Metric("x", "nothing", 1), [query("0", "a")], ranking([1.0]))
    with pytest.raises(InputError, match="server"):
        measure(Metric("recall@1", "recall", 1), [query("0"), query("1")], ranking([], []))


def test_aspects_and_tasks_are_averaged() -> None:
    queries = [
        query("0", "a", aspects=("negation", "addition")),
        query("1", "a", aspects=("addition", "addition")),
        query("2", "a"),
    ]
    split = by_aspect(queries, np.array([0.0, 1.0, 0.5]))
    assert {aspect: values.tolist() for aspect, values in split.items()} == {
        "negation": [0.0],
        "addition": [0.0, 1.0],
    }
    assert mean_over_tasks([np.array([1.0]), np.array([0.0, 0.0, 0.0])]) == 0.5
