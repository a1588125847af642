"""What Tercet's models are asked and what they answer, as plain values: what the two clients share.

Nothing here talks to a server.
"""

import random
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from tercet.composition import check_text
from tercet.errors import (
    InferenceError,
    InputError,
    PictureError,
    ServerOverloaded,
    ServerUnreachable,
    TercetError,
    TextError,
)
from tercet.pictures import Picture, encode_picture, picture_name

__all__ = ["Background", "Caption"]

Background = Literal["remove", "keep"]
Tensors = Mapping[str, np.ndarray]
Vector = NDArray[np.float32]
Result = TypeVar("Result")
ItemError: TypeAlias = InputError | InferenceError
"""What one item of a stream can fail with and leave the others unharmed; other failures end the stream."""
Results: TypeAlias = Generator[Result | ItemError, None, None]
AsyncResults: TypeAlias = AsyncGenerator[Result | ItemError, None]

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
LOOKAHEAD = 2
"""Items taken from the caller per request in flight, so that a slow answer does not hold up the others."""


@dataclass(frozen=True, eq=False)
class Caption:
    """What the captioner says of a picture, and the picture it saw.

    `score` is the caption's log-probability as its search ranks it. `foreground` (uint8 [V, V, 3], the
    picture over a plain background) and `mask` (float32 [V, V] in 0..1) are None where the background was
    kept or they were not asked for. `coverage` is the mask's mean: the share of the picture that is left.
    """

    text: str
    score: float
    foreground: NDArray[np.uint8] | None = None
    mask: Vector | None = None
    coverage: float | None = None


@dataclass(frozen=True, eq=False)
class Request:
    """One request to one model; `name` is what errors call the item it is about."""

    model: str
    inputs: Tensors
    outputs: tuple[str, ...]
    name: str = ""


def check_limits(timeout: float, retries: int, in_flight: int) -> None:
    """Refuse settings with which nothing could be sent."""
    if timeout <= 0 or retries < 0 or in_flight < 1:
        raise ValueError("timeout must be over 0 s, retries at least 0 and in_flight at least 1")


def named_picture(picture: Picture, position: int) -> tuple[str, bytes]:
    """The picture's name for messages and its encoded file; PictureError if it cannot be sent."""
    name = picture_name(picture, position)
    return name, encode_picture(picture, name)


def named_text(text: str, position: int) -> tuple[str, str]:
    """The text's name for messages and the text; TextError if it cannot be sent."""
    name = f"text {position}"
    return name, check_text(text, name)


def caption_request(
    name: str, encoded: bytes, background: Background, foreground: bool, mask: bool = False
) -> Request:
    """Ask for a caption; without background also for the mask, or for the foreground and the mask."""
    if background not in ("remove", "keep"):
        raise ValueError(f'background is "remove" or "keep", not {background!r}')
    model = "caption_foreground" if background == "remove" else "caption_image"
    pictures = ("foreground", "mask") if foreground else ("mask",) if mask else ()
    if background == "keep":
        pictures = ()
    return Request(model, {"image": _bytes(encoded)}, ("caption", "score", *pictures), name)


def embed_image_request(name: str, encoded: bytes) -> Request:
    """Ask for a picture's embedding."""
    return Request("embed_image", {"image": _bytes(encoded)}, ("embedding",), name)


def pseudo_token_request(name: str, encoded: bytes) -> Request:
    """Ask for the pseudo-word that Pic2Word's network makes of a picture."""
    return Request("image_token", {"image": _bytes(encoded)}, ("pseudo_token",), name)


def embed_text_request(name: str, text: str, pseudo_token: Vector | None) -> Request:
    """Ask for a text's embedding and its token count; `pseudo_token` f32 [W] is for its `*`."""
    inputs = {"text": _bytes(text.encode())}
    if pseudo_token is None:
        return Request("embed_text", inputs, ("embedding", "token_count"), name)
    inputs["pseudo_token"] = np.asarray(pseudo_token, dtype=np.float32)[None]
    return Request("embed_text_with_token", inputs, ("embedding", "token_count"), name)


def token_count_request(name: str, text: str) -> Request:
    """Ask how many tokens a text has, start and end included."""
    return Request("tokenize_text", {"text": _bytes(text.encode())}, ("token_count",), name)


def lineup_request() -> Request:
    """Ask for the manifest."""
    return Request("describe_lineup", {"request": _bytes(b"lineup")}, ("lineup",))


def read_caption(answer: Tensors) -> Caption:
    """The caption in an answer to `caption_request`."""
    foreground, mask = answer.get("foreground"), answer.get("mask")
    return Caption(
        text=read_string(answer["caption"]),
        score=float(answer["score"].item()),
        foreground=None if foreground is None else foreground[0],
        mask=None if mask is None else mask[0],
        coverage=None if mask is None else float(mask[0].mean(dtype=np.float64)),
    )


def read_string(tensor: np.ndarray) -> str:
    """The one string in a BYTES tensor [1, 1]."""
    value = tensor.item()
    return value if isinstance(value, str) else value.decode()


def check_token_count(name: str, count: int, limit: int) -> None:
    """Refuse a text whose end the encoder would not have read.

    Raises:
        TextError: `count` is over `limit`.
    """
    if count > limit:
        raise TextError(
            f"{name} has {count} tokens, start and end included; the text encoder reads {limit}: "
            f"shorten it by about {count - limit} tokens"
        )


def about(error: TercetError, name: str) -> TercetError:
    """`error` with the item it is about named, where it is about an item."""
    if isinstance(error, PictureError | TextError) and name and not str(error).startswith(f"{name}: "):
        return type(error)(f"{name}: {error}")
    return error


def pause_before_retry(error: TercetError, attempt: int, retries: int, left: float) -> float | None:
    """Seconds to wait before sending a request again, or None to give up.

    Exponential back-off with full jitter (Brooker, "Exponential Backoff And Jitter", AWS blog, 2015). A
    server that nobody reaches is tried `retries` more times; a full queue is waited out while time is `left`.
    """
    unreachable = isinstance(error, ServerUnreachable) and attempt < retries
    overloaded = isinstance(error, ServerOverloaded) and retries > 0
    pause = random.uniform(0, min(FIRST_PAUSE * 2 ** min(attempt, 16), LONGEST_PAUSE))
    return pause if (unreachable or overloaded) and pause < left else None


def all_or_first_error(results: Results[Result]) -> list[Result]:
    """The results as a list; raises the first error among them."""
    values: list[Result] = []
    with closing(results):
        for result in results:
            if isinstance(result, ItemError):
                raise result
            values.append(result)
    return values


def _bytes(value: bytes) -> np.ndarray:
    return np.array([[value]], dtype=np.object_)
