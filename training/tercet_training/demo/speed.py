"""How long each stage takes for one caller, and how much goes through when many ask at once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tercet import Client
from tercet.index import GalleryIndex

WARM_UP = 3


@dataclass(frozen=True)
class StageSpeed:
    """Latency in milliseconds of one caller alone; throughput in items per second with many in flight."""

    stage: str
    p50: float
    p95: float
    per_second: float


def _one_by_one(call: Callable[[int], object], count: int) -> tuple[float, float]:
    """The p50 and p95 of `count` calls after a few that are not counted, in milliseconds."""
    for item in range(WARM_UP):
        call(item)
    times = []
    for item in range(count):
        start = time.perf_counter()
        call(item)
        times.append((time.perf_counter() - start) * 1e3)
    p50, p95 = np.percentile(times, [50, 95])
    return float(p50), float(p95)


def _together(call: Callable[[], object], count: int) -> float:
    """Items per second of one call that does `count` of them."""
    start = time.perf_counter()
    call()
    return count / (time.perf_counter() - start)


def measure(
    client: Client,
    index: GalleryIndex,
    references: Sequence[Path],
    modifications: Sequence[str],
    samples: int,
) -> list[StageSpeed]:
    """Measure every stage of a composed query and the whole of it on `samples` queries."""
    references, modifications = list(references), list(modifications)
    samples = min(samples, len(references))
    embeddings = client.embed_texts(modifications)

    def composed_query(item: int) -> None:
        query = client.compose_queries(references[item], modifications[item])
        index.search(query.embedding[None], 10)

    def composed_queries() -> None:
        queries = client.compose_queries(references, modifications)
        index.search(np.stack([query.embedding for query in queries]), 10)

    stages: list[tuple[str, Callable[[int], object], Callable[[], object]]] = [
        (
            "remove background and caption",
            lambda i: client.caption(references[i]),
            lambda: client.caption(references),
        ),
        (
            "caption with its background",
            lambda i: client.caption(references[i], background="keep"),
            lambda: client.caption(references, background="keep"),
        ),
        (
            "embed a picture",
            lambda i: client.embed_images(references[i]),
            lambda: client.embed_images(references),
        ),
        (
            "embed a text",
            lambda i: client.embed_texts(modifications[i]),
            lambda: client.embed_texts(modifications),
        ),
        ("search", lambda i: index.search(embeddings[i : i + 1], 10), lambda: index.search(embeddings, 10)),
        ("whole composed query", composed_query, composed_queries),
    ]
    return [
        StageSpeed(name, *_one_by_one(single, samples), _together(many, len(references)))
        for name, single, many in stages
    ]
