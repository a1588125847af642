"""Measures one network, in a process of its own: what it leaves on the device goes with it.

    python -m benchmarks.gpu.network NETWORK SETTINGS

SETTINGS is `Settings` as JSON. Results are lines of JSON on standard output, as soon as there are any:
{"row": ...} for each row, and {"complete": true} or {"note": "..."} at the end.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.cases import CASES, Case, load, tiny_cases
from benchmarks.gpu.device import card, describe_versions, driver, load_average, memory_in_use
from benchmarks.gpu.engines import BASELINE, ENGINES, Arrays, Runner, Subject, out_of_memory
from benchmarks.gpu.measure import MatrixRate, Times, ratios, take_turns
from benchmarks.gpu.results import MEASURED, Row
from tercet.server.engines.examples import ROWS, make_examples
from tercet.server.engines.gate import measure_distances, refusal
from tercet_export.export import WITH_ATTENTION, quiet, write_graph
from tercet_export.registry import Loaded
from tercet_export.roles import ROLES

__all__ = ["Settings", "main", "make_inputs", "measure", "open_subject", "rows_of"]

TRITON_TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}
NO_MEMORY = "no memory"


@dataclass(frozen=True)
class Settings:
    """How to measure.

    `device` is `cuda` or `cpu`; each of the `engines` takes `rounds` turns of `seconds` with each of
    `batches`; `deadline` is the time (`time.time()`) after which no other batch is begun; exported graphs
    are kept in `graphs`. `tiny`: networks that take milliseconds instead of those of full size.
    """

    device: str
    engines: tuple[str, ...]
    batches: tuple[int, ...]
    rounds: int
    seconds: float
    deadline: float
    graphs: str
    tiny: bool = False


def main() -> None:
    """Measure the network that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("settings", type=json.loads)
    arguments = parser.parse_args()
    settings = Settings(**arguments.settings)
    for line in measure(arguments.network, settings):
        print(json.dumps(line), flush=True)


def measure(name: str, settings: Settings) -> Iterator[dict[str, Any]]:
    """The rows of a network, then whether that was all; see the module."""
    subject, case = open_subject(name, settings)
    loaded = subject.loaded
    examples = make_inputs(case, loaded)
    expected = reference(subject, examples)
    about = Row(
        network=name,
        batch=0,
        engine="",
        status=MEASURED,
        card=card(settings.device),
        driver=driver(settings.device),
        versions=describe_versions(),
    )
    chosen = [engine for engine in settings.engines if case.role in ENGINES[engine].roles]
    missing = {engine: ENGINES[engine].missing(settings.device) for engine in chosen}
    for engine, what in missing.items():
        if what is not None:
            yield {"row": asdict(replace(about, engine=engine, status=f"not run: {what}"))}
    opened = Opened(subject, [engine for engine in chosen if missing[engine] is None])
    matrix = MatrixRate(settings.device)
    for batch in settings.batches:
        if time.time() > settings.deadline:
            yield {"note": f"the time was up before batch {batch}"}
            return
        inputs, wanted = rows_of(examples, batch), rows_of(expected, batch)
        gflop = count_gflop(subject, rows_of(examples, min(batch, sum(ROWS[case.role]))))
        this = replace(about, batch=batch, gflop=gflop)
        for row in one_batch(this, opened, inputs, wanted, matrix, settings):
            yield {"row": asdict(row)}
    yield {"complete": True}


def open_subject(name: str, settings: Settings) -> tuple[Subject, Case]:
    """A network with its exported graphs, ready on the device."""
    torch.backends.cudnn.benchmark = True  # PyTorch chooses its convolutions by trying them, as users have it
    with tempfile.TemporaryDirectory() as folder:
        case = (tiny_cases(Path(folder)) if settings.tiny else CASES)[name]
        loaded = load(case, Path(folder))
    graphs = export(loaded, case, Path(settings.graphs), name.replace(" ", "-"))
    loaded.graph.to(settings.device)
    return Subject(case.role, loaded, *graphs, settings.device), case


def export(loaded: Loaded, case: Case, folder: Path, name: str) -> tuple[Path, Path]:
    """Write the fp16 graph and that with unfused attention, unless they are there; the gate comes later."""
    files = folder / f"{name}.fp16.onnx", folder / f"{name}.unfused.fp16.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    for file, fused in zip(files, (None, False), strict=True):
        if file.exists() or (fused is False and case.role not in WITH_ATTENTION):
            continue
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary) / file.name
            write_graph(loaded, ROLES[case.role], made, case.network, half=True, fused=fused)
            for part in sorted(made.parent.iterdir(), key=lambda path: path == made):
                part.replace(folder / part.name)
    return files


def make_inputs(case: Case, loaded: Loaded) -> dict[str, np.ndarray]:
    """As many rows as the gate compares, none like another."""
    described = {
        tensor.name: (TRITON_TYPES[tensor.dtype], list(tensor.shape({**loaded.sizes, "B": -1})))
        for tensor in ROLES[case.role].inputs
    }
    manifest = {"roles": {case.role: dict(loaded.details or {})}}
    return make_examples(case.role, described, manifest)


def reference(subject: Subject, examples: Arrays) -> dict[str, np.ndarray]:
    """What the network gives in fp32 on the device, row by row, for all examples."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # fp32 as everywhere else
    try:
        parts = [
            in_fp32(subject, {name: array[row : row + 1] for name, array in examples.items()})
            for row in range(sum(ROWS[subject.role]))
        ]
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    return {
        tensor.name: torch.cat(values).cpu().numpy()
        for tensor, values in zip(subject.tensors.outputs, zip(*parts, strict=True), strict=True)
    }


def in_fp32(subject: Subject, inputs: Arrays) -> tuple[torch.Tensor, ...]:
    """The outputs of PyTorch's network."""
    tensors = (torch.from_numpy(inputs[tensor.name]).to(subject.device) for tensor in subject.tensors.inputs)
    with torch.inference_mode(), quiet():
        return subject.loaded.graph(*tensors)


def count_gflop(subject: Subject, inputs: Arrays) -> float:
    """The work of one row of such a batch: texts are as long as the longest of theirs."""
    with FlopCounterMode(display=False) as counter:
        in_fp32(subject, inputs)
    return counter.get_total_flops() / 1e9 / len(next(iter(inputs.values())))


def rows_of(arrays: Arrays, batch: int) -> dict[str, np.ndarray]:
    """`batch` rows of each array, over again where there are fewer."""
    return {name: array[np.arange(batch) % len(array)] for name, array in arrays.items()}


class Opened:
    """The engines that take part, opened when they are first used; those that failed are out."""

    def __init__(self, subject: Subject, names: Sequence[str]) -> None:
        self.subject = subject
        self.names = list(names)
        self._runners: dict[str, Runner] = {}

    def prepare(self, name: str, inputs: Arrays) -> Runner:
        """The engine with this batch on the device, ready to be timed."""
        if name not in self._runners:
            self._runners[name] = ENGINES[name].open(self.subject)
        runner = self._runners[name]
        runner.prepare(inputs)
        return runner

    def leave_out(self, name: str) -> None:
        """Forget an engine that failed: larger batches would fail, too. Its memory is free."""
        self.names.remove(name)
        self._runners.pop(name, None)
        if self.subject.device == "cuda":
            torch.cuda.empty_cache()


def one_batch(
    about: Row, opened: Opened, inputs: Arrays, wanted: Arrays, matrix: MatrixRate, settings: Settings
) -> Iterator[Row]:
    """A row for each engine that still takes part and runs this batch."""
    runners: dict[str, Runner] = {}
    for engine in list(opened.names):
        batches = ENGINES[engine].batches
        if batches is not None and about.batch not in batches:
            continue
        try:
            runners[engine] = opened.prepare(engine, inputs)
        except Exception as error:  # whatever an engine runs into: the others go on
            opened.leave_out(engine)
            yield replace(about, engine=engine, status=explain(error))
    times, rates = take_turns(runners, matrix, settings.rounds, settings.seconds)
    preferred = (BASELINE[opened.subject.role], "torch")
    baseline = next((engine for engine in preferred if engine in runners), "")
    beside = times[baseline].rates(about.batch) if baseline else {}
    about = replace(
        about,
        beside=baseline,
        rounds=settings.rounds,
        matrix_tflops=median(rates.values()),
        memory_mb=memory_in_use(settings.device),
        load_average=load_average(),
    )
    for engine, runner in runners.items():
        if (failure := times[engine].failure) is not None:
            opened.leave_out(engine)
            yield replace(about, engine=engine, status=explain(failure))
            continue
        yield gated(timed_row(replace(about, engine=engine), times[engine], beside, rates), runner, wanted)


def timed_row(about: Row, times: Times, beside: Mapping[int, float], matrix: Mapping[int, float]) -> Row:
    """The row with its numbers."""
    rates = times.rates(about.batch)
    latency, slowest, runs = times.latency()
    ratio, lowest, highest = ratios(rates, beside)
    per_second = median(rates.values())
    work = {number: rate * about.gflop / 1e3 for number, rate in rates.items()}  # TFLOP/s
    return replace(
        about,
        per_second=per_second,
        latency_ms=latency,
        p99_ms=slowest,
        runs=runs,
        ratio=ratio,
        lowest=lowest,
        highest=highest,
        tflops=per_second * about.gflop / 1e3,
        share=ratios(work, matrix)[0],
    )


def gated(row: Row, runner: Runner, wanted: Arrays) -> Row:
    """The row with how far the outputs of the last run are from fp32, whether that is accepted, and whether
    all of it ran on the card."""
    found = runner.outputs()
    expected = {name: wanted[name] for name in found}
    distances = measure_distances(expected, found)
    return replace(
        row,
        distance=max(distances.values()),
        compared=len(next(iter(found.values()))),
        verdict=refusal(expected, distances) or "passes",
        on_processor=runner.on_processor(),
    )


def explain(error: BaseException) -> str:
    """Why an engine has no numbers, in one line."""
    if out_of_memory(error):
        return NO_MEMORY
    text = " ".join(str(error).split()) or type(error).__name__
    return f"fails: {text[:300]}"


if __name__ == "__main__":
    main()
