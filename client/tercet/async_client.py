"""`AsyncClient`: `Client` for asyncio, method by method."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from tercet import messages
from tercet.compositions import requests
from tercet.compositions.driving import drive_async
from tercet.compositions.memory import LINEUP_SECONDS, REMEMBERED, AnswerMemory
from tercet.compositions.needs import Answer, Need, PseudoTokenNeed, RewriteNeed, Rewritten, TextNeed
from tercet.compositions.registry import Recipe, check_needs
from tercet.compositions.rewrite import Rewriter
from tercet.compositions.scoring import ComposedQuery
from tercet.compositions.settings import BackgroundChoice, Settings, Value
from tercet.errors import InferenceError, InputError, TercetError
from tercet.lineup import Lineup, parse_lineup
from tercet.messages import AsyncResults, Background, Caption, ItemError, Vector
from tercet.pictures import Picture, is_picture
from tercet.transport import AsyncGrpcTransport, AsyncTransport, Tensors

__all__ = ["AsyncClient"]

Given = TypeVar("Given")
Result = TypeVar("Result")


class AsyncClient:
    """A connection to one or several Triton servers for one event loop; see `Client`, which it mirrors.

    ```python
    async with tercet.AsyncClient("localhost:8001") as client:
        caption = await client.caption("dress.jpg")
        async for embedding in client.embed_images_iter(paths):
            ...
    ```

    Files are read and pictures encoded in threads, so that the event loop does not wait for them.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "localhost:8001",
        *,
        timeout: float = 60.0,
        retries: int = 3,
        in_flight: int = 32,
        transport: AsyncTransport | None = None,
        rewriter: Callable[[RewriteNeed], Rewritten] | None = None,
        remember: int = REMEMBERED,
    ) -> None:
        """As in `Client`; `transport` may be `tercet.testing.AsyncFakeTransport()`."""
        messages.check_limits(timeout, retries, in_flight)
        self._transport = transport if transport is not None else AsyncGrpcTransport(address)
        self._timeout = timeout
        self._retries = retries
        self._in_flight = in_flight
        self._slots = asyncio.Semaphore(in_flight)
        self._closed = False
        self._memory = AnswerMemory(remember)
        self._known_lineup: tuple[Lineup, float] | None = None
        self._own_rewriter = Rewriter()
        self._rewriter = self._own_rewriter if rewriter is None else rewriter

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Disconnect; the client cannot be used again."""
        self._closed = True
        await self._transport.close()
        self._own_rewriter.close()

    async def ready(self) -> bool:
        """Whether a server answers and all its models are ready."""
        self._check_open()
        return await self._transport.ready(self._timeout)

    async def lineup(self) -> Lineup:
        """What the server is made of: see `Client.lineup`."""
        return parse_lineup(messages.read_string((await self._infer(messages.lineup_request()))["lineup"]))

    @overload
    async def caption(  # type: ignore[overload-overlap]
        self, images: Picture, *, background: Background = ..., foreground: bool = ...
    ) -> Caption: ...
    @overload
    async def caption(
        self, images: Iterable[Picture], *, background: Background = ..., foreground: bool = ...
    ) -> list[Caption]: ...
    async def caption(
        self,
        images: Picture | Iterable[Picture],
        *,
        background: Background = "remove",
        foreground: bool = True,
    ) -> Caption | list[Caption]:
        """Describe one picture or many in a sentence: see `Client.caption`."""
        if is_picture(images):
            return await self._caption(images, 0, background, foreground)
        return await _all_or_first_error(
            self.caption_iter(images, background=background, foreground=foreground)
        )

    def caption_iter(
        self, images: Iterable[Picture], *, background: Background = "remove", foreground: bool = True
    ) -> AsyncResults[Caption]:
        """`caption` for a stream: an unusable picture's error stands in its place."""
        return self._stream(images, lambda image, at: self._caption(image, at, background, foreground))

    async def embed_images(self, images: Picture | Iterable[Picture]) -> Vector:
        """Embed one picture, float32 [D], or many, [N, D], of unit length: see `Client.embed_images`."""
        if is_picture(images):
            return await self._embed_image(images, 0)
        return await self._matrix(await _all_or_first_error(self.embed_images_iter(images)))

    def embed_images_iter(self, images: Iterable[Picture]) -> AsyncResults[Vector]:
        """`embed_images` for a stream: float32 [D] per picture, an unusable picture's error in its place."""
        return self._stream(images, self._embed_image)

    async def embed_texts(self, texts: str | Iterable[str], *, pseudo_tokens: Vector | None = None) -> Vector:
        """Embed one text, float32 [D], or many, [N, D], of unit length: see `Client.embed_texts`."""
        if isinstance(texts, str):
            return await self._embed_text(texts, 0, pseudo_tokens)
        if pseudo_tokens is None:
            return await self._matrix(await _all_or_first_error(self.embed_texts_iter(texts)))
        pairs = zip(texts, pseudo_tokens, strict=True)
        results = self._stream(pairs, lambda pair, at: self._embed_text(pair[0], at, pair[1]))
        return await self._matrix(await _all_or_first_error(results))

    def embed_texts_iter(self, texts: Iterable[str]) -> AsyncResults[Vector]:
        """`embed_texts` for a stream: float32 [D] per text, an unusable text's error in its place."""
        return self._stream(texts, self._embed_text)

    async def pseudo_tokens(self, images: Picture | Iterable[Picture]) -> Vector:
        """Turn one picture, float32 [W], or many, [N, W], into Pic2Word's pseudo-words for `embed_texts`."""
        if is_picture(images):
            return await self._pseudo_token(images, 0)
        rows = await _all_or_first_error(self._stream(images, self._pseudo_token))
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)

    async def token_counts(self, texts: Iterable[str]) -> NDArray[np.int32]:
        """Count each text's tokens, start and end included, before any cut: int32 [N]."""
        given = [texts] if isinstance(texts, str) else texts
        counts = await _all_or_first_error(self._stream(given, self._token_count))
        return np.array(counts, dtype=np.int32)

    @overload
    async def compose_queries(  # type: ignore[overload-overlap]
        self,
        images: Picture,
        modifications: str,
        *,
        composition: str = ...,
        background: BackgroundChoice | None = ...,
        template: str | None = ...,
        settings: Settings | Mapping[str, Value] | None = ...,
    ) -> ComposedQuery: ...
    @overload
    async def compose_queries(
        self,
        images: Iterable[Picture],
        modifications: Iterable[str],
        *,
        composition: str = ...,
        background: BackgroundChoice | None = ...,
        template: str | None = ...,
        settings: Settings | Mapping[str, Value] | None = ...,
    ) -> list[ComposedQuery]: ...
    async def compose_queries(
        self,
        images: Picture | Iterable[Picture],
        modifications: str | Iterable[str],
        *,
        composition: str = "caption",
        background: BackgroundChoice | None = None,
        template: str | None = None,
        settings: Settings | Mapping[str, Value] | None = None,
    ) -> ComposedQuery | list[ComposedQuery]:
        """Turn reference picture and modification into a query: see `Client.compose_queries`."""
        recipe, knobs = requests.chosen(composition, settings, background, template)
        if is_picture(images):
            if not isinstance(modifications, str):
                raise TypeError("one picture goes with one modification, not with several")
            return await self._compose_query((images, modifications), 0, recipe, knobs)
        if isinstance(modifications, str):
            raise TypeError("many pictures go with as many modifications, not with one text")
        pairs = zip(images, modifications, strict=True)
        return await _all_or_first_error(
            self._stream(pairs, lambda pair, at: self._compose_query(pair, at, recipe, knobs))
        )

    async def answer(self, need: Need, picture: Picture, *, pseudo_token: Vector | None = None) -> Answer:
        """Answer one thing that a composition's plan asks for: see `Client.answer`."""
        reference = await asyncio.to_thread(requests.read_reference, picture) if need.of_reference else None
        return await self._answer(need, reference, pseudo_token, foreground=False)

    # One item each.

    async def _caption(
        self, image: Picture, position: int, background: Background, foreground: bool
    ) -> Caption:
        name, encoded = await asyncio.to_thread(messages.named_picture, image, position)
        request = messages.caption_request(name, encoded, background, foreground)
        return messages.read_caption(await self._infer(request))

    async def _embed_image(self, image: Picture, position: int) -> Vector:
        name, encoded = await asyncio.to_thread(messages.named_picture, image, position)
        return (await self._infer(messages.embed_image_request(name, encoded)))["embedding"][0]

    async def _pseudo_token(self, image: Picture, position: int) -> Vector:
        name, encoded = await asyncio.to_thread(messages.named_picture, image, position)
        return (await self._infer(messages.pseudo_token_request(name, encoded)))["pseudo_token"][0]

    async def _embed_text(self, text: str, position: int, pseudo_token: Vector | None = None) -> Vector:
        name, text = messages.named_text(text, position)
        embedding, count = await self._embed_and_count(name, text, pseudo_token)
        messages.check_token_count(name, count, (await self._kept_lineup()).context_length)
        return embedding

    async def _embed_and_count(self, name: str, text: str, pseudo_token: Vector | None) -> tuple[Vector, int]:
        answer = await self._infer(messages.embed_text_request(name, text, pseudo_token))
        return answer["embedding"][0], int(answer["token_count"].item())

    async def _token_count(self, text: str, position: int) -> int:
        name, text = messages.named_text(text, position)
        return int((await self._infer(messages.token_count_request(name, text)))["token_count"].item())

    async def _compose_query(
        self, pair: tuple[Picture, str], position: int, recipe: Recipe, settings: Settings
    ) -> ComposedQuery:
        image, modification = pair
        reference = await asyncio.to_thread(requests.read_reference, image, position)
        lineup = await self._kept_lineup()
        check_needs(recipe, settings, lineup)
        token: Vector | None = None

        async def answer(need: Need) -> Answer:
            nonlocal token
            given = await self._answer(need, reference, token, foreground=True)
            if isinstance(need, PseudoTokenNeed):
                assert isinstance(given, np.ndarray)
                token = given
            return given

        return await drive_async(recipe.plan(modification, settings, lineup.context_length), answer)

    async def _answer(
        self, need: Need, reference: requests.Reference | None, token: Vector | None, foreground: bool
    ) -> Answer:
        if isinstance(need, RewriteNeed):
            return await asyncio.to_thread(self._rewriter, need)
        if isinstance(need, TextNeed) and need.pseudo_token and token is None:
            given = await self._answer(PseudoTokenNeed(), reference, None, foreground=False)
            token = given if isinstance(given, np.ndarray) else None
        lineup = await self._kept_lineup()
        key = requests.memory_key(need, reference, lineup, foreground) if self._memory else None
        known = self._memory.get(key)
        if known is not None:
            return known
        request = await asyncio.to_thread(requests.request_of, need, reference, token, foreground)
        answer = requests.read_answer(need, await self._infer(request))
        self._memory.put(key, answer)
        return answer

    async def _kept_lineup(self) -> Lineup:
        if self._known_lineup is None or time.monotonic() > self._known_lineup[1] + LINEUP_SECONDS:
            self._known_lineup = await self.lineup(), time.monotonic()
        return self._known_lineup[0]

    async def _matrix(self, rows: list[Vector]) -> Vector:
        if rows:
            return np.stack(rows)
        return np.empty((0, (await self.lineup()).embedding_dimension), np.float32)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client has been closed; make a new one")

    async def _infer(self, request: messages.Request) -> Tensors:
        """Send one request, again where `messages.pause_before_retry` says so."""
        deadline = time.monotonic() + self._timeout
        attempt = 0
        while True:
            self._check_open()
            left = max(deadline - time.monotonic(), 0.001)
            try:
                return await self._transport.infer(request.model, request.inputs, request.outputs, left)
            except TercetError as error:
                left = deadline - time.monotonic()
                pause = messages.pause_before_retry(error, attempt, self._retries, left)
                if pause is None:
                    raise messages.about(error, request.name) from error.__cause__
            attempt += 1
            await asyncio.sleep(pause)

    def _stream(
        self, items: Iterable[Given], work: Callable[[Given, int], Awaitable[Result]]
    ) -> AsyncResults[Result]:
        """Yield `work(item, position)` of every item in order, `in_flight` at work, twice as many taken."""
        self._check_open()
        return self._results(items, work)

    async def _results(
        self, items: Iterable[Given], work: Callable[[Given, int], Awaitable[Result]]
    ) -> AsyncResults[Result]:
        async def attempt(item: Given, position: int) -> Result | ItemError:
            async with self._slots:
                try:
                    return await work(item, position)
                except (InputError, InferenceError) as error:
                    return error

        pending: deque[asyncio.Task[Result | ItemError]] = deque()
        try:
            for position, item in enumerate(items):
                self._check_open()
                pending.append(asyncio.create_task(attempt(item, position)))
                while pending and (pending[0].done() or len(pending) >= messages.LOOKAHEAD * self._in_flight):
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)


async def _all_or_first_error(results: AsyncResults[Result]) -> list[Result]:
    values: list[Result] = []
    async with aclosing(results):
        async for result in results:
            if isinstance(result, ItemError):
                raise result
            values.append(result)
    return values
