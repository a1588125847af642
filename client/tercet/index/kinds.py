"""How an index is searched, chosen by size, dimension and memory. The measurements are in docs/search.md."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["Choice", "Kind", "choose_kind", "code_bytes", "graph_bytes", "machine_memory"]

Kind: TypeAlias = Literal["exact", "hnsw", "quantised"]

EXACT_LIMIT = 400 * 10**6
"""Bytes of float32 vectors that are read whole for every query: 195,000 of 512 dimensions."""

SCAN_LIMIT = 500 * 10**6
"""Bytes of codes that are read whole for every query: 8 million pictures of 512 dimensions."""

BYTES_A_SECOND = 30e9
"""What one core reads and multiplies, roughly: it makes the reasons speak of time, and decides nothing."""

GRAPH_SHARE = 0.5
"""Of the memory, what a graph may take: it is built there whole, beside everything else."""


@dataclass(frozen=True)
class Choice:
    """A kind of search, and why this one."""

    kind: Kind
    reason: str


def choose_kind(pictures: int, dimension: int, memory: int) -> Choice:
    """How to search `pictures` vectors of `dimension` on a machine of `memory` bytes.

    Exact search as long as it is quick. Then quantised search: in our measurements with composed queries it
    takes less time than an HNSW graph at the same recall up to a million pictures, a sixteenth of the memory
    and a hundredth of the time to build. A graph, whose search hardly slows down with size, only past what
    can be scanned, and where memory holds it.
    """
    vectors, codes = 4 * pictures * dimension, pictures * code_bytes(dimension)
    size = f"{pictures:,} vectors of {dimension} dimensions"
    if vectors <= EXACT_LIMIT:
        return Choice("exact", f"{size} are compared one by one in about {_time(vectors)}")
    scan = f"codes of {_bytes(codes)} in memory are read in about {_time(codes)} a query"
    if codes <= SCAN_LIMIT:
        return Choice(
            "quantised",
            f"{size} would take about {_time(vectors)} a query one by one; {scan}, the best "
            "are compared exactly",
        )
    graph = pictures * graph_bytes(dimension)
    if graph <= GRAPH_SHARE * memory:
        return Choice(
            "hnsw",
            f"{size} are too many to scan, even as {scan}; a graph of {_bytes(graph)} fits into the "
            f"memory of {_bytes(memory)}",
        )
    return Choice(
        "quantised",
        f"{size} would need a graph of {_bytes(graph)}, too much for a memory of "
        f"{_bytes(memory)}; {scan}, the best are compared exactly",
    )


def code_bytes(dimension: int) -> int:
    """What a picture's code takes in memory: a bit for every dimension."""
    return (dimension + 7) // 8


def graph_bytes(dimension: int) -> int:
    """What a picture takes in an HNSW graph: its float32 vector and its neighbours."""
    return 4 * dimension + 300


def machine_memory() -> int:
    """The memory that this process may use, bytes: the machine's, or its control group's limit if less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # "max" where there is no limit.
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def _time(count: float) -> str:
    milliseconds = count / BYTES_A_SECOND * 1e3
    return f"{milliseconds:,.0f} ms" if milliseconds >= 1 else "1 ms"
