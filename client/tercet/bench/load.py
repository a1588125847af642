"""Load on a target: so many requests kept at work (closed loop), or so many that arrive in a second (open
loop).

A closed loop tells what a server can do at most, and flatters its latency: while the server is slow, nobody
asks. An open loop asks on, as the public does, and counts each request from the moment at which it was due,
not from when there was time to send it (else slowness would hide itself: "coordinated omission").
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tercet.bench.values import Target
from tercet.errors import TercetError

__all__ = ["Answer", "ClosedLoop", "Load", "OpenLoop"]

PAUSE_AFTER_FAILURE = 0.1
"""Seconds before a worker of a closed loop whose request failed sends its next: failures must be no load."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How one request ended: seconds since it was due, and what failed, if anything did."""

    latency: float
    failure: str | None = None


class Load(Protocol):
    """Requests that are being sent."""

    examples: dict[str, str]

    def start(self) -> None:
        """Begin to send."""

    def take(self) -> tuple[list[Answer], int, int]:
        """What ended since the last call, how many requests were due since then, how many are under way."""

    def waiting(self) -> int:
        """How many answers `take` would return."""

    def stop(self, seconds: float) -> None:
        """Send no more, and wait for what is under way, at most so long."""


class _Sender:
    """What both loops share: sending, and taking down how each request ended."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._answers: list[Answer] = []
        self._due = self._unanswered = self._number = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self.examples: dict[str, str] = {}
        """Of each kind of failure the first message."""

    def take(self) -> tuple[list[Answer], int, int]:
        with self._changed:
            answers, due = self._answers, self._due
            self._answers, self._due = [], 0
            return answers, due, self._unanswered

    def waiting(self) -> int:
        return len(self._answers)

    def stop(self, seconds: float) -> None:
        self._stopping.set()
        with self._changed:
            self._changed.wait_for(lambda: self._unanswered == 0, seconds)

    def _send(self, due: float) -> None:
        """Send one request, which was due at `due` on the performance counter."""
        with self._changed:
            self._due += 1
            self._unanswered += 1
            number = self._number
            self._number += 1

        def done(error: TercetError | None) -> None:
            latency = time.perf_counter() - due
            with self._changed:
                self._unanswered -= 1
                self._record(latency, error)
                if self._stopping.is_set():
                    self._changed.notify_all()
            self._answered(error)

        self._target.send(number, done)

    def _record(self, latency: float, error: TercetError | None) -> None:
        failure = None if error is None else type(error).__name__
        self._answers.append(Answer(latency, failure))
        if failure is not None:
            self.examples.setdefault(failure, str(error))

    def _answered(self, error: TercetError | None) -> None:
        """Nothing more to do."""


class ClosedLoop(_Sender):
    """`workers` that each send their next request when the last one is answered."""

    def __init__(self, target: Target, workers: int) -> None:
        super().__init__(target)
        self._workers = workers

    def start(self) -> None:
        """Send the first request of each worker; the answers send the others."""
        for _ in range(self._workers):
            self._next()

    def _answered(self, error: TercetError | None) -> None:
        if error is None:
            self._next()
        else:
            pause = threading.Timer(PAUSE_AFTER_FAILURE, self._next)
            pause.daemon = True
            pause.start()

    def _next(self) -> None:
        if not self._stopping.is_set():
            self._send(time.perf_counter())


class NotSent(TercetError):
    """An arrival that the client could not send: too many requests were unanswered."""


class OpenLoop(_Sender):
    """Requests that arrive by themselves, `gaps` seconds one after another, answered or not.

    While `outstanding` requests are unanswered, arrivals are not sent but recorded as failures `NotSent`: the
    server is overloaded, and the report says so.
    """

    def __init__(self, target: Target, gaps: Iterable[float], outstanding: int) -> None:
        super().__init__(target)
        self._gaps = gaps
        self._outstanding = outstanding
        self._clock = threading.Thread(target=self._run, name="tercet-arrivals", daemon=True)

    def start(self) -> None:
        """Start the clock."""
        self._clock.start()

    def stop(self, seconds: float) -> None:
        """Stop the clock, and wait for what is under way, at most so long."""
        self._stopping.set()
        self._clock.join()
        super().stop(seconds)

    def _run(self) -> None:
        due = time.perf_counter()
        for gap in self._gaps:
            due += gap
            # Where the clock is late already there is no waiting: the lateness is part of the latency.
            if self._stopping.wait(max(due - time.perf_counter(), 0)):
                return
            if self._unanswered < self._outstanding:
                self._send(due)
            else:
                with self._changed:
                    self._due += 1
                    self._record(0.0, NotSent(f"{self._outstanding} requests were still unanswered"))
