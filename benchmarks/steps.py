"""What each step of a composed query costs besides its computation: copies, hops between processes, Python.

    python -m benchmarks.steps docs/steps.csv [--rounds 5]

One query after another on the full-size `small` lineup, the background removed. In turns with the server the
same work is done in this process without one: each network by the engine that the server runs it with, on a
picture or text of such a query, the decoder's own function, the search. What the server takes longer is
overhead; tokenising and detokenising count as overhead altogether. The table of docs/performance.md is
written anew.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.ceilings import (
    ENGINES,
    NETWORKS,
    Decoder,
    geometries,
    pictures,
    python_model,
    repeated,
    tensors,
)
from benchmarks.pages import full_size_repository, keep, markdown, measuring_parser
from tercet.bench.inputs import make_texts
from tercet.bench.load import ClosedLoop
from tercet.bench.server import Server, stages
from tercet.bench.targets import ASKED, QUERY, Inputs, QueryTarget
from tercet.client import Client
from tercet.server import EmbeddedServer
from tercet.server.engines.choice import ONNXRUNTIME
from tercet.server.runtime import processors

TIMEOUT, CALLS, QUERIES = 60.0, 5, 8
FOREGROUND = ("scene", "view", "view_box")
OUTSIDE = "between and around the steps"


@dataclass(frozen=True)
class Step:
    """One step of one query, in milliseconds: medians of the rounds.

    `queue`, `input` and `output` are Triton's own counts; `server` what the step takes in the server, these
    included; `computation` what its work takes without one; `overhead` the difference.
    """

    step: str
    server: float
    queue: float
    input: float
    output: float
    computation: float
    overhead: float
    share_of_query: float


def main() -> None:
    """Measure, write the rows and the table, and say what the sum is."""
    parser = measuring_parser(__doc__)
    arguments = parser.parse_args()
    rows = measure(arguments.repository or full_size_repository(), arguments.rounds)
    keep(arguments.output, "steps", rows, table(rows))


def measure(repository: Path, rounds: int) -> list[Step]:
    """The steps of a query, in its order, what is around them, and the whole."""
    with ExitStack() as running:
        server = running.enter_context(EmbeddedServer(repository))
        engines = {name: trial.engine for name, trial in server.engines.items()}
        inputs = Inputs(pictures(), make_texts())
        target = QueryTarget(server.grpc_address, inputs, None, TIMEOUT, 1, "remove")
        running.callback(target.close)
        counting = Server(server.grpc_address)
        running.callback(counting.close)
        with Client(server.grpc_address, remember=0) as client:
            fused = client.compose_queries(inputs.pictures[0], inputs.texts[0], background="remove")
            text = fused.composition.text.encode()
        alone = computations(repository, engines, text, target)
        found = [one_round(target, counting, alone) for _ in range(rounds)]
    return summarised(found)


def computations(
    repository: Path, engines: Mapping[str, str], text: bytes, target: QueryTarget
) -> dict[str, Callable[[], Any]]:
    """For each step that computes, its work on one picture or on `text`, by what the server has for it."""
    manifest = json.loads((repository / "decode_image" / "1" / "lineup.json").read_text())
    tokens = python_model(repository, "tokenize_text", "tokens")
    vocabulary = tokens.load_vocabulary(repository / "tokenize_text" / "1")
    have = tensors(repository, manifest) | tokens.tokenize([text], vocabulary, None)
    work: dict[str, Callable[[], Any]] = {
        "decode_image": Decoder(
            repository, manifest, tuple(name for name in FOREGROUND if name in known(repository, manifest))
        )
    }
    for name, wanted in NETWORKS.items():
        file = repository / name / "1" / "model.onnx"
        if name in ("background_remover", "captioner", "clip_text") and file.exists():
            engine = ENGINES[engines.get(name, ONNXRUNTIME)]
            run = engine.open(file, processors(), 1)
            work[name] = partial(run, {tensor: repeated(have[tensor], 1) for tensor in wanted})
    vector = np.random.default_rng(0).standard_normal((1, target.index.dimension), dtype=np.float32)
    work["search"] = partial(target.index.search, vector / np.linalg.norm(vector), ASKED)
    return work


def known(repository: Path, manifest: Mapping[str, Any]) -> set[str]:
    """What decode_image can be asked for."""
    return {"view_box", *geometries(repository, manifest)}


def one_round(
    target: QueryTarget, server: Server, alone: Mapping[str, Callable[[], Any]]
) -> dict[str, dict[str, float]]:
    """Queries one after another, then the same work without a server: milliseconds by step and by what."""
    loop = ClosedLoop(target, 1)
    loop.start()
    try:
        wait_for(loop, 2)
        loop.take()
        target.searching()
        before, started = server.counters(), time.perf_counter()
        wait_for(loop, QUERIES)
        answers, _, _ = loop.take()
        took = (time.perf_counter() - started) / len(answers)
        spent = stages(
            [name for name in before if not server.steps(name)], True, before, server.counters(), 1
        )
        searches, seconds = target.searching()
    finally:
        loop.stop(TIMEOUT)
    found = {
        stage.model: {
            "server": stage.queue + stage.input + stage.infer + stage.output,
            "queue": stage.queue,
            "input": stage.input,
            "output": stage.output,
        }
        for stage in spent
        if stage.model != "describe_lineup"
    }
    found["search"] = {"server": seconds / searches * 1e3}
    for step, call in alone.items():
        call()
        times = []
        for _ in range(CALLS):
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
        found[step]["computation"] = median(times) * 1e3
    inside = sum(step["server"] for step in found.values())
    found[OUTSIDE] = {"server": took * 1e3 - inside}
    found[QUERY] = {
        "server": took * 1e3,
        "computation": sum(step.get("computation", 0.0) for step in found.values()),
    }
    return found


def wait_for(loop: ClosedLoop, answers: int) -> None:
    """Until so many have come."""
    while loop.waiting() < answers:
        time.sleep(0.002)


def summarised(rounds: list[dict[str, dict[str, float]]]) -> list[Step]:
    """Medians of the rounds; the overhead is the median of each round's difference."""
    order = [name for name in rounds[0] if name not in (OUTSIDE, QUERY)]
    order.sort(key=lambda name: (*STEPS, name).index(name))
    whole = median(found[QUERY]["server"] for found in rounds)
    rows = []
    for name in [*order, OUTSIDE, QUERY]:

        def of(what: str, name: str = name) -> float:
            return median(found[name].get(what, 0.0) for found in rounds)

        over = median(found[name]["server"] - found[name].get("computation", 0.0) for found in rounds)
        rows.append(
            Step(
                name,
                of("server"),
                of("queue"),
                of("input"),
                of("output"),
                of("computation"),
                over,
                over / whole,
            )
        )
    return rows


STEPS = (
    "decode_image",
    "background_remover",
    "captioner",
    "detokenize_caption",
    "tokenize_text",
    "clip_text",
    "search",
)


def table(rows: list[Step]) -> list[str]:
    """As Markdown."""
    header = (
        "step, ms",
        "in the server",
        "of it queue",
        "input",
        "output",
        "its work alone",
        "overhead",
        "of a query",
    )
    return markdown(
        header,
        [
            (
                row.step,
                *(
                    f"{value:.2f}"
                    for value in (
                        row.server,
                        row.queue,
                        row.input,
                        row.output,
                        row.computation,
                        row.overhead,
                    )
                ),
                f"{row.share_of_query:.1%}",
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
