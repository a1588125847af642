"""Times: engines in turns, each round beside the rate of a matrix product, which no network can exceed."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch

from benchmarks.gpu.engines import Runner, synchronise

__all__ = ["MatrixRate", "Times", "ratios", "take_turns"]

SIDES = {"cuda": 8192, "cpu": 512}
PRODUCTS = {"cuda": 20, "cpu": 2}
LEAST_RUNS = 3


class MatrixRate:
    """The rate of a large product of two fp16 matrices of random numbers on a device."""

    def __init__(self, device: str) -> None:
        self.device, self.side = device, SIDES[device]
        shape = (self.side, self.side)
        self.left, self.right = (torch.randn(shape, device=device).half() for _ in range(2))
        self.product = torch.empty_like(self.left)
        self.measure()

    def measure(self) -> float:
        """TFLOP/s now."""
        count = PRODUCTS[self.device]
        synchronise(self.device)
        started = time.perf_counter()
        for _ in range(count):
            torch.mm(self.left, self.right, out=self.product)
        synchronise(self.device)
        return count * 2 * self.side**3 / (time.perf_counter() - started) / 1e12


@dataclass
class Times:
    """An engine's seconds for each run, by round; `failure` is why there are no more."""

    rounds: dict[int, list[float]] = field(default_factory=dict)
    failure: BaseException | None = None

    def rates(self, batch: int) -> dict[int, float]:
        """Rows a second, by round."""
        return {number: batch * len(runs) / sum(runs) for number, runs in self.rounds.items()}

    def latency(self) -> tuple[float, float, int]:
        """Milliseconds of a run over all rounds: the median and the 99th percentile; of how many runs."""
        runs = [seconds * 1e3 for found in self.rounds.values() for seconds in found]
        return median(runs), float(np.percentile(runs, 99)), len(runs)


def take_turns(
    runners: Mapping[str, Runner], matrix: MatrixRate, rounds: int, seconds: float
) -> tuple[dict[str, Times], dict[int, float]]:
    """Run each engine for `seconds` in each of the rounds; its times, and the matrix rate of each round.

    Every other round takes them in the opposite order. One that fails is left out from then on.
    """
    times = {name: Times() for name in runners}
    rates: dict[int, float] = {}
    for number in range(rounds):
        rates[number] = matrix.measure()
        for name in list(runners)[:: -1 if number % 2 else 1]:
            if times[name].failure is None:
                try:
                    times[name].rounds[number] = timed(runners[name], seconds)
                except Exception as error:  # whatever an engine runs into: the others go on
                    times[name].failure = error
    return times, rates


def timed(runner: Runner, seconds: float) -> list[float]:
    """The seconds of each run, for so long, and of three runs at least; one more before that is not counted.

    What the engine before left in the caches, or the clock of the device, is thus not the first run's.
    """
    runner.run()
    found: list[float] = []
    ends = time.perf_counter() + seconds
    while len(found) < LEAST_RUNS or time.perf_counter() < ends:
        started = time.perf_counter()
        runner.run()
        found.append(time.perf_counter() - started)
    return found


def ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float, float, float]:
    """One by the other in each round that both were in: median, least, largest; zeros where there is none."""
    found = [ours[number] / theirs[number] for number in ours if theirs.get(number)]
    return (median(found), min(found), max(found)) if found else (0.0, 0.0, 0.0)
