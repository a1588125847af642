"""A target that answers after as long as it is told to, without a server."""

import threading
import time
from collections.abc import Callable

from tercet.bench.server import Counters
from tercet.bench.values import Done
from tercet.errors import TercetError


class SlowTarget:
    """Answers one request after another, as one processor would: each takes `seconds`, in the order sent."""

    name = "slow"

    def __init__(
        self, seconds: float, fail: Callable[[int], TercetError | None] = lambda number: None
    ) -> None:
        self.seconds = seconds
        self.sent: list[tuple[int, float]] = []
        self.at_once = self.most = 0
        self._fail = fail
        self._lock = threading.Lock()
        self._free = 0.0

    def send(self, number: int, done: Done) -> None:
        now = time.perf_counter()
        with self._lock:
            self.sent.append((number, now))
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self._free = max(self._free, now) + self.seconds
            wait = self._free - now
        threading.Timer(wait, self._answer, (number, done)).start()

    def _answer(self, number: int, done: Done) -> None:
        with self._lock:
            self.at_once -= 1
        done(self._fail(number))

    def close(self) -> None:
        pass


class NoServer:
    """Counters that stand still, of a server on another machine."""

    processes = None

    def counters(self) -> dict[str, Counters]:
        return {}
