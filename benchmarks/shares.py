"""The server beside the same work in one process without a server: what serving leaves of it, in turns.

    python -m benchmarks.shares docs/shares.csv [--rounds 5] [--clients 16]

For each of `embed_image` and `embed_text` two take turns: so many clients on the server, and in this process
as many threads as there are processors, each of which decodes a batch of the same JPEG files (for texts: has
it tokenised already) and computes it with the engine that the server runs the network with, on a thread of
its own. Neither waits for the other's threads, nothing is copied or sent, and batches are always full: no
server can do better. What the processes of the server and its clients use of the processors meanwhile tells
what becomes of the rest. The table of docs/performance.md is written anew.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.ceilings import ENGINES, NETWORKS, Decoder, calls_per_second, repeated, tensors
from benchmarks.pages import full_size_repository, keep, markdown, measuring_parser, spread
from benchmarks.peers.measuring import Load, measure
from tercet.bench import processes
from tercet.bench.inputs import make_pictures, make_texts
from tercet.bench.targets import EnsembleTarget, Inputs, requests_for
from tercet.server import EmbeddedServer
from tercet.server.engines.choice import ONNXRUNTIME
from tercet.server.runtime import processors

# Each ensemble's network and first step, and the batch at which its engine does most (docs/ceilings.json).
ENSEMBLES = {
    "embed_image": ("clip_image", "decode_image", 16),
    "embed_text": ("clip_text", "tokenize_text", 32),
}
STUB = "triton_python_backend_stub"
SECONDS, TIMEOUT = 4.0, 120.0


@dataclass(frozen=True)
class Share:
    """One round: answers a second of the server, rows a second without one, and their ratio.

    The others are milliseconds of processor time for an answer: of the processes of the network, of the first
    step, of all others of the server, of the clients; and of a row without a server.
    """

    target: str
    number: int
    clients: int
    server_per_s: float
    alone_per_s: float
    share: float
    network_ms: float
    first_step_ms: float
    others_ms: float
    clients_ms: float
    alone_ms: float


def main() -> None:
    """Measure and write."""
    parser = measuring_parser(__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each turn")
    arguments = parser.parse_args()
    repository = arguments.repository or full_size_repository()
    rows = list(run(repository, arguments.rounds, arguments.clients, arguments.seconds))
    keep(arguments.output, "shares", rows, table(rows))


def run(repository: Path, rounds: int, clients: int, seconds: float) -> Iterator[Share]:
    """Every round of both."""
    inputs = Inputs(make_pictures(), make_texts())
    with ExitStack() as running:
        server = running.enter_context(EmbeddedServer(repository, models=list(ENSEMBLES)))
        engines = {name: trial.engine for name, trial in server.engines.items()}
        for name, (network, first_step, batch) in ENSEMBLES.items():
            alone = work(repository, network, engines.get(network, ONNXRUNTIME), batch)
            requests = requests_for(name, inputs, TIMEOUT)
            target = EnsembleTarget(name, server.grpc_address, requests, TIMEOUT)
            running.callback(target.close)
            for number in range(rounds):
                before, own = used(), time.process_time()
                started = time.perf_counter()
                served = measure(target, Load(clients, seconds / 4, seconds), None, TIMEOUT).throughput
                each = 1e3 / (served * (time.perf_counter() - started))
                spent = {model: (after - before[model]) * each for model, after in used().items()}
                own = (time.process_time() - own) * each
                possible = batch * calls_per_second(alone, processors(), seconds)
                row = Share(
                    name,
                    number,
                    clients,
                    served,
                    possible,
                    served / possible,
                    spent[network],
                    spent[first_step],
                    sum(spent.values()) - spent[network] - spent[first_step],
                    own,
                    processors() * 1e3 / possible,
                )
                print(row, flush=True)
                yield row


def used() -> dict[str, float]:
    """Processor seconds of the server's processes, by model; of Triton itself and its guard as ``."""
    found: dict[str, float] = {}
    for process in processes.tree(os.getpid()):
        if process == os.getpid():
            continue
        command = Path(f"/proc/{process}/cmdline").read_text().split("\0")
        model = command[1].rpartition("/repository/")[2].split("/")[0] if STUB in command[0] else ""
        found[model] = found.get(model, 0.0) + processes.cpu_seconds([process])
    return found


def work(repository: Path, network: str, engine: str, batch: int) -> Callable[[], None]:
    """One thread's batch, from JPEG files or token ids to embeddings."""
    manifest = json.loads((repository / "decode_image" / "1" / "lineup.json").read_text())
    run = ENGINES[engine].open(repository / network / "1" / "model.onnx", 1, processors())
    have = tensors(repository, manifest)
    feed = {name: repeated(have[name], batch) for name in NETWORKS[network]}
    decode = Decoder(repository, manifest, ("pixels",)) if network == "clip_image" else None

    def once() -> None:
        if decode is not None:
            for _ in range(batch):
                decode()
        run(feed)

    return once


def table(rows: list[Share]) -> list[str]:
    """As Markdown: a line for each ensemble, medians of the rounds."""
    lines = []
    for target in dict.fromkeys(row.target for row in rows):
        of = [row for row in rows if row.target == target]
        share = spread(row.share for row in of)
        lines.append(
            (
                f"{target}, {of[0].clients} clients",
                f"{median(row.server_per_s for row in of):.1f}",
                f"{median(row.alone_per_s for row in of):.1f}",
                f"{share['median']:.2f} ({share['least']:.2f} to {share['largest']:.2f})",
                *(
                    f"{median(getattr(row, name) for row in of):.2f}"
                    for name in ("network_ms", "first_step_ms", "others_ms", "clients_ms", "alone_ms")
                ),
            )
        )
    spent = ("network, ms", "first step", "Triton", "clients", "all of it without a server")
    return markdown(("", "server, a second", "one process without a server", "share", *spent), lines)


if __name__ == "__main__":
    main()
