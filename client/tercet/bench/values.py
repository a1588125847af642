"""What a measurement is made of, as plain values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from tercet.errors import TercetError

__all__ = ["Done", "Latency", "Mode", "Point", "Report", "Settings", "Stage", "Status", "Target"]

Mode = Literal["closed", "open"]
Status = Literal["stable", "not stable", "overloaded", "failed", "interrupted"]
Done = Callable[[TercetError | None], None]
"""What a target calls when a request is answered: with None, or with why there is no answer."""


class Target(Protocol):
    """What load is put on. Requests are made beforehand: sending one should cost next to nothing."""

    @property
    def name(self) -> str:
        """What the report calls it."""

    def send(self, number: int, done: Done) -> None:
        """Send request `number` (they repeat) and return at once; `done` is called from any thread."""

    def close(self) -> None:
        """Disconnect; what is still unanswered may fail."""


@dataclass(frozen=True)
class Settings:
    """How long to measure, and when to believe it.

    After `warm_up` seconds come windows of `window` seconds, or a multiple of it that has `least` answers
    (but not past `longest_window` seconds), until the last three agree within `tolerance` in throughput and
    p95 latency; after `windows` of them the result is called not stable. An open loop sends nothing more
    while `outstanding` requests are unanswered. `timeout` (seconds) is one request's.
    """

    warm_up: float = 2.0
    window: float = 2.0
    least: int = 20
    windows: int = 10
    tolerance: float = 0.10
    longest_window: float = 60.0
    outstanding: int = 512
    timeout: float = 60.0
    seed: int = 0


@dataclass(frozen=True)
class Latency:
    """Milliseconds from when a request was due until it was answered, over all answers of the windows."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Stage:
    """What one model of the server spent for each answer of the target, in milliseconds.

    By Triton's own counters: waiting in its queue, reading inputs, computing, writing outputs. A composed
    query may ask a model more than once: `requests` of them go into one answer. `batch` is the mean batch
    that was computed at once (Triton's inferences by its executions).
    """

    model: str
    requests: float
    batch: float
    queue: float
    input: float
    infer: float
    output: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.queue + self.input + self.infer + self.output


@dataclass(frozen=True)
class Point:
    """One target under one load.

    `load` is the number of requests kept at work (closed loop) or the mean rate of arrivals (open loop).
    `throughput` counts answers only, per second; `failures` counts the rest by kind, where `NotSent` are
    arrivals past the bound on unanswered requests. `outside` is the part of the mean latency that no stage
    accounts for: transport, the ensemble's own hops, the client. Cores are seconds of processor time per
    second; those of the server, and the peak of its resident memory (bytes, of all its processes), are None
    where it runs on another machine. `ceiling` is what this machine's fastest engines do of the same work,
    per second, if known.
    """

    target: str
    mode: Mode
    load: float
    status: Status
    windows: int
    seconds: float
    answers: int
    throughput: float
    latency: Latency | None
    failures: Mapping[str, int] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    outside: float = 0.0
    client_cores: float = 0.0
    server_cores: float | None = None
    server_memory: int | None = None
    ceiling: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def share_of_ceiling(self) -> float | None:
        """Throughput by ceiling."""
        return self.throughput / self.ceiling if self.ceiling else None

    @property
    def sent(self) -> int:
        """Requests that were due in the windows' time: answered, failed or not sent."""
        return self.answers + sum(self.failures.values())


@dataclass(frozen=True)
class Report:
    """All points of a run, and what it ran on: machine, server, inputs, settings, all ready for JSON."""

    machine: Mapping[str, Any]
    server: Mapping[str, Any]
    inputs: Mapping[str, Any]
    settings: Settings
    points: tuple[Point, ...]
