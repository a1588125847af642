"""Indexing beside what the server can do: pictures a second of `tercet index` by `embed_image`'s best.

    python -m benchmarks.indexing docs/indexing.csv [--pictures 10000] [--rounds 5]

Full-size CLIP ViT-B/32, random weights, JPEG files of 640x480. In each round the index grows by equally many,
and before and after it `embed_image` is asked by 32 and by 64 clients at once; the better of the two means is
what the round is compared with (not the best of all: answers come in batches, and what a short load finds
scatters by as many as one has). Memory is this process's, resident, at each round's end: it must not grow
with the gallery.
"""

import itertools
import os
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pages import full_size_repository, keep, markdown, measuring_parser, spread
from benchmarks.peers.measuring import Load, measure
from tercet.bench.inputs import make_pictures, make_texts
from tercet.bench.processes import resident
from tercet.bench.targets import EnsembleTarget, Inputs, requests_for
from tercet.cli.index import IN_FLIGHT
from tercet.client import Client
from tercet.index import build_index
from tercet.index.sources import list_pictures
from tercet.server import EmbeddedServer

CLIENTS, SECONDS, TIMEOUT = (32, 64), 5.0, 120.0
MADE = 64


@dataclass(frozen=True)
class Indexed:
    """One round: pictures a second, of building and of the better closed loop; resident memory in MB."""

    number: int
    pictures: int
    indexing_per_s: float
    embed_image_per_s: float
    clients: int
    ratio: float
    resident_mb: float
    load: float


def main() -> None:
    """Measure and write."""
    parser = measuring_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each load")
    arguments = parser.parse_args()
    repository = arguments.repository or full_size_repository()
    rows = run(repository, arguments.pictures, arguments.rounds, arguments.seconds)
    keep(arguments.output, "indexing", rows, table(rows))


def run(repository: Path, pictures: int, rounds: int, seconds: float) -> list[Indexed]:
    """Every round."""
    files = make_pictures(count=MADE)
    inputs = Inputs(files, make_texts())
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="tercet-indexing-") as folder,
        EmbeddedServer(repository) as server,
        Client(server.grpc_address, timeout=TIMEOUT, in_flight=IN_FLIGHT) as client,
    ):
        gallery = Path(folder, "gallery")
        gallery.mkdir()
        numbers = itertools.count()
        before = loads(server.grpc_address, inputs, seconds)
        for number in range(1, rounds + 1):
            for _ in range(pictures // rounds):
                each = next(numbers)
                (gallery / f"{each:06}.jpg").write_bytes(files[each % MADE])
            report = build_index(gallery, Path(folder, "index"), client)
            after = loads(server.grpc_address, inputs, seconds)
            rate, clients = max(((before[clients] + after[clients]) / 2, clients) for clients in CLIENTS)
            row = Indexed(
                number,
                report.pictures,
                report.embedded / report.seconds,
                rate,
                clients,
                report.embedded / report.seconds / rate,
                resident([os.getpid()]) / 1e6,
                os.getloadavg()[0],
            )
            print(row, flush=True)
            rows.append(row)
            before = after
        assert len(list_pictures(gallery).pictures) == rows[-1].pictures
    return rows


def loads(address: str, inputs: Inputs, seconds: float) -> dict[int, float]:
    """The throughput of each closed loop, by its number of clients."""
    found = {}
    for clients in CLIENTS:
        requests = requests_for("embed_image", inputs, TIMEOUT)
        with closing(EnsembleTarget("embed_image", address, requests, TIMEOUT)) as target:
            measured = measure(target, Load(clients, seconds / 5, seconds), None, TIMEOUT)
        found[clients] = measured.throughput
    return found


def table(rows: list[Indexed]) -> list[str]:
    """As Markdown, with the median ratio in the last line."""
    ratio = spread(row.ratio for row in rows)
    lines = markdown(
        ("pictures in the index", "indexed a second", "embed_image's best", "ratio", "memory, MB"),
        [
            (
                f"{row.pictures:,}",
                f"{row.indexing_per_s:.1f}",
                f"{row.embed_image_per_s:.1f} ({row.clients} clients)",
                f"{row.ratio:.2f}",
                f"{row.resident_mb:.0f}",
            )
            for row in rows
        ],
    )
    return [
        *lines,
        "",
        f"Median ratio {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['largest']:.2f}).",
    ]


if __name__ == "__main__":
    main()
