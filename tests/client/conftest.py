"""`connect`: a client of a stand-in for the server, once of each kind."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tercet.async_client import AsyncClient
from tercet.client import Client
from tercet.testing import answer
from tests.client.stand_ins import AsyncWatched, Blocking, Connect, Traffic, Watched


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
