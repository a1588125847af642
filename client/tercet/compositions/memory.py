"""What was answered about a picture lately: the same reference asked again costs no second captioning."""

from collections import OrderedDict
from threading import Lock

import numpy as np

from tercet.compositions.needs import Answer, EmbeddedText
from tercet.messages import Caption

__all__ = ["LINEUP_SECONDS", "REMEMBERED", "AnswerMemory"]

REMEMBERED = 64 * 2**20
"""Bytes that a client keeps unless told otherwise: some 200 references with their foregrounds and masks."""

LINEUP_SECONDS = 60.0
"""How long a client takes the server's lineup, by which answers are kept, for known."""

OVERHEAD = 512
"""Bytes that an answer is counted for beside its arrays: texts, keys, Python's objects."""


class AnswerMemory:
    """The answers used last, at most `limit` bytes of them (0: none); safe to share between threads."""

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"remember is {limit}; it must be 0 bytes or more")
        self._limit = limit
        self._bytes = 0
        self._lock = Lock()
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def __bool__(self) -> bool:
        return self._limit > 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str | None) -> Answer | None:
        """The answer kept under `key`, which counts as its use; None if there is none."""
        if key is None:
            return None
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
            return self._answers.get(key)

    def put(self, key: str | None, answer: Answer) -> None:
        """Keep an answer, and forget those used longest ago where there is no room; None: do not keep it."""
        size = size_of(answer)
        if key is None or size > self._limit:
            return
        with self._lock:
            if key in self._answers:
                self._bytes -= size_of(self._answers.pop(key))
            self._answers[key] = answer
            self._bytes += size
            while self._bytes > self._limit:
                _, forgotten = self._answers.popitem(last=False)
                self._bytes -= size_of(forgotten)


def size_of(answer: Answer) -> int:
    """About how many bytes an answer takes."""
    if isinstance(answer, Caption):
        arrays = [array for array in (answer.foreground, answer.mask) if array is not None]
    elif isinstance(answer, EmbeddedText):
        arrays = [answer.embedding]
    else:
        arrays = [answer] if isinstance(answer, np.ndarray) else []
    return OVERHEAD + sum(array.nbytes for array in arrays)
