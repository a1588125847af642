"""What the tests share: small random-weight networks exported once, and a real Triton that serves them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tercet.client import Client
from tercet.server import EmbeddedServer

# Which engine is faster depends on the machine and its moment; the tests that are about engines name theirs.
os.environ["TERCET_ENGINE"] = "onnxruntime"

# A shell's background ignores interrupts, and so would every process that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository filled from a lineup of tiny networks with random weights."""
    from tercet_export.lineup import export_lineup
    from tests.tiny import write_tiny_lineup

    folder = tmp_path_factory.mktemp("tiny")
    repository = folder / "model_repository"
    export_lineup(write_tiny_lineup(folder), repository)
    return repository


@pytest.fixture(scope="session")
def server(tiny_repository: Path) -> Iterator[EmbeddedServer]:
    """A real Triton over the tiny lineup; read-only for the tests that share it."""
    with EmbeddedServer(tiny_repository) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: EmbeddedServer) -> Iterator[Client]:
    """A client of the shared server."""
    with Client(server.grpc_address) as connected:
        yield connected
