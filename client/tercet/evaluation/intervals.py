"""How sure a number is: bootstrap intervals, and the paired comparison of two runs on the same queries.

Values are of queries, f64 [Q] a task; the number is the plain mean over tasks of their means. A resample
draws as many queries of each task as it has, with replacement: tasks are strata, and queries are what varies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tercet.errors import InputError

__all__ = ["Comparison", "Interval", "bootstrap", "compare", "sign_test"]

Values = NDArray[np.float64]

RESAMPLES = 10_000
DRAWN_AT_ONCE = 2**22


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile interval, in the values' unit."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Run B against run A on the same queries.

    difference: mean of B minus mean of A.
    probability_better: the share of resamples in which B's mean is higher, ties counted half.
    p_value: of the exact two-sided sign test on won and lost queries; of 0/1 metrics, McNemar's exact test.
    won, lost: numbers of the queries where B is higher and lower, the tasks' queries counted through, i64.
    tied: how many are equal.
    """

    difference: Interval
    probability_better: float
    p_value: float
    won: NDArray[np.int64]
    lost: NDArray[np.int64]
    tied: int


def bootstrap(
    tasks: Sequence[Values], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean over tasks and its bootstrap percentile interval (Efron, 1979).

    Raises:
        InputError: a task has no query, a value is not finite, or there is no task.
    """
    return _interval(tasks, _resampled(tasks, resamples, seed), confidence)


def compare(
    a: Sequence[Values],
    b: Sequence[Values],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Whether run B is better than run A: `a` and `b` hold the same queries' values in the same order.

    The bootstrap is paired: it resamples the differences, so that how hard a query is cancels out.

    Raises:
        InputError: the runs are not of the same queries, or as for `bootstrap`.
    """
    if [of_task.shape for of_task in a] != [of_task.shape for of_task in b]:
        raise InputError(
            f"the runs have {[len(of_task) for of_task in a]} and {[len(of_task) for of_task in b]} queries "
            "a task; compare runs on the same queries"
        )
    differences = [of_b - of_a for of_a, of_b in zip(a, b, strict=True)]
    means = _resampled(differences, resamples, seed)
    every = np.concatenate(differences)
    won, lost = np.flatnonzero(every > 0), np.flatnonzero(every < 0)
    return Comparison(
        difference=_interval(differences, means, confidence),
        probability_better=float(np.mean((means > 0) + 0.5 * (means == 0))),
        p_value=sign_test(len(won), len(lost)),
        won=won,
        lost=lost,
        tied=len(every) - len(won) - len(lost),
    )


def sign_test(won: int, lost: int) -> float:
    """The exact two-sided p-value of so uneven a split, if either outcome were equally likely."""
    fewer, count = min(won, lost), won + lost
    term = tail = 1
    for number in range(fewer):
        term = term * (count - number) // (number + 1)  # the next binomial coefficient
        tail += term
    return min(1.0, 2 * tail / 2**count)


def _interval(tasks: Sequence[Values], means: Values, confidence: float) -> Interval:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(
        math.fsum(float(np.mean(values)) for values in tasks) / len(tasks), float(low), float(high)
    )


def _resampled(tasks: Sequence[Values], resamples: int, seed: int) -> Values:
    """The mean over tasks of each resample, f64 [resamples]."""
    if not tasks or any(len(values) == 0 for values in tasks):
        raise InputError("there is no query to take a mean of; choose tasks that have queries")
    if not all(np.isfinite(values).all() for values in tasks):
        raise InputError("a value is not finite; a metric is a number for every query")
    generator = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for values in tasks:
        # How often each distinct value is drawn is multinomial: the same bootstrap without drawing queries.
        distinct, counts = np.unique(values, return_counts=True)
        step = max(1, DRAWN_AT_ONCE // len(distinct))
        for start in range(0, resamples, step):
            size = min(step, resamples - start)
            drawn = generator.multinomial(len(values), counts / len(values), size=size)
            means[start : start + size] += (drawn * distinct).sum(axis=1) / len(values)
    return means / len(tasks)
