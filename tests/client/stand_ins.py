"""Stand-ins for the server that record and delay, and one face for both clients."""

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tercet.async_client import AsyncClient
from tercet.errors import TercetError
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


def failing(error: TercetError, *, times: int) -> Callable[[str, Mapping[str, np.ndarray]], Tensors]:
    """An answer that fails `times` times before it works."""
    left = [times]

    def fail_first(model: str, inputs: Mapping[str, np.ndarray]) -> Tensors:
        if left[0]:
            left[0] -= 1
            raise error
        return answer(model, inputs)

    return fail_first


Connect = Callable[..., tuple[Any, Traffic]]
