"""What a composition asks for while it works, and the answers, as values.

A composition's plan yields needs and is sent their answers, so that the clients, asyncio or not, and the
evaluation with its cache drive the same code. A need is hashable and has a `key` that stays the same over
processes and versions of Python, for a cache on disk; `dump` and `load` turn its answer into bytes and back.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tercet.errors import InputError
from tercet.messages import Caption

__all__ = [
    "Answer",
    "CaptionNeed",
    "EmbeddedText",
    "ImageNeed",
    "Need",
    "PseudoTokenNeed",
    "RewriteNeed",
    "Rewritten",
    "TextNeed",
    "dump",
    "load",
    "worth_keeping",
]

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class CaptionNeed:
    """A caption of the reference, its background removed or kept.

    View 0 is the whole picture; views 1, 2, ... are random crops, mirrored or not, drawn from `seed` and the
    view's number alone (`views.view_of`). Several captions are got by sampling views, not tokens, so that any
    captioner on any server can give them, and the same ones again.
    """

    background: Literal["remove", "keep"]
    view: int = 0
    seed: int = 0

    of_reference = True

    @property
    def key(self) -> str:
        """Names the need in a cache."""
        view = f"view {self.view} of seed {self.seed}" if self.view else "whole"
        return f"caption|{self.background}|{view}"


@dataclass(frozen=True)
class ImageNeed:
    """The reference's embedding: a unit vector f32 [D]."""

    of_reference = True
    key = "image"


@dataclass(frozen=True)
class PseudoTokenNeed:
    """The reference as Pic2Word's pseudo-word: f32 [W]."""

    of_reference = True
    key = "pseudo-token"


@dataclass(frozen=True)
class TextNeed:
    """A text's embedding and token count; `pseudo_token`: the reference's takes the place of its `*`."""

    text: str
    pseudo_token: bool = False

    @property
    def of_reference(self) -> bool:
        """Whether the answer depends on the reference."""
        return self.pseudo_token

    @property
    def key(self) -> str:
        """Names the need in a cache."""
        return f"text{' with pseudo-token' if self.pseudo_token else ''}|{self.text}"


@dataclass(frozen=True)
class RewriteNeed:
    """The caption rewritten by a language model as the modification says.

    `prompt` is the prompt's text. `seconds`, how long to wait, is not part of the key.
    """

    caption: str
    modification: str
    model: str
    prompt: str
    seconds: float = 30.0

    of_reference = False

    @property
    def key(self) -> str:
        """Names the need in a cache."""
        parts = json.dumps([self.model, self.prompt, self.caption, self.modification])
        return f"rewrite|{hashlib.sha256(parts.encode()).hexdigest()}"


Need: TypeAlias = CaptionNeed | ImageNeed | PseudoTokenNeed | TextNeed | RewriteNeed
"""`of_reference` says whether the answer depends on the reference, `key` names the need beside it."""


@dataclass(frozen=True, eq=False)
class EmbeddedText:
    """A text's unit-length embedding f32 [D]; its tokens, start and end included, before any cut."""

    embedding: Vector
    tokens: int


@dataclass(frozen=True)
class Rewritten:
    """The rewritten caption, or an empty text and why there is none."""

    text: str
    failure: str | None = None


Answer: TypeAlias = Caption | Vector | EmbeddedText | Rewritten


def worth_keeping(answer: Answer) -> bool:
    """Whether a cache may keep the answer: not that a language model failed, for it may work next time."""
    return not (isinstance(answer, Rewritten) and answer.failure is not None)


def dump(answer: Answer) -> bytes:
    """The answer as a line of JSON and its vector's raw bytes; a caption's pictures are left out."""
    vector: Vector | None = None
    if isinstance(answer, Caption):
        fields: dict[str, Any] = {"text": answer.text, "score": answer.score, "coverage": answer.coverage}
    elif isinstance(answer, EmbeddedText):
        fields, vector = {"tokens": answer.tokens}, answer.embedding
    elif isinstance(answer, Rewritten):
        fields = dataclasses.asdict(answer)
    else:
        fields, vector = {}, answer
    line = json.dumps({"kind": type(answer).__name__, **fields}).encode()
    return line + b"\n" + (b"" if vector is None else np.asarray(vector, "<f4").tobytes())


def load(raw: bytes) -> Answer:
    """The answer that `dump` made `raw` of; a vector in it is read-only.

    Raises:
        InputError: `raw` is nothing that `dump` makes.
    """
    line, _, rest = raw.partition(b"\n")
    try:
        fields = json.loads(line)
        kind = fields.pop("kind")
        vector = np.frombuffer(rest, "<f4").astype(np.float32, copy=False)
        if kind == "Caption":
            return Caption(**fields)
        if kind == "EmbeddedText":
            return EmbeddedText(vector, **fields)
        if kind == "Rewritten":
            return Rewritten(**fields)
        if kind == "ndarray":
            return vector
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"a kept answer cannot be read ({error}); delete the cache") from error
    raise InputError(f"a kept answer is of unknown kind {kind!r}; delete the cache")
