"""What load is put on: one ensemble, by requests made beforehand, or the whole composed query."""

import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np

from tercet import messages
from tercet.bench.values import Done
from tercet.client import Client
from tercet.compositions.settings import BackgroundChoice
from tercet.errors import ModelMissing, TercetError
from tercet.index import GalleryIndex, build_index
from tercet.messages import Request
from tercet.transport import channel_options, translate_error

__all__ = [
    "ENSEMBLES",
    "QUERY",
    "EnsembleTarget",
    "Inputs",
    "QueryTarget",
    "check_served",
    "requests_for",
    "serialise",
]

QUERY = "query"
ASKED = 10
"""Pictures that a query asks the index for."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What requests are made of: encoded pictures, texts, and where they come from."""

    pictures: Sequence[bytes]
    texts: Sequence[str]
    source: str = "made"
    pseudo_tokens: Callable[[], np.ndarray] | None = field(default=None, repr=False)


def _of_pictures(make: Callable[[str, bytes], Request]) -> Callable[[Inputs], Iterable[Request]]:
    return lambda inputs: (make("", picture) for picture in inputs.pictures)


def _with_token(inputs: Inputs) -> Iterable[Request]:
    assert inputs.pseudo_tokens is not None
    tokens = cycle(inputs.pseudo_tokens())
    return (
        messages.embed_text_request("", f"a photo of * , {text}", token)
        for text, token in zip(inputs.texts, tokens, strict=False)
    )


ENSEMBLES: dict[str, Callable[[Inputs], Iterable[Request]]] = {
    "embed_image": _of_pictures(messages.embed_image_request),
    "embed_text": lambda inputs: (messages.embed_text_request("", text, None) for text in inputs.texts),
    "caption_foreground": _of_pictures(
        lambda name, file: messages.caption_request(name, file, "remove", False)
    ),
    "caption_image": _of_pictures(lambda name, file: messages.caption_request(name, file, "keep", False)),
    "image_token": _of_pictures(messages.pseudo_token_request),
    "embed_text_with_token": _with_token,
}
"""The requests of each ensemble: what `Client` would send, with the outputs that it would ask for."""

NEEDED = {
    QUERY: ("caption_foreground", "embed_text", "embed_image"),
    "embed_text_with_token": ("embed_text_with_token", "image_token"),
}
"""What a target needs of the server besides itself, to be asked or to make its requests of."""


def requests_for(model: str, inputs: Inputs, timeout: float) -> list[bytes]:
    """The serialised requests to an ensemble, one for each of the inputs."""
    return [serialise(request, timeout) for request in ENSEMBLES[model](inputs)]


def serialise(request: Request, timeout: float) -> bytes:
    """A request as it travels, gRPC's frame aside; the server drops it when `timeout` seconds have passed."""
    from tritonclient.grpc.service_pb2 import ModelInferRequest

    message = ModelInferRequest(model_name=request.model)
    message.parameters["timeout"].int64_param = int(timeout * 1e6)
    for name, values in request.inputs.items():
        text = values.dtype == np.object_
        message.inputs.add(name=name, datatype="BYTES" if text else "FP32", shape=values.shape)
        raw = (
            b"".join(struct.pack("<I", len(item)) + item for item in values.flat)
            if text
            else values.tobytes()
        )
        message.raw_input_contents.append(raw)
    for name in request.outputs:
        message.outputs.add(name=name)
    return message.SerializeToString()


class EnsembleTarget:
    """One model, asked over one gRPC channel with bytes made beforehand; answers are not even parsed.

    So a request costs this process about a tenth of a millisecond of processor time, a third less than by
    tritonclient's own calls.
    """

    def __init__(self, name: str, address: str, requests: Sequence[bytes], timeout: float) -> None:
        import grpc

        self.name = name
        self._address = address
        self._requests = requests
        self._timeout = timeout
        self._channel = grpc.insecure_channel(address, channel_options(address))
        self._infer = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def send(self, number: int, done: Done) -> None:
        """Send one of the requests, each in turn."""
        call = self._infer.future(self._requests[number % len(self._requests)], timeout=self._timeout)
        call.add_done_callback(lambda answered: done(self._failure(answered)))

    def close(self) -> None:
        """Disconnect."""
        self._channel.close()

    def _failure(self, call: Any) -> TercetError | None:
        import grpc

        if (status := call.code()) is grpc.StatusCode.OK:
            return None
        from tritonclient.utils import InferenceServerException

        error = InferenceServerException(call.details(), status=str(status))
        return translate_error(error, self.name, {}, self._address, self._timeout)


class QueryTarget:
    """The whole composed query as a user asks it: `Client.compose_queries`, then the index.

    Without an `index`, one of the pictures at hand is made. Every query under way has a thread of its own.
    `background` is what `compose_queries` takes.
    """

    name = QUERY

    def __init__(
        self,
        address: str,
        inputs: Inputs,
        index: Path | None,
        timeout: float,
        threads: int,
        background: BackgroundChoice | None = None,
    ) -> None:
        self._inputs, self._background = inputs, background
        self._client = Client(address, timeout=timeout, retries=0, remember=0)
        self._pool = ThreadPoolExecutor(threads, "tercet-query")
        self._lock = Lock()
        self._searches = 0
        self._search_seconds = 0.0
        with TemporaryDirectory(prefix="tercet-bench-") as folder:
            if index is None:
                self.index = _own_index(self._client, inputs.pictures, Path(folder))
            else:
                fingerprint = self._client.lineup().encoder_fingerprint
                self.index = GalleryIndex.load(index, encoder_fingerprint=fingerprint)

    @property
    def gallery(self) -> int:
        """How many pictures are searched."""
        return len(self.index)

    def send(self, number: int, done: Done) -> None:
        """Ask one query."""
        pictures, texts = self._inputs.pictures, self._inputs.texts
        self._pool.submit(self._ask, pictures[number % len(pictures)], texts[number % len(texts)], done)

    def searching(self) -> tuple[int, float]:
        """How many searches there were, and the seconds they took, since the last call."""
        with self._lock:
            found = self._searches, self._search_seconds
            self._searches, self._search_seconds = 0, 0.0
            return found

    def close(self) -> None:
        """Disconnect."""
        self._client.close()
        self._pool.shutdown(cancel_futures=True)

    def _ask(self, picture: bytes, text: str, done: Done) -> None:
        failure: TercetError | None = None
        try:
            query = self._client.compose_queries(picture, text, background=self._background)
            started = perf_counter()
            self.index.search(query.embedding[None], ASKED)
            with self._lock:
                self._searches += 1
                self._search_seconds += perf_counter() - started
        except TercetError as error:
            failure = error
        except Exception as error:  # it must not be waited for, whatever befell it
            failure = TercetError(f"{type(error).__name__}: {error}")
        done(failure)


def _own_index(client: Client, pictures: Sequence[bytes], folder: Path) -> GalleryIndex:
    """An index of the pictures themselves, held in memory once its folder is gone."""
    gallery = folder / "gallery"
    gallery.mkdir()
    for number, picture in enumerate(pictures):
        (gallery / f"{number:04}.jpg").write_bytes(picture)
    build_index(gallery, folder / "index", client)
    return GalleryIndex.load(folder / "index")


def check_served(model: str, served: Iterable[str], address: str) -> None:
    """Refuse a target that the server cannot answer.

    Raises:
        ModelMissing: names what is served.
    """
    missing = [name for name in NEEDED.get(model, (model,)) if name not in served]
    if missing:
        known = [name for name in (*ENSEMBLES, QUERY) if name in served]
        raise ModelMissing(
            f"the server at {address} does not serve {', '.join(missing)}, which {model} needs; it serves "
            f"{', '.join(known) or 'none of the ensembles'}: choose among them (--model), or export a lineup "
            "with the networks, such as tercet-export lineup demo"
        )
