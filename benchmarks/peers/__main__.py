"""Tercet beside what people would use instead: the same weights, files, clients and machine.

    python -m benchmarks.peers [--quick] [--peers infinity litserve ...] [--targets embed_image ...]

Installs each peer at pinned versions into an environment of its own, starts all servers, lets them take
turns for so many rounds, and writes peers.csv, peers.json, peers.png and peers.md into `docs/`. Targets that
are not named keep their rows. Run it from the checkout, on a machine with 12 GB of disk and 12 GB of memory
free; about 25 minutes once everything is installed and exported, --quick four.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.http import HttpTarget, post
from benchmarks.peers.measuring import Load, measure
from benchmarks.peers.ours import ComposedTarget, embeddings, ensemble
from benchmarks.peers.report import write_report
from benchmarks.peers.rounds import OURS, Round, merge
from benchmarks.peers.running import (
    NotStarted,
    Running,
    awake,
    end_on_termination,
    start_peer,
    start_tercet,
)
from benchmarks.peers.systems import PEERS
from benchmarks.rows import read_rows, write_rows
from tercet.bench.inputs import make_pictures, make_texts
from tercet.bench.processes import describe_machine
from tercet.bench.targets import Inputs
from tercet.bench.values import Target
from tercet.client import Client
from tercet.errors import TercetError

ARCHITECTURES = {"ViT-B/32": "ViT-B-32-quickgelu", "ViT-L/14": "ViT-L-14-quickgelu"}
EMBEDDING = {"embed_image": "image", "embed_text": "text"}
QUERY, QUERY_CLIENTS = "query", 8
CLIENTS, COMPARED, TIMEOUT = 16, 8, 240.0
DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class System:
    """One that takes turns: its name, how load is put on it, its server, and its agreement with Tercet.

    It takes part in the first `rounds`, of which one that takes half a minute for a turn has few.
    """

    name: str
    target: Callable[[], Target]
    server: Running | None
    agreement: float
    rounds: int = sys.maxsize


def main() -> None:
    """Measure what is named, keep the rest, and write the page."""
    arguments = read_arguments()
    end_on_termination()
    if arguments.cores:
        os.sched_setaffinity(0, arguments.cores)  # what is started inherits it: servers and clients alike
    if not arguments.page_only:
        not_run, about = measure_all(arguments)
        file = arguments.output / "peers.json"
        earlier = json.loads(file.read_text())[OURS] if file.exists() else {}
        facts = {"machine": describe_machine(), "not_run": not_run, OURS: {**earlier, **about}}
    else:
        facts = json.loads((arguments.output / "peers.json").read_text())
    for path in write_report(arguments.output, facts):
        print(path)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), metavar="PEER")
    targets = [*EMBEDDING, QUERY]
    parser.add_argument("--targets", nargs="*", default=targets, choices=targets, metavar="TARGET")
    parser.add_argument(
        "--networks", nargs="*", default=["ViT-B/32"], choices=list(ARCHITECTURES), metavar="NETWORK"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn")
    parser.add_argument("--quick", action="store_true", help="two rounds of 4 s: to see that it works")
    parser.add_argument("--cores", nargs="*", type=int, help="processors for servers and clients")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "tercet" / "peers")
    parser.add_argument("--output", type=Path, default=DOCS)
    parser.add_argument("--page-only", action="store_true", help="write the page anew, measure nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 2, 4.0
    return arguments


def measure_all(arguments: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """Measure, and keep each target once done; which peers did not run and why, Tercet's settings."""
    from benchmarks.peers.weights import prepare

    inputs = Inputs(make_pictures(), make_texts())
    not_run: dict[str, str] = {}
    about: dict[str, str] = {}
    whole = QUERY in arguments.targets
    for network in arguments.networks:
        arch = ARCHITECTURES[network]
        with_query = whole and network == "ViT-B/32"
        weights, repository = prepare(arguments.cache / "weights", arch, with_query)
        with contextlib.ExitStack() as running:
            logs = arguments.cache / "logs"
            tercet = start_tercet(repository, logs)
            running.callback(tercet.end)
            about[network] = described(tercet, logs / "tercet.log")
            targets = [target for target in arguments.targets if target in EMBEDDING]
            servers = {}
            for name in arguments.peers if targets else ():
                try:
                    with awake(None, [tercet, *servers.values()]):
                        servers[name] = start_peer(name, arguments.cache, weights, logs)
                except (NotStarted, subprocess.CalledProcessError) as error:
                    not_run[name] = " ".join(str(error).split())[-300:]
                    print(f"{name} is left out: {error}", flush=True)
                    continue
                running.callback(servers[name].end)
            for target in targets:
                systems = embedding_systems(target, inputs, tercet, servers, not_run)
                load = Load(CLIENTS, min(3.0, arguments.seconds / 2), arguments.seconds)
                everyone = [tercet, *servers.values()]
                turns = taking_turns(network, target, load, systems, everyone, arguments.rounds)
                keep(arguments.output, list(turns))
            if with_query:
                keep(arguments.output, queries(arguments, inputs, tercet, [*servers.values()]))
    return not_run, about


def keep(folder: Path, rows: list[Round]) -> None:
    """Put the rounds of a target into peers.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "peers.csv"
    write_rows(file, merge(read_rows(Round, file), rows))


def described(tercet: Running, log: Path) -> str:
    """What Tercet serves with: its networks, and the engines that it chose and printed."""
    with Client(address(tercet)) as client:
        roles = client.lineup().roles
    networks = ", ".join(f"{entry.network} {entry.precision}" for entry in roles.values())
    engines = [
        " ".join(line.split()[1:]) for line in log.read_text().splitlines() if line.startswith("engine ")
    ]
    return "; ".join([f"`tercet serve` as it comes: {networks}", *engines])


def address(tercet: Running) -> str:
    """Where it is asked."""
    return f"127.0.0.1:{tercet.port}"


def embedding_systems(
    target: str, inputs: Inputs, tercet: Running, servers: dict[str, Running], not_run: dict[str, str]
) -> list[System]:
    """Tercet and every peer that answers, each with the cosine of its embeddings to Tercet's.

    Why one does not answer is put into `not_run`.
    """
    pictures, texts = inputs.pictures[:COMPARED], inputs.texts[:COMPARED]
    everyone = [tercet, *servers.values()]
    with awake(tercet, everyone):
        expected = embeddings(address(tercet), pictures, texts)[target]
    systems = [System(OURS, partial(ensemble, target, address(tercet), inputs, TIMEOUT), tercet, 1.0)]
    for name, server in servers.items():
        make = getattr(PEERS[name], EMBEDDING[target])
        connection = HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
        with awake(server, everyone), contextlib.closing(connection):
            asked = pictures if target == "embed_image" else texts
            try:
                found = [PEERS[name].embedding(post(connection, make(item))) for item in asked]
            except TercetError as error:
                not_run[name] = f"{target}: {error}"
                print(f"{name} is left out of {target}: {error}", flush=True)
                continue
        cosine = least_cosine(expected, np.array(found))
        posts = [make(item) for item in (inputs.pictures if target == "embed_image" else inputs.texts)]
        load_on = partial(HttpTarget, name, server.port, posts, CLIENTS, TIMEOUT)
        systems.append(System(name, load_on, server, cosine))
        print(f"{name}: cosine with Tercet's {target} at least {cosine:.5f}", flush=True)
    return systems


def least_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of the rows of two arrays."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(1) / lengths).min())


def taking_turns(
    network: str,
    target: str,
    load: Load,
    systems: Sequence[System],
    everyone: Sequence[Running],
    rounds: int,
) -> Iterator[Round]:
    """Round by round, each system once in each; every other round in the opposite order."""
    for number in range(rounds):
        for system in systems[:: -1 if number % 2 else 1]:
            if number >= system.rounds:
                continue
            # A script was run already and keeps no queue: there is nothing to warm up.
            turn = load if system.server else replace(load, warm_up=0.0)
            with awake(system.server, everyone), contextlib.closing(system.target()) as asked:
                measured = measure(asked, turn, system.server, TIMEOUT)
            row = Round(
                network=network,
                target=target,
                clients=load.clients,
                system=system.name,
                number=number,
                agreement=system.agreement,
                **asdict(measured),
            )
            print(
                f"{target}, {load.clients} at once, round {number + 1}: {system.name:18} "
                f"{row.throughput:8.2f}/s  p50 {row.p50_ms:7.0f} ms  others {row.others:.1f}",
                flush=True,
            )
            yield row


def queries(
    arguments: argparse.Namespace, inputs: Inputs, tercet: Running, others: Sequence[Running]
) -> list[Round]:
    """The composed query beside the researcher's script: one client, then eight."""
    from benchmarks.peers.researcher import Researcher, ResearcherTarget

    everyone = [tercet, *others]
    researcher = Researcher(arguments.cache / "weights", len(os.sched_getaffinity(0)))
    with awake(tercet, everyone), contextlib.closing(query_target(tercet, inputs, 1)) as asked:
        ours = np.array([asked.query(number) for number in range(2)])
    with awake(None, everyone):
        cosine = least_cosine(ours, researcher.queries(inputs.pictures[:2], inputs.texts[:2]))
    print(f"researcher: cosine with Tercet's queries at least {cosine:.5f}", flush=True)
    rows: list[Round] = []
    scripts: list[Any] = [("researcher", 1, sys.maxsize), ("researcher batched", QUERY_CLIENTS, 1)]
    # Of eight, each waits for five seconds.
    for clients, longer in ((1, 1.0), (QUERY_CLIENTS, 1.5)):
        systems = [System(OURS, partial(query_target, tercet, inputs, clients), tercet, 1.0)]
        for name, batch, most in scripts:
            if batch <= clients:
                load_on = partial(ResearcherTarget, name, researcher, batch)
                systems.append(System(name, load_on, None, cosine, most))
        load = Load(clients, longer * min(2.0, arguments.seconds), longer * 2 * arguments.seconds)
        rows += taking_turns("small lineup", QUERY, load, systems, everyone, arguments.rounds)
    return rows


def query_target(tercet: Running, inputs: Inputs, clients: int) -> ComposedTarget:
    """Tercet's composed query."""
    return ComposedTarget(QUERY, address(tercet), inputs, clients, TIMEOUT)


if __name__ == "__main__":
    main()
