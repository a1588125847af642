"""What a repeated reference costs: the same pictures with other wishes, once a client remembers them.

    python -m benchmarks.repeats docs/repeats.csv [--rounds 5]

Full-size `small` lineup. In each round a new client asks pictures for the first time and then again with
another modification: the second time the reference is neither sent nor captioned, and what is left is the
text. Beside it the same with `remember=0`.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.pages import full_size_repository, keep, markdown, measuring_parser, spread
from tercet.bench.inputs import make_pictures, make_texts
from tercet.client import Client
from tercet.server import EmbeddedServer

PICTURES = 3


@dataclass(frozen=True)
class Repeated:
    """One round, in milliseconds a query: medians of the pictures."""

    number: int
    first_ms: float
    again_ms: float
    again_not_remembered_ms: float
    ratio: float
    load: float


def main() -> None:
    """Measure and write."""
    parser = measuring_parser(__doc__)
    arguments = parser.parse_args()
    rows = run(arguments.repository or full_size_repository(), arguments.rounds)
    keep(arguments.output, "repeats", rows, table(rows))


def run(repository: Path, rounds: int) -> list[Repeated]:
    """Every round."""
    files, texts = make_pictures(count=PICTURES), make_texts()
    rows = []
    with EmbeddedServer(repository) as server:
        with Client(server.grpc_address, remember=0) as client:
            ask(client, files, texts[0])
        for number in range(1, rounds + 1):
            with Client(server.grpc_address) as client, Client(server.grpc_address, remember=0) as other:
                first, again = ask(client, files, texts[number]), ask(client, files, texts[-number])
                plain = ask(other, files, texts[-number])
            rows.append(Repeated(number, first, again, plain, plain / again, os.getloadavg()[0]))
            print(rows[-1], flush=True)
    return rows


def ask(client: Client, files: Sequence[bytes], text: str) -> float:
    """Milliseconds of a query, the median of the pictures."""
    times = []
    for file in files:
        started = time.perf_counter()
        client.compose_queries(file, text)
        times.append(time.perf_counter() - started)
    return median(times) * 1e3


def table(rows: Sequence[Repeated]) -> list[str]:
    """As Markdown."""
    ratio = spread(row.ratio for row in rows)
    return markdown(
        ("query, ms", "median of rounds"),
        [
            ("reference asked for the first time", f"{median(row.first_ms for row in rows):.0f}"),
            ("again, remembered", f"{median(row.again_ms for row in rows):.1f}"),
            ("again, `remember=0`", f"{median(row.again_not_remembered_ms for row in rows):.0f}"),
            ("times as fast", f"{ratio['median']:.0f} ({ratio['least']:.0f} to {ratio['largest']:.0f})"),
        ],
    )


if __name__ == "__main__":
    main()
