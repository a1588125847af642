"""One point: warm-up, windows, when it ends, and what it says."""

import _thread
import threading

import pytest

from tercet.bench.load import ClosedLoop, OpenLoop
from tercet.bench.measure import Interrupted, Progress, measure
from tercet.bench.server import Counters, stages
from tercet.bench.statistics import arrival_gaps
from tercet.bench.values import Mode, Point, Settings
from tercet.errors import InferenceError, TercetError
from tests.bench.stand_ins import NoServer, SlowTarget

QUICK = Settings(warm_up=0.1, window=0.15, least=5, windows=5, tolerance=3.0)


def of(
    target: SlowTarget, mode: Mode = "closed", amount: float = 2, settings: Settings = QUICK, **more
) -> Point:  # type: ignore[no-untyped-def]
    if mode == "closed":
        load = ClosedLoop(target, int(amount))
    else:
        load = OpenLoop(target, arrival_gaps(amount, 0), settings.outstanding)  # type: ignore[assignment]
    return measure(load, "slow", mode, amount, NoServer(), settings, stages_of=lambda *_: (), **more)


def test_a_steady_target_is_stable_after_three_windows() -> None:
    point = of(SlowTarget(0.005))
    assert (point.status, point.windows, point.failures) == ("stable", 3, {})
    assert point.throughput == pytest.approx(point.answers / point.seconds)
    assert point.latency is not None
    assert (point.throughput < 210, point.latency.p50 > 9) == (True, True)  # a busy machine only adds to it
    assert point.throughput * point.latency.mean / 1e3 == pytest.approx(2, rel=0.2)  # Little's law
    assert (point.server_cores, point.server_memory) == (None, None)
    assert 0 < point.client_cores < 2


def test_windows_are_as_long_as_their_answers_take() -> None:
    settings = Settings(warm_up=0, window=0.05, least=8, windows=3, tolerance=3.0)
    point = of(SlowTarget(0.02), amount=1, settings=settings)
    assert point.answers >= 24
    assert point.seconds >= 24 * 0.02


def test_what_never_settles_is_said_to_be_so() -> None:
    target = SlowTarget(0.001)

    def slower(progress: Progress) -> None:
        target.seconds *= 1.5

    settings = Settings(warm_up=0.0, window=0.3, least=1, windows=4, tolerance=0.1)
    point = of(target, settings=settings, on_progress=slower)
    assert (point.status, point.windows) == ("not stable", 4)


def test_an_open_loop_past_what_the_target_can_is_overloaded() -> None:
    settings = Settings(warm_up=0.1, window=0.3, least=5, windows=3, outstanding=10)
    point = of(SlowTarget(0.02), "open", 200, settings)
    assert point.status == "overloaded"
    assert point.failures["NotSent"] > 20
    assert 20 < point.throughput < 55
    assert point.notes == ("NotSent: 10 requests were still unanswered",)
    assert point.sent == point.answers + point.failures["NotSent"]


def test_nothing_but_failures_ends_the_point() -> None:
    def fail(number: int) -> TercetError | None:
        return InferenceError("broken")

    point = of(SlowTarget(0.001, fail))
    assert (point.status, point.windows, point.answers, point.latency) == ("failed", 1, 0, None)
    assert point.failures["InferenceError"] > 0
    assert point.notes == ("InferenceError: broken",)


def test_an_interrupt_keeps_the_windows_so_far() -> None:
    settings = Settings(warm_up=0.05, window=0.2, least=1, windows=100, tolerance=0.0)
    stop = threading.Timer(0.8, _thread.interrupt_main)
    stop.start()
    with pytest.raises(Interrupted) as stopped:
        of(SlowTarget(0.005), settings=settings)
    point = stopped.value.point
    assert point is not None
    assert (point.status, point.answers > 20) == ("interrupted", True)
    assert 40 < point.throughput < 210


def test_stages_are_differences_of_counters() -> None:
    earlier = {"a": Counters(requests=10, inferences=10, executions=10, queue=10**9)}
    later = {
        "a": Counters(30, 0, 30, 15, 10**9, 10**9 + 40 * 10**6, 20 * 10**6, 100 * 10**6, 40 * 10**6),
        "b": Counters(40, 0, 40, 40, 0, 0, 0, 80 * 10**6, 0),
    }
    first, second = stages(["a", "b", "idle"], False, earlier, later, 20)
    assert (first.model, first.requests, first.batch) == ("a", 1, 4)
    assert (first.queue, first.input, first.infer, first.output) == (2, 1, 5, 2)
    assert first.total == 10
    assert (second.requests, second.infer, second.batch) == (2, 4, 1)
    (once,) = stages(["b"], True, earlier, later, 20)
    assert once.infer == 2
