"""What a batch does on the card, kernel by kernel: where the time goes, and whether the card waits.

    python -m benchmarks.gpu.kernels OUTPUT [--networks NAME ...] [--engines ENGINE ...] [--batches N ...]

OUTPUT is a CSV file: a row for each kernel of each network, engine and batch, with how often a run starts it
and its milliseconds a run. Printed are the sums beside the time of a whole run: what is missing between the
two is the card waiting for its host. The times are PyTorch's profiler's, which sees the kernels of ONNX
Runtime in its process as well.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.cases import CASES
from benchmarks.gpu.device import NoDevice, check_device
from benchmarks.gpu.engines import ENGINES, Runner
from benchmarks.gpu.network import Settings, make_inputs, open_subject, rows_of
from benchmarks.rows import write_rows

RUNS = 5
CHOSEN = ("onnxruntime", "torch")


@dataclass(frozen=True)
class Kernel:
    """A kernel's part in a run: `count` starts, `milliseconds` in all; `run_ms` is the whole run's."""

    network: str
    engine: str
    batch: int
    kernel: str
    count: float
    milliseconds: float
    run_ms: float


def main() -> None:
    """Profile what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--networks", nargs="+", default=["clip-image ViT-B-32-quickgelu"], choices=list(CASES)
    )
    parser.add_argument("--engines", nargs="+", default=CHOSEN, choices=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32], metavar="N")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "tercet" / "gpu")
    arguments = parser.parse_args()
    try:
        check_device("cuda")
    except NoDevice as error:
        raise SystemExit(f"error: {error}") from None
    graphs = str(arguments.cache / "graphs")
    settings = Settings("cuda", tuple(arguments.engines), tuple(arguments.batches), 1, 0.0, 0.0, graphs)
    found: list[Kernel] = []
    for name in arguments.networks:
        for kernels in of_network(name, settings):
            if kernels:
                found += kernels
                print(describe(kernels), flush=True)
                write_rows(arguments.output, found)


def of_network(name: str, settings: Settings) -> Iterator[list[Kernel]]:
    """The kernels of each engine with each batch, the longest first."""
    subject, case = open_subject(name, settings)
    examples = make_inputs(case, subject.loaded)
    for engine in settings.engines:
        way = ENGINES[engine]
        if case.role not in way.roles or way.missing(settings.device) is not None:
            continue
        runner = way.open(subject)
        for batch in settings.batches:
            runner.prepare(rows_of(examples, batch))
            yield [Kernel(name, engine, batch, *row) for row in of_runs(runner)]


def of_runs(runner: Runner) -> list[tuple[str, float, float, float]]:
    """Each kernel's name, starts and milliseconds a run, and the milliseconds of a run unwatched."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        runner.run()
        times.append((time.perf_counter() - started) * 1e3)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(RUNS):
            runner.run()
        torch.cuda.synchronize()
    run = median(times)
    kernels = [
        (event.key, event.count / RUNS, event.device_time_total / 1e3 / RUNS, run)
        for event in profiler.key_averages()
        if event.device_time_total
    ]
    return sorted(kernels, key=lambda kernel: -kernel[2])


def describe(kernels: list[Kernel], most: int = 12) -> str:
    """The sums, and the longest kernels."""
    first = kernels[0]
    busy, starts = sum(kernel.milliseconds for kernel in kernels), sum(kernel.count for kernel in kernels)
    sums = f"{busy:.3f} ms of kernels, {starts:.0f} starts"
    title = f"{first.network}, {first.engine}, batch {first.batch}: {first.run_ms:.3f} ms a run, {sums}"
    longest = (
        f"{kernel.milliseconds:8.4f} ms {kernel.count:5.0f} x {kernel.kernel[:110]}" for kernel in kernels
    )
    return "\n  ".join([title, *islice(longest, most)])


if __name__ == "__main__":
    main()
