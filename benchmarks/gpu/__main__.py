"""Every network and the pipeline on an NVIDIA GPU, beside PyTorch and beside the card's own matrix rate.

    python -m benchmarks.gpu OUTPUT [--networks NAME ...] [--no-pipeline] [--quick]

Run it from the checkout, in an environment made by `benchmarks/gpu/setup.sh`. No network is needed: weights
are random (of full size, the same in every engine) and made on the spot. OUTPUT is a folder, which gets
gpu.csv (a row for each network, batch and engine), gpu.json, gpu.png, and in `pipeline/` what `tercet bench`
writes.

Each engine runs fp16 and finds its inputs on the card; the engines take turns, and a ratio is of neighbouring
turns. The outputs are compared with PyTorch's in fp32 on the same card by the server's own gate.

A call ends within `--minutes`. What was measured to its end on this card with these versions is not measured
again: call it again until nothing is left (three calls or so), `--again` to measure anew.

To set up a machine without a network: on one that has it, with the same Python,

    benchmarks/gpu/setup.sh --download wheels        # 6 GB

then, from the checkout on the machine with the card,

    benchmarks/gpu/setup.sh --wheels wheels environment
    environment/bin/python -m benchmarks.gpu results

With `--system` setup.sh leaves out PyTorch and CUDA's libraries, and the environment uses those that the
machine's own Python has; without `--wheels` it takes everything from PyPI. Needed besides: the card's driver,
and a C++ compiler for torch.compile.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu import pipeline, plots
from benchmarks.gpu.cases import CASES, TINY
from benchmarks.gpu.device import NoDevice, card, check_device, describe_versions
from benchmarks.gpu.engines import ENGINES
from benchmarks.gpu.network import Settings
from benchmarks.gpu.results import Row, Status, merge, read_status, write_status
from benchmarks.rows import read_rows, write_rows
from tercet.bench.processes import describe_machine
from tercet.bench.values import Settings as LoadSettings

BATCHES = (1, 2, 4, 8, 16, 32, 64)
PIPELINE = "pipeline"
CACHE = Path.home() / ".cache" / "tercet" / "gpu"
GRACE = 60.0
"""Seconds past the deadline after which a network that does not end is ended: it begins no batch by then."""

PIPELINE_SECONDS = 120.0
"""The pipeline is not begun with less than that left."""


def main() -> None:
    """Measure what is asked for and not yet there, and keep each part once done."""
    arguments = read_arguments()
    try:
        check_device(arguments.device)
    except NoDevice as error:
        raise SystemExit(f"error: {error}") from None
    deadline = time.time() + 60 * arguments.minutes
    results = Results(arguments.output, card(arguments.device), describe_versions())
    wanted = [*arguments.networks, *([PIPELINE] if arguments.pipeline else [])]
    parts = [part for part in wanted if arguments.again or not results.has(part)]
    for part in parts:
        started = time.time()
        if started > deadline or (part == PIPELINE and started + PIPELINE_SECONDS > deadline):
            print(f"{part}: no time is left in this call; call again", flush=True)
            continue
        rows: list[Row] = []
        if part == PIPELINE:
            complete, note = measure_pipeline(arguments, deadline)
        else:
            complete, note = measure_network(part, arguments, deadline, rows)
        results.keep(part, rows, complete, time.time() - started, note)
        print(f"{part}: {'done' if complete else note}, {time.time() - started:.0f} s", flush=True)
    left = [part for part in wanted if not results.has(part)]
    print(f"left to measure: {', '.join(left) or 'nothing'}; results are in {arguments.output}")


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--networks", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--pipeline", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES), metavar="ENGINE"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), metavar="N")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine with each batch")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn; three runs at least")
    parser.add_argument("--minutes", type=float, default=8.5, help="after which nothing else is begun")
    parser.add_argument(
        "--concurrency", nargs="+", type=int, metavar="N", help="requests at once of the pipeline's load"
    )
    parser.add_argument("--quick", action="store_true", help="batches 1 and 8, short turns: a first look")
    parser.add_argument("--again", action="store_true", help="measure also what was measured before")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only to try this out")
    parser.add_argument("--tiny", action="store_true", help="networks of milliseconds: to try this out")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where exported graphs are kept")
    arguments = parser.parse_args()
    known = TINY if arguments.tiny else tuple(CASES)
    if arguments.networks is None:
        arguments.networks = list(known)
    for name in arguments.networks:
        if name not in known:
            parser.error(f"there is no network {name!r}: choose of {', '.join(known)}")
    if arguments.quick:
        arguments.batches, arguments.rounds, arguments.seconds = [1, 8], 3, 0.05
    return arguments


class Results:
    """The files in OUTPUT: what earlier calls left there, and what this one adds, part by part."""

    def __init__(self, folder: Path, device: str, versions: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.card, self.versions = folder, device, versions
        self.rows = read_rows(Row, folder / "gpu.csv")
        self.parts = read_status(folder / "gpu.json")

    def has(self, part: str) -> bool:
        """Whether a part was measured to its end, on this card with these versions."""
        status = self.parts.get(part)
        return status is not None and (status.complete, status.card, status.versions) == (
            True,
            self.card,
            self.versions,
        )

    def keep(self, part: str, rows: Sequence[Row], complete: bool, seconds: float, note: str) -> None:
        """Put a part into the files, in the place of what they held of it."""
        self.rows = merge(self.rows, rows, [*CASES, *TINY])
        self.parts[part] = Status(complete, round(seconds, 1), self.card, self.versions, note)
        if self.rows:
            write_rows(self.folder / "gpu.csv", self.rows)
        write_status(self.folder / "gpu.json", self.parts, self.rows, describe_machine())
        plots.draw(self.rows, self.folder / "gpu.png")


def measure_network(
    name: str, arguments: argparse.Namespace, deadline: float, rows: list[Row]
) -> tuple[bool, str]:
    """Measure a network in a process of its own, into `rows`; whether that was all, and else why not."""
    settings = Settings(
        device=arguments.device,
        engines=tuple(arguments.engines),
        batches=tuple(arguments.batches),
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        deadline=deadline,
        graphs=str(arguments.cache / "graphs"),
        tiny=arguments.tiny,
    )
    complete, note = False, ""
    for line in child(name, settings, deadline + GRACE):
        if "row" in line:
            row = Row(**line["row"])
            rows.append(row)
            numbers = f"{row.per_second:10.4g}/s  {row.ratio:6.3g} times {row.beside}, {row.verdict}"
            if row.on_processor:
                numbers += f"; ON THE PROCESSOR: {row.on_processor}"
            print(
                f"{name}, {row.batch:3d}: {row.engine:22} {numbers if row.runs else row.status}", flush=True
            )
        complete, note = line.get("complete", complete), line.get("note", note)
    return complete, note


def child(name: str, settings: Settings, end: float) -> Iterator[dict]:
    """What the network's process writes, line by line; a note where it ends before its time, or is ended."""
    command = [sys.executable, "-m", "benchmarks.gpu.network", name, json.dumps(asdict(settings))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        timer = threading.Timer(max(1.0, end - time.time()), process.kill)
        timer.start()
        try:
            for text in process.stdout:
                if text.startswith("{"):  # what a library prints is no result
                    yield json.loads(text)
        finally:
            timer.cancel()
    if process.returncode:
        late = time.time() > end
        yield {"note": "the time was up" if late else f"its process ended with code {process.returncode}"}


def measure_pipeline(arguments: argparse.Namespace, deadline: float) -> tuple[bool, str]:
    """Measure the pipeline; whether that was all, and else why not."""
    if (lacking := pipeline.missing()) is not None:
        return False, f"not run: {lacking}"
    quick = arguments.quick
    load = pipeline.Load(
        targets=pipeline.TARGETS,
        concurrency=arguments.concurrency or ((1, 4) if quick else pipeline.CONCURRENCY),
        settings=LoadSettings(warm_up=0.5 if quick else 1.0, window=0.3 if quick else 1.0, windows=6),
        deadline=deadline,
    )
    try:
        repository = pipeline.prepare(arguments.cache, arguments.tiny)
        _, complete = pipeline.measure(arguments.output / PIPELINE, repository, arguments.device, load)
    except Exception as error:  # whatever it runs into: what else was measured is kept
        notes = " ".join([type(error).__name__ + ":", str(error), *getattr(error, "__notes__", [])])
        return False, f"not run: {notes}"
    return complete, "" if complete else "the time was up"


if __name__ == "__main__":
    main()
