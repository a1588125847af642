"""The arithmetic of a measurement."""

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.bench.statistics import Window, agree, arrival_gaps, overloaded, summarise


def window(
    latencies: list[float], seconds: float = 1.0, due: int = 0, unanswered: int = 0, **failures: int
) -> Window:
    return Window(seconds, np.array(latencies), failures, due or len(latencies), unanswered)


def test_percentiles_of_known_latencies() -> None:
    latency = summarise(np.arange(1, 102) / 1e3)  # 1 to 101 ms
    assert (latency.mean, latency.p50) == pytest.approx((51, 51))
    assert (latency.p90, latency.p95, latency.p99) == pytest.approx((91, 96, 100))


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=200))
def test_percentiles_are_ordered_and_within_the_data(latencies: list[float]) -> None:
    found = summarise(np.array(latencies))
    ordered = [min(latencies) * 1e3, found.p50, found.p90, found.p95, found.p99, max(latencies) * 1e3]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(ordered))
    assert min(latencies) * 1e3 <= found.mean * (1 + 1e-9)


def test_three_windows_in_a_row_must_agree() -> None:
    same = window([0.01] * 100)
    assert not agree([same, same], 0.1, "closed")
    assert agree([same, same, same], 0.1, "closed")
    assert agree([window([0.5] * 10), same, same, same], 0.1, "closed")
    assert not agree([same, same, same, window([0.01] * 80)], 0.1, "closed")


def test_throughput_and_p95_must_both_agree() -> None:
    same = window([0.01] * 100)
    fewer = window([0.01] * 89)
    slower = window([0.01] * 94 + [0.0112] * 6)
    close = window([0.0109] * 92)
    assert not agree([same, same, fewer], 0.1, "closed")
    assert not agree([same, same, slower], 0.1, "closed")
    assert agree([same, close, same], 0.1, "closed")


def test_windows_without_answers_never_agree() -> None:
    nothing = window([], due=10, InferenceError=10)
    assert not agree([nothing] * 3, 0.1, "closed")


def test_in_an_open_loop_chance_decides_how_much_arrives() -> None:
    windows = [window([0.01] * count, due=count) for count in (80, 120, 100)]
    assert not agree(windows, 0.1, "closed")
    assert agree(windows, 0.1, "open")
    assert not agree([*windows[:2], window([0.01] * 50, due=100)], 0.1, "open")


def test_a_growing_backlog_is_overload() -> None:
    steady = [window([0.01] * 100, unanswered=count) for count in (3, 8, 5)]
    growing = [window([0.01] * 100, due=120, unanswered=count) for count in (20, 40, 60)]
    refused = [window([0.01] * 100, due=120, unanswered=512, NotSent=20)] * 3
    assert not overloaded(steady)
    assert overloaded(growing)
    assert overloaded(refused)


@pytest.mark.parametrize("rate", [0.5, 20.0, 1000.0])
def test_arrivals_are_a_poisson_process(rate: float) -> None:
    gaps = np.array(list(islice(arrival_gaps(rate, 3), 100_000))) * rate
    assert gaps.mean() == pytest.approx(1, abs=0.02)  # six deviations
    assert gaps.std() == pytest.approx(1, abs=0.03)
    # Exponential: the share of gaps over t is exp(-t).
    for t in (0.1, 0.5, 1.0, 2.0, 4.0):
        assert (gaps > t).mean() == pytest.approx(np.exp(-t), abs=0.01)
    # Independent: neighbours, and those further on, do not correlate.
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(gaps[:-lag], gaps[lag:])[0, 1]) < 0.02
    # Counts in equal stretches vary as much as their mean.
    counts = np.bincount((np.cumsum(gaps) / 10).astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.1)


def test_arrivals_follow_from_the_seed() -> None:
    assert list(islice(arrival_gaps(5, 1), 3000)) == list(islice(arrival_gaps(5, 1), 3000))
    assert list(islice(arrival_gaps(5, 1), 10)) != list(islice(arrival_gaps(5, 2), 10))
