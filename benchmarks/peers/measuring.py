"""One system under a closed loop for so many seconds."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers.running import Running
from tercet.bench import processes
from tercet.bench.load import Answer, ClosedLoop
from tercet.bench.statistics import summarise
from tercet.bench.values import Target

__all__ = ["Load", "Measured", "measure"]

OF_A_BATCH = 0.05
"""Seconds within which the answers to one batch arrive."""


@dataclass(frozen=True)
class Load:
    """So many clients, measured for so long after so long; seconds."""

    clients: int
    warm_up: float
    seconds: float


@dataclass(frozen=True)
class Measured:
    """What `measure` found: a `Round` without its place."""

    throughput: float
    p50_ms: float
    p99_ms: float
    answers: int
    failures: int
    cores: float
    memory_mb: int
    load_average: float
    others: float


def measure(target: Target, load: Load, server: Running | None, timeout: float) -> Measured:
    """Throughput and latency of `target`; without a warm-up, of a script in this process.

    A window begins and ends with an answer: servers give them by the batch, and of few seconds' answers one
    batch more or less may be a third.
    """
    family: Sequence[int] = processes.tree(server.process.pid) if server else [os.getpid()]
    loop = ClosedLoop(target, load.clients)
    loop.start()
    try:
        if load.warm_up:
            time.sleep(load.warm_up)
            next_answer(loop, timeout)
        started, used, busy = time.perf_counter(), processes.cpu_seconds(family), busy_seconds()
        own = time.process_time()
        if load.warm_up:
            take_batch(loop)
        time.sleep(load.seconds)
        if not load.warm_up:
            loop.stop(0.0)  # nobody asks again: the script would compute on in the next one's turn
        next_answer(loop, timeout)
        elapsed = time.perf_counter() - started
        used = processes.cpu_seconds(family) - used
        busy, own = busy_seconds() - busy, time.process_time() - own
        memory = processes.resident(family)
        answers = take_batch(loop)
    finally:
        loop.stop(timeout if load.warm_up else 0.0)
    latencies = np.array([answer.latency for answer in answers if answer.failure is None])
    latency = summarise(latencies) if len(latencies) else None
    if loop.examples:
        print(f"{target.name}: {loop.examples}", flush=True)
    return Measured(
        throughput=len(latencies) / elapsed,
        p50_ms=latency.p50 if latency else 0.0,
        p99_ms=latency.p99 if latency else 0.0,
        answers=len(latencies),
        failures=len(answers) - len(latencies),
        cores=used / elapsed,
        memory_mb=round(memory / 1e6),
        load_average=os.getloadavg()[0],
        others=max(busy - used - (own if server else 0.0), 0.0) / elapsed,
    )


def busy_seconds() -> float:
    """Processor time that all of the machine's processes and its system have used since it started."""
    user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().split("\n")[0].split()[1:8]
    return sum(map(int, (user, nice, system, *interrupts))) / os.sysconf("SC_CLK_TCK")


def next_answer(loop: ClosedLoop, timeout: float) -> None:
    """Wait for it, so many seconds at most."""
    latest, seen = time.perf_counter() + timeout, loop.waiting()
    while loop.waiting() == seen and time.perf_counter() < latest:
        time.sleep(0.001)


def take_batch(loop: ClosedLoop) -> list[Answer]:
    """What has been answered, with all of the batch that is being answered."""
    time.sleep(OF_A_BATCH)
    return loop.take()[0]
