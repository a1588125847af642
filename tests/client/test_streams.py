"""Many at once, failures and retries: every test runs with `Client` and with `AsyncClient`."""

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from tercet import messages
from tercet.async_client import AsyncClient
from tercet.client import Client
from tercet.errors import (
    InferenceError,
    ModelMissing,
    PictureError,
    RequestTimeout,
    ServerOverloaded,
    ServerUnreachable,
    TercetError,
)
from tercet.testing import FakeTransport, answer
from tercet.transport import Tensors
from tests.client.stand_ins import PICTURES, AsyncWatched, Connect, Traffic, Watched, failing


def test_many_are_pipelined_within_bounds_and_in_order(connect: Connect) -> None:
    chance = random.Random(0)
    client, traffic = connect(delay=lambda: chance.uniform(0, 0.02), in_flight=7)
    together = client.embed_images(PICTURES)
    assert traffic.most == 7
    assert np.array_equal(together, np.stack([client.embed_images(picture) for picture in PICTURES]))


def test_a_stream_takes_its_items_as_it_goes(connect: Connect) -> None:
    client, _ = connect(in_flight=4)
    taken = [0]

    def endless() -> Iterator[bytes]:
        while True:
            taken[0] += 1
            yield b"picture"

    results = client.embed_images_iter(endless())
    for received in range(1, 200):
        assert next(results).shape == (16,)
        assert taken[0] <= received + 2 * 4
    results.close()


def test_a_finished_result_is_not_held_back() -> None:
    """A camera gives the next picture when it pleases: what is done is handed out before."""
    traffic = Traffic()
    client = Client(transport=Watched(answer, traffic, lambda: 0), in_flight=8)

    def slowly() -> Iterator[bytes]:
        yield b"first"
        while not traffic.requests or traffic.now:
            time.sleep(0.001)
        time.sleep(0.1)
        yield b"second"
        raise AssertionError("asked for a third before the first was handed out")

    first = next(client.embed_images_iter(slowly()))
    assert isinstance(first, np.ndarray)
    client.close()


def test_a_bad_picture_leaves_its_neighbours_alone(connect: Connect, tmp_path: Path) -> None:
    def judge(model: str, inputs: Mapping[str, np.ndarray]) -> Tensors:
        if inputs["image"].item() == b"rotten":
            raise PictureError("the file is truncated")
        if inputs["image"].item() == b"fatal":
            raise InferenceError("the model failed")
        return answer(model, inputs)

    (tmp_path / "rotten.jpg").write_bytes(b"rotten")
    client, _ = connect(judge)
    pictures = [PICTURES[0], tmp_path / "rotten.jpg", b"", b"fatal", tmp_path / "missing.jpg", PICTURES[1]]
    first, rotten, empty, fatal, missing, last = client.embed_images_iter(pictures)
    assert np.array_equal(np.stack([first, last]), client.embed_images(PICTURES[:2]))
    assert str(rotten) == f"{tmp_path}/rotten.jpg: the file is truncated"
    assert str(empty) == "picture 2: the file is empty"
    assert isinstance(fatal, InferenceError)
    assert str(missing) == f"{tmp_path}/missing.jpg: there is no such file"
    assert [type(result).__name__ for result in client.caption_iter(pictures[:3])] == [
        "Caption",
        "PictureError",
        "PictureError",
    ]
    with pytest.raises(PictureError, match=r"rotten\.jpg: the file is truncated"):
        client.embed_images(pictures)
    with pytest.raises(PictureError, match=r"rotten\.jpg: the file is truncated"):
        client.caption(tmp_path / "rotten.jpg")


@pytest.mark.parametrize("error", [ServerUnreachable, ServerOverloaded, RequestTimeout, ModelMissing])
def test_a_failed_server_ends_a_stream_after_what_was_done(
    connect: Connect, error: type[TercetError]
) -> None:
    def fail_from_ten(model: str, inputs: Mapping[str, np.ndarray]) -> Tensors:
        if inputs["image"].item() >= PICTURES[10]:
            raise error("the server failed")
        return answer(model, inputs)

    client, _ = connect(fail_from_ten, in_flight=4, retries=0)
    results = client.embed_images_iter(PICTURES)
    assert all(next(results).shape == (16,) for _ in range(10))
    with pytest.raises(error):
        next(results)


def test_an_error_of_the_callers_generator_passes_through(connect: Connect) -> None:
    def breaking() -> Iterator[bytes]:
        yield PICTURES[0]
        raise KeyError("the caller's own")

    client, _ = connect()
    with pytest.raises(KeyError, match="the caller's own"):
        client.embed_images(breaking())


def test_an_abandoned_stream_stops(connect: Connect) -> None:
    client, traffic = connect(delay=lambda: 0.01, in_flight=2)
    results = client.embed_images_iter(PICTURES)
    next(results)
    results.close()
    time.sleep(0.1)
    assert len(traffic.requests) <= 6


def test_a_client_is_shared_by_threads() -> None:
    others = set(threading.enumerate())
    client = Client(transport=FakeTransport(), in_flight=4)
    expected = client.embed_images(PICTURES)
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: results.append(client.embed_images(PICTURES))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    client.close()
    assert len(results) == 8
    assert all(np.array_equal(result, expected) for result in results)
    assert set(threading.enumerate()) <= others


def test_a_closed_client_says_so(connect: Connect) -> None:
    client, traffic = connect()
    client.close()
    assert traffic.closed
    for use in (client.lineup, client.ready, lambda: client.caption(b"x"), lambda: client.embed_texts(["x"])):
        with pytest.raises(RuntimeError, match="has been closed"):
            use()
    with pytest.raises(RuntimeError, match="has been closed"):
        list(client.embed_images_iter([b"x"]))


def test_both_are_context_managers() -> None:
    traffic = Traffic()
    with Client(transport=Watched(answer, traffic, lambda: 0)) as client:
        client.lineup()
    assert traffic.closed
    traffic = Traffic()

    async def run() -> None:
        async with AsyncClient(transport=AsyncWatched(answer, traffic, lambda: 0)) as client:
            await client.lineup()

    asyncio.run(run())
    assert traffic.closed


def test_closing_wakes_a_client_that_waits_to_try_again() -> None:
    client = Client(transport=FakeTransport(failing(ServerOverloaded("full"), times=10**6)), timeout=60)
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            client.lineup()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.3)
    client.close()
    thread.join(5)
    assert len(raised) == 1


def test_an_unreachable_server_is_tried_again(connect: Connect) -> None:
    client, traffic = connect(failing(ServerUnreachable("down"), times=2), retries=2)
    assert client.lineup().name == "fake"
    assert len(traffic.requests) == 3


@pytest.mark.parametrize("retries", [0, 2])
def test_tries_end(connect: Connect, retries: int) -> None:
    client, traffic = connect(failing(ServerUnreachable("down"), times=100), retries=retries)
    with pytest.raises(ServerUnreachable):
        client.lineup()
    assert len(traffic.requests) == retries + 1


@pytest.mark.parametrize("error", [PictureError, RequestTimeout, ModelMissing, InferenceError])
def test_nothing_else_is_tried_again(connect: Connect, error: type[TercetError]) -> None:
    client, traffic = connect(failing(error("no"), times=1), retries=5)
    with pytest.raises(error):
        client.caption(b"picture")
    assert len(traffic.requests) == 1


def test_a_full_queue_is_waited_out(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "LONGEST_PAUSE", 0.01)
    client, traffic = connect(failing(ServerOverloaded("full"), times=20), retries=1)
    assert client.lineup().name == "fake"
    assert len(traffic.requests) == 21


def test_a_queue_that_stays_full_is_an_error_within_the_timeout(connect: Connect) -> None:
    client, traffic = connect(failing(ServerOverloaded("full"), times=10**6), timeout=0.6)
    start = time.monotonic()
    with pytest.raises(ServerOverloaded):
        client.lineup()
    assert time.monotonic() - start < 3
    assert len(traffic.requests) > 1


def test_pauses_grow_with_full_jitter() -> None:
    error = ServerUnreachable("down")
    for attempt in range(12):
        most = min(messages.FIRST_PAUSE * 2**attempt, messages.LONGEST_PAUSE)
        pauses = [messages.pause_before_retry(error, attempt, 99, left=60) for _ in range(300)]
        assert all(pause is not None and 0 <= pause <= most for pause in pauses)
        assert max(filter(None, pauses)) > 0.9 * most
        assert min(filter(None, pauses)) < 0.1 * most
    assert messages.pause_before_retry(error, 0, 99, left=0) is None
