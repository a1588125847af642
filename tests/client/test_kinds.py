"""How an index is searched: the choice and its reason, and that codes find what exact search finds."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.galleries import World
from tercet.index import GalleryIndex, choose_kind, proposals, storage
from tercet.index.exact import best
from tests.client.gallery_kit import write_index

GB = 10**9
D = 64


@pytest.fixture(scope="module")
def gallery() -> np.ndarray:
    """6,000 synthetic pictures, f32 [6000, D]."""
    return np.concatenate(list(World(D).pictures(6000)))


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory, gallery: np.ndarray) -> dict[str, GalleryIndex]:
    """The same gallery, searched in each way; the codes in three segments."""
    folder = tmp_path_factory.mktemp("indexes")
    for kind in ("exact", "hnsw", "quantised"):
        write_index(folder / kind, gallery, shard_size=512, kind=kind, segment=2000)
    assert len(list((folder / "quantised").glob("codes-*"))) == 3
    return {kind: GalleryIndex.load(folder / kind) for kind in ("exact", "hnsw", "quantised")}


@pytest.mark.parametrize(
    ("pictures", "dimension", "memory", "kind", "reason"),
    [
        (1, 512, GB, "exact", "1 vectors of 512 dimensions are compared one by one in about 1 ms"),
        (190_000, 512, 8 * GB, "exact", "compared one by one in about 13 ms"),
        (190_000, 1024, 8 * GB, "quantised", "codes of 24 MB in memory"),
        (10**6, 512, 8 * GB, "quantised", "68 ms a query one by one; codes of 64 MB"),
        (10**7, 512, 64 * GB, "quantised", "683 ms a query one by one; codes of 640 MB"),
        (10**7, 512, 24 * GB, "quantised", "are 20.5 GB, much for a memory of 24.0 GB; codes of 640 MB"),
        (10**5, 512, GB // 4, "quantised", "are 205 MB, much for a memory of 250 MB; codes of 6 MB"),
    ],
)
def test_the_choice_and_its_reason(
    pictures: int, dimension: int, memory: int, kind: str, reason: str
) -> None:
    choice = choose_kind(pictures, dimension, memory)
    assert choice.kind == kind
    assert reason in choice.reason


@settings(deadline=None)
@given(st.integers(1, 10**9), st.integers(1, 4096), st.integers(GB // 4, 4096 * GB))
def test_the_choice_only_ever_moves_away_from_exact(pictures: int, dimension: int, memory: int) -> None:
    choice = choose_kind(pictures, dimension, memory)
    more = choose_kind(2 * pictures, dimension, memory)
    assert choice == choose_kind(pictures, dimension, memory)
    assert f"{pictures:,} vectors" in choice.reason
    if choice.kind != "exact":
        assert more.kind != "exact"
        assert choose_kind(pictures, dimension, memory // 2).kind == "quantised"


@pytest.mark.parametrize("kind", ["hnsw", "quantised"])
@pytest.mark.parametrize("queries", ["composed", "picture"])
def test_recall(indexes: dict[str, GalleryIndex], kind: str, queries: str) -> None:
    asked = World(D).queries(queries, 200)  # type: ignore[arg-type]
    scores, right = indexes["exact"].search(asked, 10)
    found_scores, found = indexes[kind].search(asked, 10)
    assert np.mean([np.isin(*pair).mean() for pair in zip(right, found, strict=True)]) >= 0.99
    # What is found is scored exactly, and so are the differences.
    same = found == right
    np.testing.assert_array_equal(found_scores[same], scores[same])
    assert (found_scores <= scores).all()


def test_composed_queries_come_from_outside() -> None:
    """The synthetic world has the modality gap that it is made for, and is the same every time."""
    pictures = next(World().pictures(1000))
    np.testing.assert_array_equal(np.concatenate(list(World().pictures(9000)))[:1000], pictures)
    between = pictures[:500] @ pictures[500:].T
    composed, others = (World().queries(kind, 300) @ pictures.T for kind in ("composed", "picture"))
    assert 0.45 < between.mean() < 0.5
    assert 0.15 < composed.mean() < 0.2
    assert composed.max(axis=1).mean() < 0.4 < 0.6 < others.max(axis=1).mean()


@pytest.mark.parametrize("kind", ["exact", "hnsw", "quantised"])
def test_an_answer_depends_on_its_query_alone(indexes: dict[str, GalleryIndex], kind: str) -> None:
    """Not on the batch, nor on what other threads ask at the same time."""
    index, queries = indexes[kind], World(D).queries("composed", 64)
    together = index.search(queries, 12)
    begin = threading.Barrier(8)

    def ask(offset: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        begin.wait()
        return [
            (number, *(part[0] for part in index.search(queries[number : number + 1], 12)))
            for number in range(offset, 64, 8)
        ]

    with ThreadPoolExecutor(8) as pool:
        for answers in pool.map(ask, range(8)):
            for number, scores, rows in answers:
                np.testing.assert_array_equal(scores, together[0][number])
                np.testing.assert_array_equal(rows, together[1][number])


def test_many_are_found_and_left_out_by_codes(indexes: dict[str, GalleryIndex]) -> None:
    queries = World(D).queries("composed", 3)
    exact, codes = indexes["exact"], indexes["quantised"]
    np.testing.assert_array_equal(codes.search(queries, 6000)[1], exact.search(queries, 6000)[1])
    first = exact.search(queries, 40)[1]
    rows = codes.search(queries, 5, exclude=[set(found.tolist()) for found in first])[1]
    np.testing.assert_array_equal(rows, exact.search(queries, 45)[1][:, 40:])


@pytest.mark.parametrize(("count", "dimension"), [(1, 2), (3, 5), (40, 7), (300, 1)])
def test_codes_of_few_pictures_and_odd_dimensions(tmp_path: Path, count: int, dimension: int) -> None:
    rng = np.random.default_rng(count)
    vectors = rng.standard_normal((count, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for kind in ("exact", "quantised"):
        write_index(tmp_path / kind, vectors, shard_size=16, kind=kind)
    exact, codes = (GalleryIndex.load(tmp_path / kind) for kind in ("exact", "quantised"))
    assert codes.kind == "quantised"
    for found, right in zip(codes.search(vectors[:5], 4), exact.search(vectors[:5], 4), strict=True):
        np.testing.assert_array_equal(found, right)


def test_segments_that_have_not_changed_stay(tmp_path: Path, gallery: np.ndarray) -> None:
    write_index(tmp_path / "index", gallery, shard_size=500, kind="quantised", segment=2000)
    catalogue = storage.read_catalogue(tmp_path / "index")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("codes-*")}
    # The last shard is gone, and the first segment's file damaged.
    damaged = tmp_path / "index" / catalogue.codes[0].file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    records = proposals.build_codes(
        tmp_path / "index", catalogue.shards[:-1], D, catalogue.codes, lambda _: None, segment=2000
    )
    kept = [record for record in records if record in catalogue.codes]
    assert [record.file for record in records][:2] == [record.file for record in catalogue.codes][:2]
    assert records[2] not in catalogue.codes
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("codes-*")}
    assert [after[record.file] == before.get(record.file) for record in kept] == [False, True]


@settings(deadline=None)
@given(st.data())
def test_best_is_a_sort(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    sizes = data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=8))
    blocks = [rng.integers(-9, 10, (size, 3)).astype(np.float32) for size in sizes]
    queries = rng.integers(-9, 10, (data.draw(st.integers(1, 9)), 3)).astype(np.float32)
    count = data.draw(st.integers(1, 60))
    scores, rows = best(queries, blocks, count)
    products = queries @ np.concatenate(blocks).T
    for number, all_scores in enumerate(products):
        right = np.sort(all_scores)[::-1][:count]
        np.testing.assert_array_equal(scores[number, : len(right)], right)
        found = rows[number, : len(right)]
        np.testing.assert_array_equal(all_scores[found], right)
        assert len(set(found.tolist())) == len(found)
        assert (rows[number, len(right) :] == -1).all()
