"""Intervals hold what they promise, and the comparison of two runs is paired and exact where it can be."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.errors import InputError
from tercet.evaluation.intervals import bootstrap, compare, sign_test


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for repeat in range(400):
        tasks = [
            (generator.random(150) < 0.3).astype(float),
            generator.beta(1, 4, size=100),  # its mean is 0.2
        ]
        interval = bootstrap(tasks, resamples=1000, seed=repeat)
        covered += interval.low <= 0.25 <= interval.high
    assert 0.92 <= covered / 400 <= 0.98


def test_it_is_the_bootstrap_that_draws_queries() -> None:
    generator = np.random.default_rng(1)
    tasks = [generator.random(80), np.round(generator.random(30), 1)]
    drawn = np.mean(
        [
            values[generator.integers(len(values), size=(20_000, len(values)))].mean(axis=1)
            for values in tasks
        ],
        axis=0,
    )
    interval = bootstrap(tasks)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert interval.mean == pytest.approx(np.mean([np.mean(values) for values in tasks]))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.03 * (high - low))


def test_tasks_count_the_same_whatever_their_size() -> None:
    large, small = np.tile([0.0, 1.0], 5000), np.array([0.0, 1.0, 1.0, 1.0])
    interval = bootstrap([large, small])
    assert interval.mean == 0.625
    assert interval.high - interval.low > 0.3  # the small task's uncertainty, halved


def test_a_seed_gives_the_same_interval_in_any_order_of_the_queries() -> None:
    values = np.random.default_rng(2).random(50)
    assert bootstrap([values], seed=7) == bootstrap([values.copy()], seed=7)
    shuffled = bootstrap([values[::-1]], seed=7)
    assert (shuffled.low, shuffled.high) == (
        bootstrap([values], seed=7).low,
        bootstrap([values], seed=7).high,
    )
    assert bootstrap([values], seed=7) != bootstrap([values], seed=8)


def test_a_value_that_never_varies_has_no_interval() -> None:
    interval = bootstrap([np.ones(20)])
    assert (interval.mean, interval.low, interval.high) == (1, 1, 1)


@given(st.integers(0, 6), st.integers(0, 6))
@settings(deadline=None)
def test_the_sign_test_counts_all_outcomes(won: int, lost: int) -> None:
    outcomes = [sum(outcome) for outcome in itertools.product((0, 1), repeat=won + lost)]
    as_uneven = [abs(2 * wins - won - lost) >= abs(won - lost) for wins in outcomes]
    assert sign_test(won, lost) == pytest.approx(np.mean(as_uneven))


def test_the_sign_test_takes_many_queries() -> None:
    assert sign_test(20_000, 20_000) == 1
    assert 0 < sign_test(19_000, 21_000) < 1e-20


def test_a_run_is_no_better_than_itself() -> None:
    values = [np.random.default_rng(3).random(40), np.array([1.0])]
    same = compare(values, values)
    assert (same.difference.mean, same.difference.low, same.difference.high) == (0, 0, 0)
    assert (same.probability_better, same.p_value, same.tied) == (0.5, 1, 41)


def test_a_comparison_is_paired_and_names_the_queries() -> None:
    generator = np.random.default_rng(4)
    a = [generator.random(200) * 0.9, np.array([0.0, 1.0, 1.0])]
    b = [a[0] + 0.05, np.array([1.0, 0.0, 1.0])]
    better = compare([a[0]], [b[0]])
    # A difference far smaller than the queries' spread, and certain all the same.
    assert better.difference.low == pytest.approx(0.05)
    assert better.probability_better == 1
    assert better.p_value == pytest.approx(2 * 0.5**200)
    both = compare(a, b)
    assert both.difference.mean == pytest.approx(0.025)
    assert both.won.tolist() == [*range(200), 200]
    assert both.lost.tolist() == [201]
    assert both.tied == 1


def test_a_comparison_is_the_other_way_round_for_the_other_run() -> None:
    generator = np.random.default_rng(5)
    a, b = (generator.random(300) < 0.3).astype(float), (generator.random(300) < 0.4).astype(float)
    there, back = compare([a], [b]), compare([b], [a])
    assert there.difference.mean == -back.difference.mean
    assert there.difference.low == pytest.approx(-back.difference.high, abs=0.01)
    assert there.probability_better == pytest.approx(1 - back.probability_better, abs=0.02)
    assert there.won.tolist() == back.lost.tolist()
    assert there.p_value == back.p_value


def test_what_has_no_mean_is_refused() -> None:
    with pytest.raises(InputError, match="no query"):
        bootstrap([])
    with pytest.raises(InputError, match="no query"):
        bootstrap([np.ones(3), np.empty(0)])
    with pytest.raises(InputError, match="not finite"):
        bootstrap([np.array([0.0, np.nan])])
    with pytest.raises(InputError, match="same queries"):
        compare([np.ones(3)], [np.ones(4)])
