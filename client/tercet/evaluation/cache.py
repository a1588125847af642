"""Answers of a server kept on disk by what was asked, so that a killed evaluation goes on where it was."""

import hashlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tercet.errors import InputError

__all__ = ["AnswerCache", "key_of"]


def key_of(*parts: str | bytes) -> str:
    """One key of several parts: SHA-256 of them with their lengths, hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()


class AnswerCache:
    """A file of answers by key; several threads and several processes may use it at once.

    An answer is on disk when `put` returns: a killed process loses none (a power failure may lose the last).
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            InputError: it cannot be opened or is no such file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(path, 60, check_same_thread=False, isolation_level=None)
            for statement in (
                "PRAGMA journal_mode=WAL",
                "PRAGMA synchronous=NORMAL",
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer BLOB)",
            ):
                self._connection.execute(statement)
        except sqlite3.Error as error:
            raise InputError(
                f"{path} cannot be used as the cache ({error}); delete it or name another folder with --cache"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._connection.close()

    def get(self, key: str) -> bytes | None:
        """The answer kept under `key`; None if there is none."""
        with self._lock:
            row = self._connection.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def put(self, key: str, answer: bytes) -> None:
        """Keep an answer; one that is there is replaced."""
        with self._lock:
            self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))

    def get_or_make(self, key: str, make: Callable[[], bytes]) -> bytes:
        """The answer kept under `key`, or what `make` gives, kept."""
        answer = self.get(key)
        if answer is None:
            answer = make()
            self.put(key, answer)
        return answer
