"""Both clients against a stand-in for the server: every test runs with `Client` and with `AsyncClient`."""

import asyncio
import inspect
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    TextError,
)
from tercet.testing import AsyncFakeTransport, FakeTransport, answer
from tercet.transport import Tensors

PICTURES = [bytes([number]) * 8 for number in range(50)]


class Traffic:
    """What reached the stand-in server: requests in order, and how many were under way at once."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, tuple[str, ...]]] = []
        self.now = self.most = 0
        self.closed = False
        self.lock = threading.Lock()

    def begin(self, model: str, outputs: Sequence[str]) -> None:
        with self.lock:
            self.requests.append((model, tuple(outputs)))
            self.now += 1
            self.most = max(self.most, self.now)

    def end(self) -> None:
        with self.lock:
            self.now -= 1

    @property
    def models(self) -> list[str]:
        return [model for model, _ in self.requests]


class Watched(FakeTransport):
    """A stand-in that records its traffic and takes its time."""

    def __init__(self, answer: Any, traffic: Traffic, delay: Callable[[], float]) -> None:
        super().__init__(answer)
        self.traffic, self.delay = traffic, delay

    def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout: float
    ) -> Tensors:
        self.traffic.begin(model, outputs)
        try:
            time.sleep(self.delay())
            return super().infer(model, inputs, outputs, timeout)
        finally:
            self.traffic.end()

    def close(self) -> None:
        self.traffic.closed = True


class AsyncWatched(AsyncFakeTransport):
    """`Watched` for asyncio."""

    def __init__(self, answer: Any, traffic: Traffic, delay: Callable[[], float]) -> None:
        super().__init__(answer)
        self.traffic, self.delay = traffic, delay

    async def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout: float
    ) -> Tensors:
        self.traffic.begin(model, outputs)
        try:
            await asyncio.sleep(self.delay())
            return await super().infer(model, inputs, outputs, timeout)
        finally:
            self.traffic.end()

    async def close(self) -> None:
        self.traffic.closed = True


class Blocking:
    """An `AsyncClient` whose methods wait for their results, so that one test tries both clients."""

    def __init__(self, runner: asyncio.Runner, client: AsyncClient) -> None:
        self._runner, self._client = runner, client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = getattr(self._client, name)(*arguments, **options)
            return self._iterate(result) if inspect.isasyncgen(result) else self._runner.run(result)

        return call

    def _iterate(self, results: Any) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(results)

        try:
            while True:
                yield self._runner.run(following())
        except StopAsyncIteration:
            return
        finally:
            self._runner.run(results.aclose())


Connect = Callable[..., tuple[Any, Traffic]]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes a client of a stand-in server, and its traffic: `connect(answer, delay=..., **options)`."""
    runner = asyncio.Runner()
    clients: list[Any] = []

    def make(
        given: Any = answer, delay: Callable[[], float] = lambda: 0.0, **options: Any
    ) -> tuple[Any, Traffic]:
        traffic = Traffic()
        if request.param == "sync":
            clients.append(Client(transport=Watched(given, traffic, delay), **options))
        else:
            transport = AsyncWatched(given, traffic, delay)
            clients.append(Blocking(runner, AsyncClient(transport=transport, **options)))
        return clients[-1], traffic

    yield make
    for client in clients:
        client.close()
    runner.close()


def failing(error: TercetError, *, times: int) -> Callable[[str, Mapping[str, np.ndarray]], Tensors]:
    """An answer that fails `times` times before it works."""
    left = [times]

    def fail_first(model: str, inputs: Mapping[str, np.ndarray]) -> Tensors:
        if left[0]:
            left[0] -= 1
            raise error
        return answer(model, inputs)

    return fail_first


def test_the_clients_mirror_each_other() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: [
                str(parameter).partition(":")[0]
                for parameter in inspect.signature(method).parameters.values()
            ]
            for name, method in methods
            if not name.startswith("_") or name == "__init__"
        }

    assert public(Client) == public(AsyncClient)


def test_one_gives_one_and_many_give_many(connect: Connect) -> None:
    client, _ = connect()
    assert client.embed_images(PICTURES[0]).shape == (16,)
    assert client.embed_images(PICTURES[:3]).shape == (3, 16)
    assert client.embed_images(iter(PICTURES[:1])).shape == (1, 16)
    assert client.embed_images([]).shape == (0, 16)
    assert client.embed_images(np.zeros((4, 4, 3), np.uint8)).shape == (16,)
    assert client.embed_images(np.zeros((2, 4, 4, 3), np.uint8)).shape == (2, 16)
    assert client.embed_texts("a dog").shape == (16,)
    assert client.embed_texts(["a dog", "a cat"]).shape == (2, 16)
    assert client.caption(PICTURES[0]).text.startswith("a picture of ")
    assert [caption.foreground.shape for caption in client.caption(PICTURES[:2])] == [(8, 8, 3)] * 2
    assert client.caption([]) == []
    assert client.token_counts(["a dog", "a dog runs"]).tolist() == [4, 5]
    assert client.token_counts("a dog").tolist() == [4]
    assert client.pseudo_tokens(PICTURES[0]).shape == (16,)
    assert client.pseudo_tokens(PICTURES[:2]).shape == (2, 16)
    assert client.lineup().name == "fake"
    assert client.ready()


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
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tercet")]


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


@pytest.mark.parametrize("options", [{"timeout": 0}, {"retries": -1}, {"in_flight": 0}])
def test_settings_that_cannot_work_are_refused(connect: Connect, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="in_flight at least 1"):
        connect(**options)


def test_the_background_chooses_the_model(connect: Connect) -> None:
    client, traffic = connect()
    kept = client.caption(b"x", background="keep")
    assert kept.foreground is None
    assert kept.mask is None
    removed = client.caption(b"x")
    assert removed.mask.shape == (8, 8)
    assert client.caption(b"x", foreground=False).foreground is None
    assert traffic.requests == [
        ("caption_image", ("caption", "score")),
        ("caption_foreground", ("caption", "score", "foreground", "mask")),
        ("caption_foreground", ("caption", "score")),
    ]
    with pytest.raises(ValueError, match="not 'blur'"):
        client.caption(b"x", background="blur")


def test_bad_texts_are_named(connect: Connect) -> None:
    client, _ = connect()
    for texts, complaint in (
        (["a dog", " "], "text 1 is empty"),
        (["a dog", 3], "text 1 is int"),
        (["a\ud800"], "text 0 has a lone surrogate"),
        (["a dog", "word " * 10_000], "text 1 has 10002 tokens.* reads 77"),
    ):
        with pytest.raises(TextError, match=complaint):
            client.embed_texts(texts)
    with pytest.raises(TextError, match="text 0 is empty"):
        client.embed_texts("")
    good, bad = client.embed_texts_iter(["a dog", ""])
    assert good.shape == (16,)
    assert isinstance(bad, TextError)


def test_pseudo_tokens_go_with_their_texts(connect: Connect) -> None:
    client, traffic = connect()
    tokens = client.pseudo_tokens(PICTURES[:2])
    texts = ["a photo of * , blue", "a photo of * , red"]
    rows = client.embed_texts(texts, pseudo_tokens=tokens)
    assert np.array_equal(rows[1], client.embed_texts(texts[1], pseudo_tokens=tokens[1]))
    assert not np.array_equal(rows[1], client.embed_texts(texts[1], pseudo_tokens=tokens[0]))
    assert traffic.models.count("embed_text_with_token") == 4
    with pytest.raises(ValueError, match="shorter"):
        client.embed_texts(texts, pseudo_tokens=tokens[:1])


def test_a_query_is_captioned_fused_and_embedded(connect: Connect) -> None:
    client, traffic = connect()
    query = client.compose_queries(PICTURES[0], "in blue")
    assert query.composition.text == f"{query.caption.text}, in blue"
    assert traffic.models.count("embed_text") == 1
    assert np.array_equal(query.embedding, client.embed_texts(query.composition.text))
    many = client.compose_queries(PICTURES[:3], ["in blue", "in red", "at night"], background="keep")
    assert [made.composition.modification for made in many] == ["in blue", "in red", "at night"]
    assert many[0].caption.foreground is None


def test_a_text_that_fits_is_embedded_once(connect: Connect) -> None:
    client, traffic = connect()
    query = client.compose_queries(
        b"x", "\u00fcber a modification that is too long for a bound to tell, " * 2
    )
    assert not query.composition.caption_cut
    assert sorted(traffic.models) == ["caption_foreground", "describe_lineup", "embed_text"]


def test_a_long_caption_is_cut_with_the_servers_own_counts(connect: Connect) -> None:
    def wordy(model: str, inputs: Mapping[str, np.ndarray]) -> Tensors:
        given = answer(model, inputs)
        return (
            given | {"caption": np.array([["word " * 200]], dtype=np.object_)}
            if "caption" in given
            else given
        )

    client, _ = connect(wordy)
    query = client.compose_queries(b"x", "in blue, on a beach")
    assert query.composition.caption_cut
    assert query.composition.text == " ".join(["word"] * 70) + ", in blue, on a beach"
    assert np.array_equal(query.embedding, client.embed_texts(query.composition.text))
    assert client.token_counts([query.composition.text]).tolist() == [77]


def test_the_pseudo_word_template_needs_no_caption(connect: Connect) -> None:
    client, traffic = connect()
    query = client.compose_queries(b"x", "in blue", template="pic2word")
    assert query.caption is None
    assert query.composition.text == "a photo of * , in blue"
    assert sorted(traffic.models) == ["describe_lineup", "embed_text_with_token", "image_token"]
    token = client.pseudo_tokens(b"x")
    assert np.array_equal(query.embedding, client.embed_texts(query.composition.text, pseudo_tokens=token))


def test_queries_that_do_not_pair_up_are_refused(connect: Connect) -> None:
    client, _ = connect()
    with pytest.raises(TypeError, match="one modification"):
        client.compose_queries(b"x", ["a", "b"])
    with pytest.raises(TypeError, match="as many modifications"):
        client.compose_queries([b"x"], "a")
    with pytest.raises(ValueError, match="shorter"):
        client.compose_queries([b"x", b"y"], ["a"])
    with pytest.raises(TextError, match="neither one of"):
        client.compose_queries(b"x", "a", template="no such")
    with pytest.raises(TextError, match="modification is empty"):
        client.compose_queries(b"x", "")
    with pytest.raises(TextError, match="the modification alone has 102 tokens"):
        client.compose_queries(b"x", "word " * 100)


def test_the_stand_in_lacks_what_no_lineup_has() -> None:
    with pytest.raises(ModelMissing, match="nonsense"):
        FakeTransport().infer("nonsense", {}, [], 1)
