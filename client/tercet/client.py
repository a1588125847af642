"""`Client`: pictures and texts in, captions and embeddings out, from any Triton with a Tercet lineup."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from tercet import messages
from tercet.compositions import requests
from tercet.compositions.driving import drive
from tercet.compositions.memory import LINEUP_SECONDS, REMEMBERED, AnswerMemory
from tercet.compositions.needs import Answer, Need, PseudoTokenNeed, RewriteNeed, Rewritten, TextNeed
from tercet.compositions.registry import Recipe, check_needs
from tercet.compositions.rewrite import Rewriter
from tercet.compositions.scoring import ComposedQuery
from tercet.compositions.settings import BackgroundChoice, Settings, Value
from tercet.errors import InferenceError, InputError, TercetError
from tercet.lineup import Lineup, parse_lineup
from tercet.messages import (
    Background,
    Caption,
    ItemError,
    Results,
    Vector,
    all_or_first_error,
)
from tercet.pictures import Picture, is_picture
from tercet.transport import GrpcTransport, Tensors, Transport

__all__ = ["Background", "Caption", "Client", "ComposedQuery"]

Given = TypeVar("Given")
Result = TypeVar("Result")


class Client:
    """A connection to one or several Triton servers; safe to share between threads.

    ```python
    with tercet.Client("localhost:8001") as client:
        client.caption("dress.jpg").text
        client.embed_images(Path("pictures").glob("*.jpg"))
    ```

    Where a method takes one or many, one gives one result, and any iterable gives a list or a matrix in the
    order given. Many are sent one picture or text per request, at most `in_flight` at once, so that the
    server can batch them with everybody's. The `*_iter` methods take their items as they go, a million paths
    from a generator in constant memory, and give the error of an item that is unusable (`InputError`) or that
    a model fails on (`InferenceError`) in its place; other failures of the server are raised.

    Every method raises `PictureError` or `TextError` for input that cannot be used, naming the item, and
    `ServerUnreachable`, `ServerOverloaded`, `RequestTimeout`, `ModelMissing` or `InferenceError` for the
    server's part.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "localhost:8001",
        *,
        timeout: float = 60.0,
        retries: int = 3,
        in_flight: int = 32,
        transport: Transport | None = None,
        rewriter: Callable[[RewriteNeed], Rewritten] | None = None,
        remember: int = REMEMBERED,
    ) -> None:
        """Connect lazily: a server that is down shows at the first request.

        Args:
            address: Triton's gRPC address, `host:port`, or several of one lineup, used in turn; one that does
                not answer is passed over and tried again later.
            timeout: seconds for one picture or text, retries and waiting in the server's queues included.
            retries: how often a server that cannot be reached is tried again. A full queue is waited out
                until `timeout`, unless `retries` is 0. Nothing else is sent twice.
            in_flight: requests sent and not yet answered, at most.
            transport: takes the place of gRPC, e.g. `tercet.testing.FakeTransport()` in tests.
            rewriter: takes the place of the language model's endpoint for composition "rewrite".
            remember: bytes of answers about references that composed queries keep, so that the same picture
                with another text costs no second captioning. 0: none.
        """
        messages.check_limits(timeout, retries, in_flight)
        self._transport = transport if transport is not None else GrpcTransport(address)
        self._timeout = timeout
        self._retries = retries
        self._in_flight = in_flight
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="tercet")
        self._memory = AnswerMemory(remember)
        self._known_lineup: tuple[Lineup, float] | None = None
        self._own_rewriter = Rewriter()
        self._rewriter = self._own_rewriter if rewriter is None else rewriter

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is under way and disconnect; the client cannot be used again."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._transport.close()
        self._pool.shutdown()
        self._own_rewriter.close()

    def ready(self) -> bool:
        """Whether a server answers and all its models are ready."""
        self._check_open()
        return self._transport.ready(self._timeout)

    def lineup(self) -> Lineup:
        """What the server is made of, asked anew at each call; LineupError if its manifest cannot be read."""
        return parse_lineup(messages.read_string(self._infer(messages.lineup_request())["lineup"]))

    @overload
    def caption(  # type: ignore[overload-overlap]
        self, images: Picture, *, background: Background = ..., foreground: bool = ...
    ) -> Caption: ...
    @overload
    def caption(
        self, images: Iterable[Picture], *, background: Background = ..., foreground: bool = ...
    ) -> list[Caption]: ...
    def caption(
        self,
        images: Picture | Iterable[Picture],
        *,
        background: Background = "remove",
        foreground: bool = True,
    ) -> Caption | list[Caption]:
        """Describe one picture or many in a sentence.

        Args:
            images: one or many of a path, an encoded file's bytes, a Pillow image, a uint8 array [H, W, C].
            background: "remove" captions the object alone; "keep" the whole picture.
            foreground: whether to fetch the picture without its background, and the mask, too.
        """
        if is_picture(images):
            return self._caption(images, 0, background, foreground)
        return all_or_first_error(self.caption_iter(images, background=background, foreground=foreground))

    def caption_iter(
        self, images: Iterable[Picture], *, background: Background = "remove", foreground: bool = True
    ) -> Results[Caption]:
        """`caption` for a stream: an unusable picture's error stands in its place."""
        return self._stream(images, lambda image, at: self._caption(image, at, background, foreground))

    def embed_images(self, images: Picture | Iterable[Picture]) -> Vector:
        """Embed one picture, float32 [D], or many, [N, D], with CLIP's image encoder; unit length."""
        if is_picture(images):
            return self._embed_image(images, 0)
        return self._matrix(all_or_first_error(self.embed_images_iter(images)))

    def embed_images_iter(self, images: Iterable[Picture]) -> Results[Vector]:
        """`embed_images` for a stream: float32 [D] per picture, an unusable picture's error in its place."""
        return self._stream(images, self._embed_image)

    def embed_texts(self, texts: str | Iterable[str], *, pseudo_tokens: Vector | None = None) -> Vector:
        """Embed one text, float32 [D], or many, [N, D], with CLIP's text encoder; unit length.

        A text longer than the encoder reads is a TextError, for its end would be lost.

        Args:
            texts: one or many.
            pseudo_tokens: from `pseudo_tokens`, [W] or [N, W], one per text: each takes the place of the
                first `*` that is a word of its own in its text.
        """
        if isinstance(texts, str):
            return self._embed_text(texts, 0, pseudo_tokens)
        if pseudo_tokens is None:
            return self._matrix(all_or_first_error(self.embed_texts_iter(texts)))
        pairs = zip(texts, pseudo_tokens, strict=True)
        results = self._stream(pairs, lambda pair, at: self._embed_text(pair[0], at, pair[1]))
        return self._matrix(all_or_first_error(results))

    def embed_texts_iter(self, texts: Iterable[str]) -> Results[Vector]:
        """`embed_texts` for a stream: float32 [D] per text, an unusable text's error in its place."""
        return self._stream(texts, self._embed_text)

    def pseudo_tokens(self, images: Picture | Iterable[Picture]) -> Vector:
        """Turn one picture, float32 [W], or many, [N, W], into Pic2Word's pseudo-words for `embed_texts`."""
        if is_picture(images):
            return self._pseudo_token(images, 0)
        rows = all_or_first_error(self._stream(images, self._pseudo_token))
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)

    def token_counts(self, texts: Iterable[str]) -> NDArray[np.int32]:
        """Count each text's tokens, start and end included, before any cut: int32 [N]."""
        given = [texts] if isinstance(texts, str) else texts
        return np.array(all_or_first_error(self._stream(given, self._token_count)), dtype=np.int32)

    @overload
    def compose_queries(  # type: ignore[overload-overlap]
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
    def compose_queries(
        self,
        images: Iterable[Picture],
        modifications: Iterable[str],
        *,
        composition: str = ...,
        background: BackgroundChoice | None = ...,
        template: str | None = ...,
        settings: Settings | Mapping[str, Value] | None = ...,
    ) -> list[ComposedQuery]: ...
    def compose_queries(
        self,
        images: Picture | Iterable[Picture],
        modifications: str | Iterable[str],
        *,
        composition: str = "caption",
        background: BackgroundChoice | None = None,
        template: str | None = None,
        settings: Settings | Mapping[str, Value] | None = None,
    ) -> ComposedQuery | list[ComposedQuery]:
        """Turn reference picture and modification into a query to search with.

        One picture and one text give one query; as many pictures as texts give a list. Search with
        `tercet.index.GalleryIndex.search_composed`, which takes the queries of all compositions.

        Args:
            images: the reference pictures.
            modifications: what to change about each.
            composition: how: a name from `tercet.COMPOSITIONS`.
            background: "remove" captions the object alone, "keep" the whole picture, "auto" chooses by the
                modification and the mask. None: what the composition does otherwise, mostly "auto".
            template: how caption and modification are fused: a name in `tercet.TEMPLATES` or a text like
                "a photo of {caption}, {modification}". None: the composition's own.
            settings: the composition's other knobs, by name or whole: see `tercet.Settings`.

        Raises:
            InputError: no such composition, a setting that it does not read, or one out of its range.
            LineupError: the server lacks a network that the composition needs.
        """
        recipe, knobs = requests.chosen(composition, settings, background, template)
        if is_picture(images):
            if not isinstance(modifications, str):
                raise TypeError("one picture goes with one modification, not with several")
            return self._compose_query((images, modifications), 0, recipe, knobs)
        if isinstance(modifications, str):
            raise TypeError("many pictures go with as many modifications, not with one text")
        pairs = zip(images, modifications, strict=True)
        return all_or_first_error(
            self._stream(pairs, lambda pair, at: self._compose_query(pair, at, recipe, knobs))
        )

    def answer(self, need: Need, picture: Picture, *, pseudo_token: Vector | None = None) -> Answer:
        """Answer one thing that a composition's plan asks for: see `tercet.compositions.needs`.

        Args:
            need: what is asked.
            picture: the reference; not read where `need.of_reference` is False.
            pseudo_token: the answer to `PseudoTokenNeed`, if it is known, for a text that holds it.
        """
        reference = requests.read_reference(picture) if need.of_reference else None
        return self._answer(need, reference, pseudo_token, foreground=False)

    # One item each. They run in a stream's worker threads, so none of them may start a stream.

    def _caption(self, image: Picture, position: int, background: Background, foreground: bool) -> Caption:
        name, encoded = messages.named_picture(image, position)
        request = messages.caption_request(name, encoded, background, foreground)
        return messages.read_caption(self._infer(request))

    def _embed_image(self, image: Picture, position: int) -> Vector:
        name, encoded = messages.named_picture(image, position)
        return self._infer(messages.embed_image_request(name, encoded))["embedding"][0]

    def _pseudo_token(self, image: Picture, position: int) -> Vector:
        name, encoded = messages.named_picture(image, position)
        return self._infer(messages.pseudo_token_request(name, encoded))["pseudo_token"][0]

    def _embed_text(self, text: str, position: int, pseudo_token: Vector | None = None) -> Vector:
        name, text = messages.named_text(text, position)
        embedding, count = self._embed_and_count(name, text, pseudo_token)
        messages.check_token_count(name, count, self._kept_lineup().context_length)
        return embedding

    def _embed_and_count(self, name: str, text: str, pseudo_token: Vector | None) -> tuple[Vector, int]:
        answer = self._infer(messages.embed_text_request(name, text, pseudo_token))
        return answer["embedding"][0], int(answer["token_count"].item())

    def _token_count(self, text: str, position: int) -> int:
        name, text = messages.named_text(text, position)
        return int(self._infer(messages.token_count_request(name, text))["token_count"].item())

    def _compose_query(
        self, pair: tuple[Picture, str], position: int, recipe: Recipe, settings: Settings
    ) -> ComposedQuery:
        image, modification = pair
        reference = requests.read_reference(image, position)
        lineup = self._kept_lineup()
        check_needs(recipe, settings, lineup)
        token: Vector | None = None

        def answer(need: Need) -> Answer:
            nonlocal token
            given = self._answer(need, reference, token, foreground=True)
            if isinstance(need, PseudoTokenNeed):
                assert isinstance(given, np.ndarray)
                token = given
            return given

        return drive(recipe.plan(modification, settings, lineup.context_length), answer)

    def _answer(
        self, need: Need, reference: requests.Reference | None, token: Vector | None, foreground: bool
    ) -> Answer:
        if isinstance(need, RewriteNeed):
            return self._rewriter(need)
        if isinstance(need, TextNeed) and need.pseudo_token and token is None:
            given = self._answer(PseudoTokenNeed(), reference, None, foreground=False)
            token = given if isinstance(given, np.ndarray) else None
        key = requests.memory_key(need, reference, self._kept_lineup(), foreground) if self._memory else None
        known = self._memory.get(key)
        if known is not None:
            return known
        request = requests.request_of(need, reference, token, foreground)
        answer = requests.read_answer(need, self._infer(request))
        self._memory.put(key, answer)
        return answer

    def _kept_lineup(self) -> Lineup:
        """The lineup, asked again once in a while: a server may be started anew with another."""
        with self._lock:
            if self._known_lineup is None or time.monotonic() > self._known_lineup[1] + LINEUP_SECONDS:
                self._known_lineup = self.lineup(), time.monotonic()
            return self._known_lineup[0]

    def _matrix(self, rows: list[Vector]) -> Vector:
        return np.stack(rows) if rows else np.empty((0, self.lineup().embedding_dimension), np.float32)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise RuntimeError("the client has been closed; make a new one")

    def _infer(self, request: messages.Request) -> Tensors:
        """Send one request, again where `messages.pause_before_retry` says so."""
        deadline = time.monotonic() + self._timeout
        attempt = 0
        while True:
            self._check_open()
            left = max(deadline - time.monotonic(), 0.001)
            try:
                return self._transport.infer(request.model, request.inputs, request.outputs, left)
            except TercetError as error:
                left = deadline - time.monotonic()
                pause = messages.pause_before_retry(error, attempt, self._retries, left)
                if pause is None:
                    raise messages.about(error, request.name) from error.__cause__
            attempt += 1
            self._closed.wait(pause)

    def _stream(self, items: Iterable[Given], work: Callable[[Given, int], Result]) -> Results[Result]:
        """Yield `work(item, position)` of every item in order, `in_flight` at work, twice as many taken."""
        self._check_open()
        return self._results(items, work)

    def _results(self, items: Iterable[Given], work: Callable[[Given, int], Result]) -> Results[Result]:
        def attempt(item: Given, position: int) -> Result | ItemError:
            try:
                return work(item, position)
            except (InputError, InferenceError) as error:
                return error

        pending: deque[Future[Result | ItemError]] = deque()
        try:
            for position, item in enumerate(items):
                self._check_open()
                pending.append(self._pool.submit(attempt, item, position))
                while pending and (pending[0].done() or len(pending) >= messages.LOOKAHEAD * self._in_flight):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
