"""Our load generator beside Triton's own, perf_analyzer, on the same server: they should find the same.

    python -m benchmarks.perf_analyzer docs/perf_analyzer.csv [--server HOST:PORT | --repository FOLDER]

The wheel `tritonclient==2.41.0` carries perf_analyzer, which newer ones do not. It is fetched by pip into
a cache folder and unpacked there, never installed: the client of this project is a newer one. Two libraries
that the binary wants are in the nvidia-pytriton wheel, under names of their own.

Both send the same text and JPEG files over gRPC: in turns (ours, theirs, ours, ...), and with --together
both at once on one server, which favours neither, whatever else the machine is busy with. The CSV has a row
for each turn; the ratios are of medians.
"""

import argparse
import base64
import csv
import importlib.util
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

from tercet.bench.inputs import make_pictures, make_texts
from tercet.bench.run import Plan, run
from tercet.bench.server import Server
from tercet.bench.targets import Inputs
from tercet.bench.values import Settings
from tercet.errors import TercetError
from tercet.server import EmbeddedServer

WHEEL = "tritonclient==2.41.0"
BINARY = "tritonclient-2.41.0.data/data/bin/perf_analyzer"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tercet" / "perf_analyzer"
# What the binary is linked to, and how the wheel's name for it begins.
LIBRARIES = {"libb64.so.0d": "libb64-", "libcudart.so.12": "libcudart-"}
INPUTS = {"embed_text": "text", "embed_image": "image"}
WINDOW = 4.0
LATER = 2.0
"""Seconds by which perf_analyzer begins after ours, if both are to end together: its windows take 4.8 s."""


@dataclass(frozen=True)
class Turn:
    """What one of the two found."""

    tool: str
    model: str
    concurrency: int
    together: bool
    turn: int
    throughput: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    load_average: float


def main() -> None:
    """Measure in turns, add them to the CSV, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--server", default="localhost:8001", metavar="HOST:PORT")
    parser.add_argument("--repository", type=Path, help="start a server over this model repository instead")
    parser.add_argument("--model", nargs="*", default=list(INPUTS), choices=list(INPUTS))
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--together", action="store_true", help="both at once, at this concurrency each")
    parser.add_argument("--wheel", type=Path, help="the wheel, where it was downloaded already")
    arguments = parser.parse_args()
    binary, environment = prepare(arguments.wheel)
    turns: list[Turn] = []
    with ExitStack() as running:
        address = arguments.server
        if arguments.repository:
            address = running.enter_context(EmbeddedServer(arguments.repository)).grpc_address
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        # One text: perf_analyzer's slots go through its inputs abreast, so that its batches are of equal
        # texts, and a batch takes as long as its longest.
        inputs = Inputs(make_pictures(), make_texts()[:1])
        for model in arguments.model:
            tools = Tools(binary, environment, address, model, inputs, folder, arguments.together)
            for concurrency in arguments.concurrency:
                for turn in range(arguments.turns):
                    turns += tools.take(concurrency, turn)
                    print(*turns[-2:], sep="\n", flush=True)
    new = not arguments.output.exists()
    with arguments.output.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(turns[0])))
        if new:
            writer.writeheader()
        writer.writerows(asdict(turn) for turn in turns)
    for line in ratios(turns):
        print(line)


def prepare(wheel: Path | None) -> tuple[Path, dict[str, str]]:
    """The binary, fetched at need, and the environment in which it finds its libraries."""
    binary = CACHE / BINARY
    if not binary.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        if wheel is None:
            # The platform tag under which the wheel was published; pip itself no longer offers it.
            tags = ["--only-binary=:all:", "--platform=manylinux1_x86_64", "--no-deps"]
            command = [sys.executable, "-m", "pip", "download", "--quiet", *tags, "--dest", str(CACHE), WHEEL]
            subprocess.run(command, check=True)
            (wheel,) = CACHE.glob("tritonclient-2.41.0-*.whl")
        with zipfile.ZipFile(wheel) as content:
            content.extract(BINARY, CACHE)
        binary.chmod(0o755)
    package = importlib.util.find_spec("pytriton")
    if package is None or not package.submodule_search_locations:
        sys.exit("perf_analyzer needs libraries of the nvidia-pytriton wheel: pip install 'tercet[serve]'")
    bundled = Path(package.submodule_search_locations[0]).parent / "nvidia_pytriton.libs"
    libraries = CACHE / "libraries"
    libraries.mkdir(exist_ok=True)
    for name, beginning in LIBRARIES.items():
        (found,) = bundled.glob(f"{beginning}*")
        (libraries / name).unlink(missing_ok=True)
        (libraries / name).symlink_to(found)
    return binary, {**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{bundled}"}


def write_inputs(model: str, inputs: Inputs, folder: Path) -> Path:
    """The inputs as perf_analyzer reads them: each tensor's bytes (its length before it) in base 64."""
    files = inputs.pictures if model == "embed_image" else [text.encode() for text in inputs.texts]
    tensors = [struct.pack("<I", len(file)) + file for file in files]
    data = [{INPUTS[model]: {"b64": base64.b64encode(tensor).decode(), "shape": [1]}} for tensor in tensors]
    path = folder / f"{model}.json"
    path.write_text(json.dumps({"data": data}))
    return path


@dataclass(frozen=True)
class Tools:
    """The two, ready to put load on one model of one server."""

    binary: Path
    environment: dict[str, str]
    address: str
    model: str
    inputs: Inputs
    folder: Path
    together: bool

    def take(self, concurrency: int, turn: int) -> list[Turn]:
        """One turn of each."""
        data = write_inputs(self.model, self.inputs, self.folder)
        if not self.together:
            mine = self.ours(concurrency)
            found = (mine, self.theirs(concurrency, data))
        else:
            with ThreadPoolExecutor(1) as pool:
                other = pool.submit(self.theirs, concurrency, data, LATER)
                found = (self.ours(concurrency), other.result())
        busy = round(os.getloadavg()[0], 1)
        names = ("tercet bench", "perf_analyzer")
        return [
            Turn(name, self.model, concurrency, self.together, turn, *values, busy)
            for name, values in zip(names, found, strict=True)
        ]

    def ours(self, concurrency: int) -> list[float]:
        """What `tercet bench` finds: throughput, and p50, p95 and p99 in milliseconds."""
        settings = Settings(window=WINDOW)
        if self.together:
            # Ours begins first and ends with theirs; of four windows, agreeing or not, the last three count.
            settings = Settings(warm_up=0.5, window=WINDOW, windows=4, tolerance=-1.0)
        with closing(Server(self.address)) as server:
            (point,) = run(server, Plan([self.model], [concurrency]), self.inputs, settings)
        assert point.latency is not None, point.notes
        return rounded(point.throughput, point.latency.p50, point.latency.p95, point.latency.p99)

    def theirs(self, concurrency: int, data: Path, later: float = 0.0) -> list[float]:
        """What perf_analyzer finds, begun `later` seconds from now, with the same rule of stability.

        Where it finds nothing stable it writes no report, so that it is then asked again for any.
        """
        report = self.folder / "report.csv"
        report.unlink(missing_ok=True)
        time.sleep(later)
        for percentage in ("999",) if self.together else ("10", "999"):
            command = [str(self.binary), "-m", self.model, "-u", self.address, "-i", "grpc", "-s", percentage]
            command += ["--input-data", str(data), "--concurrency-range", str(concurrency)]
            command += ["-p", str(int(WINDOW * 1000)), "-f", str(report), "--percentile", "95", "--async"]
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
            if report.exists():
                break
        else:
            sys.exit(f"perf_analyzer wrote no report:\n{done.stdout}\n{done.stderr}")
        with report.open(newline="") as file:
            (row,) = csv.DictReader(file)
        latencies = (float(row[f"p{percentile} latency"]) / 1000 for percentile in (50, 95, 99))
        return rounded(float(row["Inferences/Second"]), *latencies)


def ratios(turns: list[Turn]) -> Iterator[str]:
    """Ours by theirs, of medians, for each model and concurrency."""
    for model, concurrency in dict.fromkeys((turn.model, turn.concurrency) for turn in turns):
        of = [turn for turn in turns if (turn.model, turn.concurrency) == (model, concurrency)]
        parts = []
        for field in ("throughput", "p50_ms", "p95_ms"):
            mine, other = (
                statistics.median(getattr(turn, field) for turn in of if turn.tool == tool)
                for tool in ("tercet bench", "perf_analyzer")
            )
            parts.append(f"{field} {mine:.4g} / {other:.4g} = {mine / other:.3f}")
        yield f"{model} at {concurrency}: {', '.join(parts)}"


def rounded(*values: float) -> list[float]:
    """Four digits are enough."""
    return [float(f"{value:.4g}") for value in values]


if __name__ == "__main__":
    try:
        main()
    except TercetError as error:
        sys.exit(f"Error: {error}")
