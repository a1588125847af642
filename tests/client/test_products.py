"""Matrix products with a gallery: their order, and that nobody spins after them."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st

from tercet.index import products as module
from tercet.index.products import products


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 9), st.integers(1, 50), st.booleans())
def test_pieces_come_in_order(sizes: list[int], count: int, rows_at_once: int, shared: bool) -> None:
    rng = np.random.default_rng(0)
    blocks = [rng.integers(-9, 10, (size, 3)).astype(np.float32) for size in sizes]
    queries = rng.integers(-9, 10, (count, 3)).astype(np.float32)
    gallery = np.concatenate([np.empty((0, 3), np.float32), *blocks])
    found, ended = np.empty((count, 0), np.float32), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEAST_WORK", 0 if shared else 2**60)
        for start, part, scores in products(queries, blocks, rows_at_once):
            assert start == ended
            assert len(part) <= rows_at_once
            np.testing.assert_array_equal(part, gallery[start : start + len(part)])
            found, ended = np.concatenate([found, scores], axis=1), start + len(part)
    np.testing.assert_array_equal(found, queries @ gallery.T)


def test_threads_sleep_afterwards() -> None:
    gallery, query = np.ones((200_000, 64), np.float32), np.ones((1, 64), np.float32)
    list(products(query, [gallery], 2**14))
    time.sleep(0.3)  # for what ran before
    used = time.process_time()
    for _ in range(5):
        list(products(query, [gallery], 2**14))
        time.sleep(0.1)
    assert time.process_time() - used < 0.3


def test_blas_has_its_threads_again() -> None:
    libraries = threadpoolctl.ThreadpoolController().select(user_api="blas")

    def threads() -> list[int]:
        return [library.num_threads for library in libraries.lib_controllers]

    before, queries = threads(), np.ones((2, 8), np.float32)
    blocks = [np.ones((100, 8), np.float32)] * 20
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: list(products(queries, blocks, 10)), range(50)))
    assert threads() == before
    abandoned = products(queries, blocks, 10)
    next(abandoned)
    assert set(threads()) <= {1}
    abandoned.close()
    assert threads() == before


def test_several_who_search_at_once_have_a_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(threads: int) -> ThreadPoolExecutor:
        raise InterruptedError

    monkeypatch.setattr(module, "LEAST_WORK", 0)
    monkeypatch.setattr(module, "_pool", shared)
    queries, blocks = np.ones((1, 8), np.float32), [np.ones((30, 8), np.float32)]
    with module._one_blas_thread as threads:
        assert len(list(products(queries, blocks, 10))) == 3
    if threads > 1:
        with pytest.raises(InterruptedError):
            list(products(queries, blocks, 10))


def test_an_error_ends_it() -> None:
    with pytest.raises(ValueError, match="matmul"):
        list(products(np.ones((1, 3), np.float32), [np.ones((2, 4), np.float32)], 5))
