"""The arithmetic of a measurement: percentiles, agreement between windows, arrivals at random."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tercet.bench.values import Latency, Mode

__all__ = ["Window", "agree", "arrival_gaps", "overloaded", "summarise"]

AGREEING = 3
"""How many windows in a row must agree, as in Triton's perf_analyzer."""

GROWTH = 0.1


@dataclass(frozen=True, eq=False)
class Window:
    """What was answered in a stretch of time.

    `latencies` are in seconds; `due` counts the requests whose time came in the window, sent or not;
    `unanswered` those under way at its end.
    """

    seconds: float
    latencies: NDArray[np.float64]
    failures: dict[str, int]
    due: int
    unanswered: int

    @property
    def throughput(self) -> float:
        """Answers a second; failures are none."""
        return len(self.latencies) / self.seconds

    @property
    def p95(self) -> float:
        """The 95th percentile of latency, seconds; infinite without an answer."""
        return float(np.percentile(self.latencies, 95)) if len(self.latencies) else float("inf")


def summarise(latencies: NDArray[np.float64]) -> Latency:
    """Mean and percentiles in milliseconds of latencies in seconds [N], N > 0; linear between neighbours."""
    p50, p90, p95, p99 = np.percentile(latencies, (50, 90, 95, 99)) * 1e3
    return Latency(float(latencies.mean()) * 1e3, float(p50), float(p90), float(p95), float(p99))


def agree(windows: Sequence[Window], tolerance: float, mode: Mode) -> bool:
    """Whether the last three windows agree: the largest is within `tolerance` of the smallest.

    They must in p95 latency and in throughput; in an open loop, where chance decides how much there is to
    answer, in the share of it that is answered.
    """
    last = windows[-AGREEING:]
    if len(last) < AGREEING or not all(len(window.latencies) for window in last):
        return False
    answered = [
        window.throughput if mode == "closed" else len(window.latencies) / max(window.due, 1)
        for window in last
    ]
    return all(
        max(values) <= (1 + tolerance) * min(values) for values in (answered, [window.p95 for window in last])
    )


def overloaded(windows: Sequence[Window]) -> bool:
    """Whether an open loop offered more than was answered: something was not sent, or the backlog grew."""
    if any("NotSent" in window.failures for window in windows):
        return True
    growth = windows[-1].unanswered - (windows[0].unanswered if len(windows) > 1 else 0)
    due = sum(window.due for window in windows[1:]) or windows[0].due
    return growth > 2 + GROWTH * due


def arrival_gaps(rate: float, seed: int) -> Iterator[float]:
    """Seconds from one arrival to the next of a Poisson process of `rate` a second, for ever."""
    generator = np.random.default_rng(seed)
    while True:
        yield from generator.exponential(1 / rate, 1024).tolist()
