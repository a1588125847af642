"""Load: how many requests are at work, when they are due, and what counts as their latency."""

import time
from itertools import repeat

import numpy as np

from tercet.bench.load import ClosedLoop, OpenLoop
from tercet.errors import InferenceError, TercetError
from tests.bench.stand_ins import SlowTarget


def test_a_closed_loop_keeps_so_many_at_work() -> None:
    target = SlowTarget(0.002)
    loop = ClosedLoop(target, 4)
    loop.start()
    time.sleep(0.3)
    loop.stop(5)
    answers, due, unanswered = loop.take()
    assert target.most == 4
    assert unanswered == 0
    assert due == len(answers) == len(target.sent)
    assert [number for number, _ in sorted(target.sent)] == list(range(len(target.sent)))
    # Four that wait for one another: each latency is about four times the work.
    assert np.median([answer.latency for answer in answers]) > 0.006


def test_nothing_is_sent_after_a_stop() -> None:
    target = SlowTarget(0.005)
    loop = ClosedLoop(target, 3)
    loop.start()
    loop.stop(5)
    sent = len(target.sent)
    time.sleep(0.1)
    assert len(target.sent) == sent


def test_latency_counts_from_when_a_request_was_due() -> None:
    """A server that takes 50 ms and is asked every 10 ms: the tenth request waits for nine others."""
    target = SlowTarget(0.05)
    loop = OpenLoop(target, repeat(0.01, 10), 100)
    loop.start()
    time.sleep(0.2)
    loop.stop(5)
    answers, due, _ = loop.take()
    assert due == len(answers) == 10
    # Request n is due at 10 (n + 1) ms and answered at 10 + 50 (n + 1) ms.
    expected = [0.05 + 0.04 * n for n in range(10)]
    np.testing.assert_allclose([answer.latency for answer in answers], expected, atol=0.04)


def test_what_could_not_be_sent_in_time_waits_too() -> None:
    """Coordinated omission: the sender itself is held up, and requests that were due meanwhile count it."""

    class Stalling(SlowTarget):
        def send(self, number: int, done) -> None:  # type: ignore[no-untyped-def]
            if number == 0:
                time.sleep(0.3)
            done(None)

    loop = OpenLoop(Stalling(0), repeat(0.01, 20), 100)
    loop.start()
    time.sleep(0.5)
    loop.stop(5)
    latencies = [answer.latency for answer in loop.take()[0]]
    assert len(latencies) == 20
    np.testing.assert_allclose(latencies, [0.3 - 0.01 * n for n in range(20)], atol=0.05)
    # From the moment of sending all but the first would have seemed instant.
    assert sum(latency > 0.1 for latency in latencies) > 10


def test_arrivals_past_the_bound_are_recorded_not_hidden() -> None:
    target = SlowTarget(1.0)
    loop = OpenLoop(target, repeat(0.005, 40), 3)
    loop.start()
    time.sleep(0.5)
    answers, due, unanswered = loop.take()
    assert (len(target.sent), unanswered, due) == (3, 3, 40)
    assert [answer.failure for answer in answers] == ["NotSent"] * 37
    assert loop.examples["NotSent"] == "3 requests were still unanswered"
    loop.stop(0)


def test_failures_are_counted_by_kind_with_an_example() -> None:
    def fail(number: int) -> TercetError | None:
        return InferenceError(f"request {number} failed") if number == 2 else None

    loop = ClosedLoop(SlowTarget(0.001, fail), 1)
    loop.start()
    time.sleep(0.3)
    loop.stop(5)
    failures = [answer.failure for answer in loop.take()[0]]
    assert failures.count("InferenceError") == 1
    assert failures.count(None) == len(failures) - 1 > 2, "a failed request ends no worker"
    assert loop.examples == {"InferenceError": "request 2 failed"}


def test_failing_at_once_is_no_load() -> None:
    class Refusing(SlowTarget):
        def send(self, number: int, done) -> None:  # type: ignore[no-untyped-def]
            self.sent.append((number, time.perf_counter()))
            done(InferenceError("no"))

    target = Refusing(0)
    loop = ClosedLoop(target, 2)
    loop.start()
    time.sleep(0.45)
    loop.stop(1)
    assert 4 <= len(target.sent) <= 12, "each worker pauses for a tenth of a second"
