"""One point: load on a target, warmed up, in windows until they agree."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from tercet.bench import processes
from tercet.bench.load import Load
from tercet.bench.server import Counters
from tercet.bench.statistics import AGREEING, Window, agree, overloaded, summarise
from tercet.bench.values import Mode, Point, Settings, Stage, Status

__all__ = ["Interrupted", "Progress", "Reading", "Source", "Split", "measure"]

POLL_SECONDS = 0.05
SHOW_SECONDS = 0.25
DRAIN_SECONDS = 60.0

Reading: TypeAlias = Mapping[str, Counters]
Split: TypeAlias = Callable[[Reading, Reading, int], tuple[Stage, ...]]
"""What the target's models spent between two readings of their counters, for so many answers."""


class Source(Protocol):
    """Where the server's own numbers come from."""

    processes: list[int] | None

    def counters(self) -> dict[str, Counters]:
        """What it has counted of every model."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while measuring; `point` is what was measured until then, if anything was."""

    def __init__(self, point: Point | None) -> None:
        super().__init__()
        self.point = point


@dataclass(frozen=True)
class Progress:
    """What is going on, for a display: the window under way (0: warm-up), and what the last one found."""

    target: str
    mode: Mode
    load: float
    window: int
    answered: int
    throughput: float = 0.0
    p95: float = 0.0  # milliseconds
    failures: int = 0


@dataclass(frozen=True)
class _Used:
    """What everybody has used up to a moment."""

    when: float
    counters: dict[str, Counters]
    client: float
    server: float | None


def measure(
    load: Load,
    target: str,
    mode: Mode,
    amount: float,
    source: Source,
    settings: Settings,
    *,
    stages_of: Split,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Point:
    """Start `load`, warm up, take windows until the last three agree, stop it.

    Args:
        load: what to start; `target`, `mode` and `amount` say what it is.
        source: the server's counters and processes.
        settings: how long, and how well they must agree.
        stages_of: what the target's models spent between two readings of the counters, for so many answers.
        on_progress: called a few times a second.

    Raises:
        Interrupted: on Ctrl-C, with what was measured until then.
        TercetError: the server no longer tells its counters.
    """
    taking = _Taking(load, source, settings, lambda *seen: on_progress(Progress(target, mode, amount, *seen)))
    status: Status = "not stable"
    load.start()
    try:
        taking.warm_up()
        for _ in range(settings.windows):
            taking.window()
            if not len(taking.windows[-1].latencies) and taking.windows[-1].failures:
                status = "failed"
                break
            if agree(taking.windows, settings.tolerance, mode):
                status = "stable"
                break
    except KeyboardInterrupt:
        taking.close_window()
        status = "interrupted"
    finally:
        load.stop(0.0 if status == "interrupted" else min(DRAIN_SECONDS, settings.timeout))
    if mode == "open" and status in ("stable", "not stable") and overloaded(taking.windows[-AGREEING:]):
        status = "overloaded"
    point = taking.point(target, mode, amount, status, stages_of) if taking.windows else None
    if status == "interrupted":
        raise Interrupted(point)
    assert point is not None
    return point


class _Taking:
    """The windows of one point, one after another without gaps."""

    def __init__(
        self,
        load: Load,
        source: Source,
        settings: Settings,
        show: Callable[[int, int, float, float, int], None],
    ) -> None:
        self._load, self._source, self._settings, self._show = load, source, settings, show
        self.windows: list[Window] = []
        self._readings: list[_Used] = []
        self._memory = 0

    def warm_up(self) -> None:
        """Let the load run unmeasured, until it has begun to be answered."""
        self._wait(self._settings.warm_up, 1)
        self._load.take()
        self._readings.append(self._read())

    def window(self) -> None:
        """Measure one window."""
        self._wait(self._settings.window, self._settings.least)
        self._end_window()

    def close_window(self) -> None:
        """End the window under way before its time, if there was an answer in it."""
        if self._readings and self._load.waiting():
            self._end_window()

    def point(
        self,
        target: str,
        mode: Mode,
        amount: float,
        status: Status,
        stages_of: Split,
    ) -> Point:
        """The last three windows as one."""
        windows = self.windows[-AGREEING:]
        first, last = self._readings[-1 - len(windows)], self._readings[-1]
        latencies = np.concatenate([window.latencies for window in windows])
        seconds = last.when - first.when
        found = stages_of(first.counters, last.counters, len(latencies)) if len(latencies) else ()
        latency = summarise(latencies) if len(latencies) else None
        failures: Counter[str] = sum((Counter(window.failures) for window in windows), Counter())
        server = None if first.server is None or last.server is None else last.server - first.server
        return Point(
            target=target,
            mode=mode,
            load=amount,
            status=status,
            windows=len(self.windows),
            seconds=seconds,
            answers=len(latencies),
            throughput=len(latencies) / seconds,
            latency=latency,
            failures=dict(failures),
            stages=found,
            outside=latency.mean - sum(stage.total for stage in found) if latency else 0.0,
            client_cores=(last.client - first.client) / seconds,
            server_cores=None if server is None else server / seconds,
            server_memory=self._memory or None,
            notes=tuple(f"{kind}: {self._load.examples[kind]}" for kind in failures),
        )

    def _end_window(self) -> None:
        # What is answered while the counters are read belongs to the next window, as do its counts.
        started = self._readings[-1].when
        answers, due, unanswered = self._load.take()
        self._readings.append(self._read())
        latencies = np.array([answer.latency for answer in answers if answer.failure is None])
        failures = Counter(answer.failure for answer in answers if answer.failure is not None)
        seconds = self._readings[-1].when - started
        self.windows.append(Window(seconds, latencies, dict(failures), due, unanswered))

    def _read(self) -> _Used:
        when, client = time.perf_counter(), time.process_time()
        self._weigh()
        pids = self._source.processes
        server = None if pids is None else processes.cpu_seconds(pids)
        return _Used(when, self._source.counters(), client, server)

    def _weigh(self) -> None:
        if self._source.processes is not None:
            self._memory = max(self._memory, processes.resident(self._source.processes))

    def _wait(self, seconds: float, answers: int) -> None:
        """Wait so long, and as long again until there are so many answers; show what is going on.

        Not just until the last of them: answers come in batches, and a window that ends with one holds more
        than its share.
        """
        started = shown = time.perf_counter()
        until = seconds
        last: Sequence[Window] = self.windows[-1:]
        while True:
            elapsed = time.perf_counter() - started
            answered = self._load.waiting()
            if elapsed >= until:
                if answered >= answers or elapsed >= self._settings.longest_window:
                    return
                until += max(seconds, POLL_SECONDS)
            if time.perf_counter() - shown > SHOW_SECONDS:
                shown = time.perf_counter()
                self._weigh()
                number = len(self.windows) + 1 if self._readings else 0
                failed = sum(sum(window.failures.values()) for window in self.windows)
                found = (last[0].throughput, last[0].p95 * 1e3) if last else (answered / elapsed, 0.0)
                self._show(number, answered, *found, failed)
            time.sleep(min(POLL_SECONDS, max(until - elapsed, 0.001)))
