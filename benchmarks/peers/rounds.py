"""What is measured, as plain values, and how rounds become ratios.

The systems take turns within a round, so that whatever else the machine does befalls all of them alike; a
ratio is of two that were measured in the same round, and what is reported is the median of the rounds'
ratios with the least and the largest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["OURS", "Comparison", "Round", "compare", "merge"]

OURS = "tercet"


@dataclass(frozen=True)
class Round:
    """One system under one load in one round.

    `target` is what was asked (embed_image, embed_text, query), `clients` how many asked at once,
    `throughput` answers a second; latencies are milliseconds; `cores` is processor time a second of the
    server, `memory` its megabytes at the end (pages that several processes share counted once for each);
    `agreement` the least cosine of its embeddings with Tercet's, `load_average` the machine's, `others` the
    processor time a second of processes that are neither the server nor the client.
    """

    network: str
    target: str
    clients: int
    system: str
    number: int
    throughput: float
    p50_ms: float
    p99_ms: float
    answers: int
    failures: int
    cores: float
    memory_mb: int
    agreement: float
    load_average: float
    others: float


@dataclass(frozen=True)
class Comparison:
    """One system over all rounds; `ratio` is Tercet's throughput by its, of each round's the median."""

    network: str
    target: str
    clients: int
    system: str
    rounds: int
    throughput: float
    p50_ms: float
    p99_ms: float
    cores: float
    memory_mb: int
    agreement: float
    failures: int
    others: float
    ratio: float
    least: float
    largest: float


def compare(rounds: Iterable[Round]) -> list[Comparison]:
    """Each system beside Tercet, the best first; one without a round in common with Tercet is left out."""
    groups: dict[tuple[str, str, int], dict[str, dict[int, Round]]] = {}
    for row in rounds:
        place = groups.setdefault((row.network, row.target, row.clients), {})
        place.setdefault(row.system, {})[row.number] = row
    found = []
    for (network, target, clients), systems in groups.items():
        ours = systems.get(OURS, {})
        made = []
        for system, rows in systems.items():
            shared = sorted(ours.keys() & rows.keys())
            ratios = [
                ours[number].throughput / rows[number].throughput
                for number in shared
                if rows[number].throughput
            ]
            if not ratios:
                continue
            of = [rows[number] for number in shared]
            made.append(
                Comparison(
                    network,
                    target,
                    clients,
                    system,
                    len(ratios),
                    median(row.throughput for row in of),
                    median(row.p50_ms for row in of),
                    median(row.p99_ms for row in of),
                    median(row.cores for row in of),
                    max(row.memory_mb for row in of),
                    min(row.agreement for row in of),
                    sum(row.failures for row in of),
                    max(row.others for row in of),
                    median(ratios),
                    min(ratios),
                    max(ratios),
                )
            )
        found += sorted(made, key=lambda row: (row.system != OURS, -row.throughput))
    return found


def merge(kept: Iterable[Round], measured: Sequence[Round]) -> list[Round]:
    """`measured` in the place of what was kept of the same network and target, whole: no mixed runs."""
    anew = {(row.network, row.target) for row in measured}
    rows = [row for row in kept if (row.network, row.target) not in anew] + list(measured)
    return sorted(rows, key=lambda row: (row.network, row.target, row.clients))
