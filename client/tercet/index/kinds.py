"""How an index is searched, chosen by size, dimension and memory. The measurements are in docs/search.md."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["Choice", "Kind", "choose_kind", "code_bytes", "machine_memory"]

Kind: TypeAlias = Literal["exact", "hnsw", "quantised"]

EXACT_LIMIT = 400 * 10**6
"""Bytes of float32 vectors that are read whole for every query: 195,000 of 512 dimensions."""

BYTES_A_SECOND = 30e9
"""What one core reads and multiplies, roughly: it makes the reasons speak of time, and decides nothing."""

MEMORY_SHARE = 0.5
"""Of the memory, what vectors may take that are read whole, or they come from disk every time."""


@dataclass(frozen=True)
class Choice:
    """A kind of search, and why this one."""

    kind: Kind
    reason: str


def choose_kind(pictures: int, dimension: int, memory: int) -> Choice:
    """How to search `pictures` vectors of `dimension` on a machine of `memory` bytes.

    Exact search as long as that is quick; then quantised search. An HNSW graph is for who asks for it: with
    composed queries it took longer than codes at the same recall, up to the million pictures that we have
    measured, thirty times the memory and ten times the time to build.
    """
    vectors, codes = 4 * pictures * dimension, pictures * code_bytes(dimension)
    size = f"{pictures:,} vectors of {dimension} dimensions"
    if vectors <= min(EXACT_LIMIT, MEMORY_SHARE * memory):
        return Choice("exact", f"{size} are compared one by one in about {_time(vectors)}")
    if vectors > MEMORY_SHARE * memory:
        why = f"{size} are {_bytes(vectors)}, much for a memory of {_bytes(memory)}"
    else:
        why = f"{size} would take about {_time(vectors)} a query one by one"
    return Choice(
        "quantised",
        f"{why}; codes of {_bytes(codes)} in memory are read in about {_time(codes)}, and the best compared",
    )


def code_bytes(dimension: int) -> int:
    """What a picture's code takes in memory: a bit for every dimension."""
    return (dimension + 7) // 8


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
