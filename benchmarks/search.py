"""Searching a gallery: recall, latency, memory and build time of every kind, by size and threads.

    python -m benchmarks.search docs/search.csv docs/search.png [--sizes 10000 100000] [--folder FOLDER]

Run it from the checkout, on an idle machine. Galleries are `benchmarks/galleries.py`'s, 512-dimensional, and
so are the queries: composed ones, and pictures to show how these mislead. What is timed is
`GalleryIndex.search` with k = 50, whatever proposes the candidates, and the bare matrix product beside it.
Every size and number of threads is a process of its own. A query is asked several times in a row and the
least time taken, which is what the search costs where others use the machine too; the quantiles are over
queries. Galleries and graphs stay in the folder; building a graph of a million takes long, and goes on where
it was left after `--build-seconds`.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.galleries import QueryKind, World
from benchmarks.search_page import draw
from benchmarks.search_page import write_table as fill_page
from tercet.index import GalleryIndex, proposals, storage
from tercet.index.build import SHARD_SIZE
from tercet.index.exact import best
from tercet.index.proposals import Codes, Graph, Proposer
from tercet.index.sources import PictureFile

DIMENSION, K, RECALL_AT = 512, 50, 10
QUERIES, SLOW_QUERIES, BATCH, REPEATS = 300, 20, 256, 3
KINDS: tuple[QueryKind, ...] = ("composed", "picture")
PAGE = Path(__file__).parents[1] / "docs" / "search.md"

Rows: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """One line of the table. Latencies are of one query alone; CPU time is of all threads together.

    `callers_per_s` is what two threads get answered that ask one by one. Of exact search, `of_product` and
    `batch_of_product` are the CPU time of one query and of a batch of 256 over that of the bare matrix
    product, taken in turn; others on the machine hardly change CPU time.
    """

    size: int
    kind: str
    parameters: str
    threads: int
    queries: str
    recall_at_10: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    batch_per_s: float
    callers_per_s: float
    resident_mb: float
    build_s: float
    build_cpu_s: float
    of_product: float
    batch_of_product: float
    load: float


@dataclass(frozen=True)
class Case:
    """A way to search, its parameters set by `prepare`."""

    kind: str
    parameters: str
    index: GalleryIndex
    prepare: Callable[[], None] = lambda: None
    resident: float = 0
    build: float = 0
    build_cpu: float = 0


class Lists:
    """FAISS's inverted lists of 8-bit codes: no kind of ours, to show what lists do to composed queries."""

    def __init__(self, lists: Any) -> None:
        self.lists = lists

    def propose(self, queries: NDArray[np.float32], count: int) -> Rows:
        """Rows i64 [Q, P]."""
        return self.lists.search(queries, max(proposals.CODES_PROPOSALS, count))[1]


# Making


def make_index(folder: Path, size: int) -> Path:
    """The gallery as an index on disk, unless it is there."""
    path = folder / f"gallery-{size}"
    if not (path / storage.CATALOGUE).exists():
        with storage.writing(path):
            with storage.ShardWriter(path, "0" * 64, SHARD_SIZE) as writer:
                number = 0
                for block in World(DIMENSION).pictures(size):
                    for vector in block:
                        writer.append(
                            PictureFile(f"pictures/{number // 1000:04d}/{number:07d}.jpg", 1, 1), vector
                        )
                        number += 1
            shards = [storage.recover_shard(path, name) for name in writer.names]
            records = tuple(storage.record_shard(path, shard) for shard in shards if shard)
            storage.write_catalogue(path, storage.Catalogue("0" * 64, DIMENSION, "/", records))
    return path


def make_graph(folder: Path, index: GalleryIndex, seconds: float) -> tuple[Any, float, float]:
    """An HNSW graph, its build time and CPU time; SystemExit where it takes more than `seconds` now."""
    path, times = folder / f"graph-{len(index)}.faiss", folder / f"graph-{len(index)}.json"
    neighbours, effort = graph_parameters(len(index))
    graph = faiss.IndexHNSWFlat(DIMENSION, neighbours, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = effort
    spent, spent_cpu = 0.0, 0.0
    if path.exists():
        graph = faiss.read_index(str(path))
        spent, spent_cpu = json.loads(times.read_text())
    started, started_cpu = time.monotonic(), time.process_time()
    begun_with = graph.ntotal
    while graph.ntotal < len(index) and time.monotonic() - started < seconds:
        graph.add(index.vectors(np.arange(graph.ntotal, min(graph.ntotal + 8192, len(index)))))
    if graph.ntotal > begun_with:
        spent, spent_cpu = spent + time.monotonic() - started, spent_cpu + time.process_time() - started_cpu
        faiss.write_index(graph, str(path))
        times.write_text(json.dumps([spent, spent_cpu]))
    if graph.ntotal < len(index):
        raise SystemExit(f"the graph has {graph.ntotal:,} of {len(index):,} vectors; run again to go on")
    return graph, spent, spent_cpu


def graph_parameters(size: int) -> tuple[int, int]:
    """Neighbours and effort: Tercet's, and less for a million, which else takes hours."""
    return (32, 128) if size < 10**6 else (16, 64)


def cases(
    folder: Path, path: Path, size: int, without: Sequence[str], build_seconds: float
) -> Iterator[Case]:
    """Every way to search this gallery."""
    exact = GalleryIndex.load(path, verify=False)
    catalogue = storage.read_catalogue(path)

    def proposed(proposer: Proposer) -> GalleryIndex:
        return GalleryIndex(catalogue, exact.root, exact.names, exact._blocks, proposer)

    yield Case("exact", "", exact)
    if "quantised" not in without:
        for file in path.glob("codes-*"):
            file.unlink()
        started, started_cpu = time.monotonic(), time.process_time()
        records = proposals.build_codes(path, catalogue.shards, DIMENSION, (), lambda _: None)
        build, cpu = time.monotonic() - started, time.process_time() - started_cpu
        codes = proposed(Codes([faiss.read_index(str(path / record.file)) for record in records]))
        resident = sum((path / record.file).stat().st_size for record in records)
        for count in (200, 500, 1000, 2000):
            yield Case(
                "quantised", f"proposals {count}", codes, _set("CODES_PROPOSALS", count), resident, build, cpu
            )
    if "ivf" not in without:
        lists = Lists(None)
        started, started_cpu = time.monotonic(), time.process_time()
        lists.lists = faiss.index_factory(
            DIMENSION, f"IVF{max(64, int(size**0.5))},SQ8", faiss.METRIC_INNER_PRODUCT
        )
        lists.lists.train(exact.vectors(np.arange(0, size, max(1, size // 50_000))))
        for block in exact._blocks:
            lists.lists.add(np.ascontiguousarray(block))
        build, cpu = time.monotonic() - started, time.process_time() - started_cpu
        for share in (64, 32, 16, 8, 4, 2):
            probes = max(1, lists.lists.nlist // share)
            yield Case(
                "ivf",
                f"lists {lists.lists.nlist} probes {probes}",
                proposed(lists),
                lambda probes=probes: setattr(lists.lists, "nprobe", probes),
                size * (DIMENSION + 8),
                build,
                cpu,
            )
        del lists.lists
    if "hnsw" not in without:
        graph, build, cpu = make_graph(folder, exact, build_seconds)
        resident = (folder / f"graph-{size}.faiss").stat().st_size
        neighbours, effort = graph_parameters(size)
        for search_effort in (64, 128, 256, 512, 1024):
            yield Case(
                "hnsw",
                f"M {neighbours} efConstruction {effort} efSearch {search_effort}",
                proposed(Graph(graph)),
                _set("GRAPH_SEARCH_EFFORT", search_effort),
                resident,
                build,
                cpu,
            )


def _set(name: str, value: int) -> Callable[[], None]:
    def prepare() -> None:
        setattr(proposals, name, value)
        proposals.CODES_PROPOSALS = value if name == "CODES_PROPOSALS" else K

    return prepare


# Measuring


def measure(case: Case, threads: int, kind: QueryKind, truth: Rows) -> Iterator[Measured]:
    """Recall, latency and throughput of one way to search; with exact search, the bare product's too."""
    case.prepare()
    queries = World(DIMENSION).queries(kind, QUERIES)
    asked = queries[:SLOW_QUERIES] if case.kind == "exact" else queries

    def search(some: NDArray[np.float32]) -> Rows:
        return case.index.search(some, K)[1]

    def product(some: NDArray[np.float32]) -> None:
        for block in case.index._blocks:
            some @ block.T

    found = [search(query[None])[0, :RECALL_AT] for query in asked]
    recall = np.mean([len(np.intersect1d(*pair)) / RECALL_AT for pair in zip(found, truth, strict=False)])
    methods = [search, product] if case.kind == "exact" else [search]
    one = np.array(
        [[timed(method, query[None]) for method in methods] for query in asked for _ in range(REPEATS)]
    )
    one = one.reshape(len(asked), REPEATS, len(methods), 2).min(axis=1)
    batch = np.array([[timed(method, queries[:BATCH]) for method in methods] for _ in range(3)]).min(axis=0)
    with ThreadPoolExecutor(2) as pool:
        several = min(timed(lambda some: list(pool.map(search, some[:, None])), asked)[0] for _ in range(2))
    ratios = np.median(one[:, 0, 1]) / np.median(one[:, -1, 1]), batch[0, 1] / batch[-1, 1]
    for number, method in enumerate(methods):
        mine = method is search
        yield Measured(
            size=len(case.index),
            kind=case.kind if mine else "product",
            parameters=case.parameters,
            threads=threads,
            queries=kind,
            recall_at_10=round(float(recall), 4),
            p50_ms=round(1e3 * float(np.median(one[:, number, 0])), 3),
            p99_ms=round(1e3 * float(np.percentile(one[:, number, 0], 99)), 3),
            cpu_ms=round(1e3 * float(np.median(one[:, number, 1])), 3),
            batch_per_s=round(BATCH / batch[number, 0], 1),
            callers_per_s=round(len(asked) / several, 1) if mine else 0,
            resident_mb=round(case.resident / 1e6, 1),
            build_s=round(case.build, 1),
            build_cpu_s=round(case.build_cpu, 1),
            of_product=round(ratios[0], 3) if mine and case.kind == "exact" else 1,
            batch_of_product=round(ratios[1], 3) if mine and case.kind == "exact" else 1,
            load=round(os.getloadavg()[0], 1),
        )


def timed(run: Callable[[Any], object], argument: object) -> tuple[float, float]:
    """Seconds that pass, and that all threads of this process compute."""
    started, started_cpu = time.perf_counter(), time.process_time()
    run(argument)
    return time.perf_counter() - started, time.process_time() - started_cpu


def measure_size(arguments: argparse.Namespace, size: int, threads: int) -> None:
    """Print the lines of one size and number of threads as JSON."""
    faiss.omp_set_num_threads(threads)
    path = make_index(arguments.folder, size)
    truth: dict[QueryKind, Rows] = {}
    for case in cases(arguments.folder, path, size, arguments.without, arguments.build_seconds):
        for kind in KINDS:
            if kind not in truth:
                truth[kind] = best(World(DIMENSION).queries(kind, QUERIES), case.index._blocks, RECALL_AT)[1]
            if case.kind != "exact" or kind == "composed":
                for row in measure(case, threads, kind, truth[kind]):
                    print(json.dumps(asdict(row)), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the table and draw it."""
    parser = argparse.ArgumentParser(description="Measure every kind of search.")
    parser.add_argument("table", type=Path, help="the CSV file; lines of other sizes and kinds stay")
    parser.add_argument("plot", type=Path, help="the PNG file")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, default=Path("build/search"), help="(%(default)s)")
    parser.add_argument("--without", nargs="*", default=[], choices=["quantised", "ivf", "hnsw"])
    parser.add_argument("--build-seconds", type=float, default=1e9, help="for a graph, at a time")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.one:
        measure_size(options, options.sizes[0], options.threads[0])
        return
    rows = read_table(options.table)
    for size in options.sizes:
        for threads in options.threads:
            # The number of BLAS's threads is settled when the process starts.
            command = [sys.executable, "-m", "benchmarks.search", *(arguments or sys.argv[1:]), "--one"]
            command += ["--sizes", str(size), "--threads", str(threads)]
            environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
            environment = os.environ | environment
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
                for line in running.stdout or ():
                    row = Measured(**json.loads(line))
                    rows[row.size, row.kind, row.parameters, row.threads, row.queries] = row
                    print(*asdict(row).values(), sep="\t", flush=True)
                    write_table(options.table, list(rows.values()))
            if running.returncode:
                raise SystemExit(running.returncode)
    draw(list(rows.values()), options.plot)
    if options.table.resolve().parent == PAGE.parent:
        fill_page(list(rows.values()), PAGE)


def read_table(path: Path) -> dict[tuple, Measured]:
    """The table's lines by what they measure."""
    if not path.exists():
        return {}
    with path.open() as file:
        lines = [
            Measured(**{field.name: field.type(line[field.name]) for field in fields(Measured)})
            for line in csv.DictReader(file)
        ]
    return {(row.size, row.kind, row.parameters, row.threads, row.queries): row for row in lines}


def write_table(path: Path, rows: Sequence[Measured]) -> None:
    """Write the table."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Measured)], lineterminator="\n")
        writer.writeheader()
        order = ["product", "exact", "quantised", "ivf", "hnsw"]
        writer.writerows(
            asdict(row)
            for row in sorted(rows, key=lambda row: (row.size, row.threads, order.index(row.kind)))
        )


if __name__ == "__main__":
    main()
