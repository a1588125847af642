"""Which settings of an ensemble's models pay on this machine: instances, threads, batch sizes, delays.

    python -m benchmarks.tuning docs/tuning.csv [--target embed_image] [--rounds 5]

Full-size CLIP ViT-B/32. Each variant is a copy of the repository, otherwise configured and served by a Triton
of its own; one runs while the others are stopped, in turns. Ratios are to the configuration as it comes, in
the same round. The embedded server's processes compute on one another's processors, so what one model gains
another may lose: only whole ensembles are compared.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from benchmarks.pages import full_size_repository, keep, markdown, measuring_parser, spread
from benchmarks.peers.measuring import Load, measure
from benchmarks.peers.running import Running, awake, end_on_termination, start_tercet
from benchmarks.rows import write_rows
from tercet.bench.inputs import make_pictures, make_texts
from tercet.bench.processes import resident, tree
from tercet.bench.targets import EnsembleTarget, Inputs, requests_for
from tercet.server import EmbeddedServer
from tercet.server.engines.trials import accelerated
from tercet.server.overlay import link_all
from tercet.server.repository import read_configuration
from tercet.server.runtime import processors

# What is asked: the step that prepares, and the network.
TARGETS = {"embed_image": ("decode_image", "clip_image"), "embed_text": ("tokenize_text", "clip_text")}
CLIENTS, SECONDS, WARM_UP, TIMEOUT = (1, 16), 3.0, 1.0, 120.0

Change = Callable[[ModelConfig], None]


def instances(count: int) -> Change:
    """So many copies of a model, each a process."""

    def change(configuration: ModelConfig) -> None:
        configuration.instance_group[0].count = count

    return change


def other_instances(configuration: ModelConfig) -> None:
    """Two in place of one, one in place of several."""
    configuration.instance_group[0].count = 2 if configuration.instance_group[0].count == 1 else 1


def threads(count: int) -> Change:
    """So many threads for one operator."""

    def change(configuration: ModelConfig) -> None:
        configuration.parameters["intra_op_thread_count"].string_value = str(count)

    return change


def delay(milliseconds: float) -> Change:
    """A batch waits so long for more."""

    def change(configuration: ModelConfig) -> None:
        configuration.dynamic_batching.max_queue_delay_microseconds = int(milliseconds * 1000)

    return change


AS_IT_COMES = "as it comes"
FIRST, NETWORK = 0, 1
VARIANTS: dict[str, dict[int, Sequence[Change]]] = {
    AS_IT_COMES: {},
    "network: 2 instances that share the threads": {NETWORK: (instances(2),)},
    "network: 2 instances of all threads": {NETWORK: (instances(2), threads(processors()))},
    "network: a batch waits 5 ms": {NETWORK: (delay(5),)},
    "first step: another number of instances": {FIRST: (other_instances,)},
    "first step: a batch waits 2 ms": {FIRST: (delay(2),)},
}


@dataclass(frozen=True)
class Tuned:
    """One variant at one load; the ratio is its throughput by that as it comes, in the same round."""

    target: str
    variant: str
    clients: int
    per_second: float
    p50_ms: float
    p99_ms: float
    ratio: float
    least: float
    largest: float
    memory_mb: int


def main() -> None:
    """Measure and write."""
    parser = measuring_parser(__doc__)
    parser.add_argument("--target", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    arguments = parser.parse_args()
    end_on_termination()
    repository = arguments.repository or full_size_repository()
    rows = []
    for target in arguments.target:
        rows += run(repository, target, arguments.rounds)
        write_rows(arguments.output, rows)
    keep(arguments.output, "tuning", rows, table(rows))


def vary(
    folder: Path, repository: Path, asked: str, changes: dict[int, Sequence[Change]], engine: str
) -> Path:
    """A repository with what an ensemble needs, its network on `engine`, and these changes."""
    folder.mkdir()
    for model in (asked, "describe_lineup"):
        (folder / model).symlink_to(repository.resolve() / model)
    for place, model in enumerate(TARGETS[asked]):
        link_all(folder / model, repository.resolve() / model, leave_out=("config.pbtxt", "configs"))
        configuration = read_configuration(repository / model)
        if place == NETWORK:
            configuration = accelerated(configuration, engine)
        for change in changes.get(place, ()):
            change(configuration)
        (folder / model / "config.pbtxt").write_text(text_format.MessageToString(configuration))
    return folder


def run(repository: Path, asked: str, rounds: int) -> list[Tuned]:
    """Every variant at every load, in turns."""
    network = TARGETS[asked][NETWORK]
    with EmbeddedServer(repository, models=[network]) as server:
        engine = server.engines[network].engine
    requests = requests_for(asked, Inputs(make_pictures(), make_texts()), TIMEOUT)
    found: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    memory: dict[str, int] = {}
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="tercet-tuning-")))
        servers: dict[str, Running] = {}
        for number, (name, changes) in enumerate(VARIANTS.items()):
            varied = vary(folder / str(number), repository, asked, changes, engine)
            with awake(None, list(servers.values())):
                servers[name] = start_tercet(varied, folder / f"{number}-log")
            running.callback(servers[name].end)
        for number in range(rounds):
            for name, chosen in list(servers.items())[:: -1 if number % 2 else 1]:
                with awake(chosen, list(servers.values())):
                    for clients in CLIENTS:
                        address = f"127.0.0.1:{chosen.port}"
                        with closing(EnsembleTarget(asked, address, requests, TIMEOUT)) as target:
                            seen = measure(target, Load(clients, WARM_UP, SECONDS), chosen, TIMEOUT)
                        row = (seen.throughput, seen.p50_ms, seen.p99_ms)
                        found.setdefault((name, clients), []).append(row)
                    memory[name] = round(resident(tree(chosen.process.pid)) / 1e6)
                print(f"round {number + 1}: {name}: {found[name, CLIENTS[-1]][-1][0]:.1f}/s", flush=True)
    return [summarised(asked, key, found, memory[key[0]]) for key in found]


def summarised(
    asked: str,
    key: tuple[str, int],
    found: dict[tuple[str, int], list[tuple[float, float, float]]],
    memory: int,
) -> Tuned:
    """Medians of the rounds."""
    name, clients = key
    rate, p50, p99 = (median(column) for column in zip(*found[key], strict=True))
    plain = found[AS_IT_COMES, clients]
    ratio = spread(mine[0] / theirs[0] for mine, theirs in zip(found[key], plain, strict=True))
    return Tuned(
        asked, name, clients, rate, p50, p99, ratio["median"], ratio["least"], ratio["largest"], memory
    )


def table(rows: Sequence[Tuned]) -> list[str]:
    """As Markdown."""
    header = ("ensemble, change", "clients", "a second", "ratio", "p50, ms", "p99, ms", "memory, MB")
    return markdown(
        header,
        [
            (
                f"{row.target}: {row.variant}",
                str(row.clients),
                f"{row.per_second:.1f}",
                f"{row.ratio:.2f} ({row.least:.2f} to {row.largest:.2f})",
                f"{row.p50_ms:.0f}",
                f"{row.p99_ms:.0f}",
                str(row.memory_mb),
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
