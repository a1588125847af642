"""How long it takes to rank CIRCO: 800 queries over 123,403 pictures, beside the bare matrix products.

    python -m benchmarks.ranking docs/ranking.csv

Run it from the checkout, on an idle machine. Vectors are synthetic and the gallery memory-mapped; every query
gets its best 50 and the exact ranks of its targets. What is compared is timed in turn, and `seconds` are
medians. The peak memory is the process's, with the mapped gallery in it.
"""

import argparse
import csv
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tercet.compositions.scoring import Linear, Product
from tercet.evaluation.ranking import rank
from tercet.evaluation.values import Query, Ranking, Task

BLOCK = 8192


def unit(generator: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Random vectors of unit length."""
    vectors = generator.standard_normal(shape, np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors


def bare_product(vectors: NDArray, gallery: NDArray, kind: type) -> None:
    """The scores alone, block by block, thrown away."""
    vectors = vectors.astype(kind)
    for start in range(0, len(gallery), BLOCK):
        vectors @ np.asarray(gallery[start : start + BLOCK], kind).T


def check(ranking: Ranking, task: Task, vectors: NDArray, gallery: NDArray) -> None:
    """Compare a few queries with a plain sort, that the time is of the right answer."""
    for number in range(0, len(vectors), 100):
        scores = gallery.astype(np.float64) @ vectors[number].astype(np.float64)
        order = np.argsort(-scores)
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(1, len(order) + 1)
        targets = [int(name) for name in task.queries[number].targets]
        if not (
            np.array_equal(ranking.top[number], order[:50])
            and np.array_equal(ranking.target_ranks[number], places[targets])
        ):
            raise AssertionError(f"query {number} is ranked otherwise by a plain sort")


def main(arguments: Sequence[str] | None = None) -> None:
    """Time ranking and write the table."""
    parser = argparse.ArgumentParser(description="Time the ranking of CIRCO-sized synthetic vectors.")
    parser.add_argument("table", type=Path, help="the CSV file to write")
    parser.add_argument("--queries", type=int, default=800, help="queries (%(default)s: CIRCO's test split)")
    parser.add_argument(
        "--pictures", type=int, default=123_403, help="size of the gallery (%(default)s: CIRCO's)"
    )
    parser.add_argument(
        "--dimension", type=int, default=768, help="of a vector (%(default)s: CLIP ViT-L/14's)"
    )
    parser.add_argument("--targets", type=int, default=5, help="right answers a query (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed (%(default)s)")
    options = parser.parse_args(arguments)

    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gallery.npy"
        whole = np.lib.format.open_memmap(path, "w+", np.float32, (options.pictures, options.dimension))
        for start in range(0, options.pictures, BLOCK):
            whole[start : start + BLOCK] = unit(generator, *whole[start : start + BLOCK].shape)
        del whole
        gallery = np.load(path, mmap_mode="r")
        vectors = unit(generator, options.queries, 2, options.dimension)
        names = tuple(map(str, range(options.pictures)))
        rows = {name: row for row, name in enumerate(names)}
        queries = tuple(
            Query(
                str(number),
                names[0],
                ("",),
                tuple(map(str, generator.choice(options.pictures, options.targets))),
            )
            for number in range(options.queries)
        )
        task = Task("circo", names, queries)
        first = vectors[:, 0]
        linear, product = [Linear()] * options.queries, [Product()] * options.queries
        cases: dict[str, Callable[[], Ranking | None]] = {
            "bare product, float32": lambda: bare_product(first, gallery, np.float32),
            "bare product, float64": lambda: bare_product(first, gallery, np.float64),
            "ranking": lambda: rank(task, vectors[:, :1], gallery, rows, scorings=linear),
            "ranking by a product of two similarities": lambda: rank(
                task, vectors, gallery, rows, scorings=product
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            for name, run in cases.items():
                started = time.perf_counter()
                ranking = run()
                seconds[name].append(time.perf_counter() - started)
                if name == "ranking" and ranking is not None:
                    found = ranking
        load = os.getloadavg()[0]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        check(found, task, first, gallery)

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows_of_table = [
        {
            "what": name,
            "queries": options.queries,
            "pictures": options.pictures,
            "dimension": options.dimension,
            "seconds": round(median, 2),
            "fastest": round(min(seconds[name]), 2),
            "slowest": round(max(seconds[name]), 2),
            "times the float32 product": round(median / medians["bare product, float32"], 2),
            "cores": os.cpu_count(),
            "load average": round(load, 1),
            "peak memory, GB": round(memory, 2),
        }
        for name, median in medians.items()
    ]
    with options.table.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows_of_table[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows_of_table)
    print(options.table.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
