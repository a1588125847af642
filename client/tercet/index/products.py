"""Matrix products of queries with a gallery, on all processors, by threads that sleep when there is no work.

A BLAS has threads of its own, and OpenBLAS's go on spinning for a tenth of a second after every product: on
one machine with a server they take a processor from it at each search. So BLAS gets one thread meanwhile.
"""

import functools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import threadpoolctl
from numpy.typing import NDArray

__all__ = ["products"]

Product = tuple[int, NDArray[np.float32], NDArray[np.float32]]

LEAST_WORK = 2**23
"""Multiplications in a piece; below, handing it to another thread costs more than it saves."""


def products(
    queries: NDArray[np.float32], blocks: Iterable[NDArray[np.float32]], rows_at_once: int
) -> Iterator[Product]:
    """Products of queries [Q, D] with blocks [B, D] each, in order, in pieces of so many rows at most.

    Yields:
        A piece's first row counted through the blocks, its vectors f32 [R, D], and the products f32 [Q, R].
    """

    def multiplied(start: int, part: NDArray[np.float32]) -> Product:
        return start, part, queries @ part.T

    with _one_blas_thread as threads:
        waiting: deque[Future[Product]] = deque()
        for start, part in _pieces(blocks, rows_at_once):
            # Several who search at once are threads already.
            if threads == 1 or _one_blas_thread.within > 1 or queries.size * len(part) < LEAST_WORK:
                while waiting:
                    yield waiting.popleft().result()
                yield multiplied(start, part)
                continue
            waiting.append(_pool(threads).submit(multiplied, start, part))
            if len(waiting) > 2 * threads:  # more would only hold memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _pieces(
    blocks: Iterable[NDArray[np.float32]], rows_at_once: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    start = 0
    for block in blocks:
        for first in range(0, len(block), rows_at_once):
            part = block[first : first + rows_at_once]
            yield start, part
            start += len(part)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "tercet-products")


class _OneBlasThread:
    """A context: while anybody is within, BLAS computes in the thread that calls it.

    A limit holds for the whole process, so that the first sets it and the last lifts it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.within, self._threads = 0, 1
        self._limit: threadpoolctl.threadpool_limits | None = None

    def __enter__(self) -> int:
        """How many threads BLAS has otherwise."""
        with self._lock:
            if self._limit is None:
                libraries = _libraries()
                self._threads = max((library.num_threads for library in libraries.lib_controllers), default=1)
                self._limit = libraries.limit(limits=1)
            self.within += 1
            return self._threads

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.within -= 1
            if not self.within and self._limit is not None:
                self._limit.restore_original_limits()
                self._limit = None


@functools.cache
def _libraries() -> threadpoolctl.ThreadpoolController:
    """The BLAS that NumPy has loaded, and others; looked for once, which takes milliseconds."""
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


_one_blas_thread = _OneBlasThread()
