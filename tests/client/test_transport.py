"""The gRPC seam: addresses that nobody answers at, and every status of Triton's as the right exception."""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tercet.errors import (
    InferenceError,
    ModelMissing,
    PictureError,
    RequestTimeout,
    ServerOverloaded,
    ServerUnreachable,
    TercetError,
    TextError,
)
from tercet.transport import AsyncGrpcTransport, GrpcTransport, Tensors, translate_error

TEXT = {"text": np.array([[b"a dog"]], dtype=np.object_)}
IMAGE = {"image": np.array([[b"..."]], dtype=np.object_)}
Infer = Callable[..., Tensors]


def infer_sync(addresses: str | list[str], timeout: float) -> Tensors:
    transport = GrpcTransport(addresses)
    try:
        return transport.infer("embed_text", TEXT, ["embedding"], timeout)
    finally:
        transport.close()


def infer_async(addresses: str | list[str], timeout: float) -> Tensors:
    async def run() -> Tensors:
        transport = AsyncGrpcTransport(addresses)
        try:
            return await transport.infer("embed_text", TEXT, ["embedding"], timeout)
        finally:
            await transport.close()

    return asyncio.run(run())


both = pytest.mark.parametrize("infer", [infer_sync, infer_async], ids=["sync", "async"])


@pytest.fixture
def refused() -> Iterator[str]:
    """An address that refuses connections: bound, so that nobody else takes it, but not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


class Answering(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The smallest server that speaks Triton's protocol: counts its requests and answers zeros."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="embedding", datatype="FP32", shape=[1, 2])
        answer.raw_output_contents.append(bytes(8))
        return answer

    def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=True)


@pytest.fixture
def start_server() -> Iterator[Callable[[], tuple[str, Answering]]]:
    """Starts servers on free ports and stops them at the end."""
    from concurrent.futures import ThreadPoolExecutor

    servers = []

    def start() -> tuple[str, Answering]:
        server, answering = grpc.server(ThreadPoolExecutor(2)), Answering()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(answering, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}", answering

    yield start
    for server in servers:
        server.stop(None)


Start = Callable[[], tuple[str, Answering]]


@both
def test_a_refused_connection_names_address_and_cure(infer: Infer, refused: str) -> None:
    start = time.monotonic()
    with pytest.raises(ServerUnreachable, match=rf"{refused} .*refused.*tercet serve"):
        infer(refused, 10)
    assert time.monotonic() - start < 5


@both
def test_silence_is_a_timeout(infer: Infer, black_hole: str) -> None:
    start = time.monotonic()
    with pytest.raises(RequestTimeout, match=rf"{black_hole} did not answer within 0.3 s"):
        infer(black_hole, 0.3)
    assert time.monotonic() - start < 3


@both
def test_a_host_that_does_not_exist_is_unreachable(infer: Infer) -> None:
    with pytest.raises(ServerUnreachable, match="no-such-host"):
        infer("no-such-host.invalid:8001", 10)


@both
def test_a_dead_address_is_passed_over(infer: Infer, refused: str, start_server: Start) -> None:
    alive, _ = start_server()
    assert infer([refused, alive], 10)["embedding"].shape == (1, 2)


@both
def test_all_dead_addresses_are_named(infer: Infer, refused: str) -> None:
    with pytest.raises(
        ServerUnreachable,
        match=rf"none of {refused}, no-such-host.invalid:1 answers; the last: .*tercet serve",
    ):
        infer([refused, "no-such-host.invalid:1"], 10)


def test_addresses_are_used_in_turn(start_server: Start) -> None:
    (first, at_first), (second, at_second) = start_server(), start_server()
    transport = GrpcTransport([first, second])
    for _ in range(10):
        transport.infer("embed_text", TEXT, ["embedding"], 10)
    transport.close()
    assert (len(at_first.requests), len(at_second.requests)) == (5, 5)


def test_a_dead_address_rests_and_is_tried_again(
    refused: str, start_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, at_alive = start_server()
    transport = GrpcTransport([refused, alive])
    tried: list[str] = []
    for address, server in transport._servers.items():
        infer = server.infer
        monkeypatch.setattr(
            server, "infer", lambda _at=address, _infer=infer, **given: tried.append(_at) or _infer(**given)
        )
    for _ in range(6):
        transport.infer("embed_text", TEXT, ["embedding"], 10)
    assert tried.count(refused) == 1
    assert len(at_alive.requests) == 6
    transport._rotation._resting[refused] = 0.0  # its rest is over
    for _ in range(2):
        transport.infer("embed_text", TEXT, ["embedding"], 10)
    assert tried.count(refused) == 2
    transport.close()


def test_a_server_that_comes_back_is_found(start_server: Start) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    transport = GrpcTransport(f"127.0.0.1:{port}")
    with pytest.raises(ServerUnreachable):
        transport.infer("embed_text", TEXT, ["embedding"], 5)
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Answering(), server)
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                transport.infer("embed_text", TEXT, ["embedding"], 5)
                break
            except ServerUnreachable:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        transport.close()
        server.stop(None)


def test_triton_is_told_the_timeout(start_server: Start) -> None:
    address, answering = start_server()
    transport = GrpcTransport(address)
    transport.infer("embed_text", TEXT, ["embedding"], 12)
    transport.close()
    assert 11_000_000 < answering.requests[0].parameters["timeout"].int64_param <= 12_000_000


def test_answers_can_be_written_to(start_server: Start) -> None:
    address, _ = start_server()
    infer_sync(address, 10)["embedding"][0, 0] = 1.0


def test_an_output_that_is_not_there_is_an_error(start_server: Start) -> None:
    address, _ = start_server()
    transport = GrpcTransport(address)
    with pytest.raises(InferenceError, match="without its output 'mask'"):
        transport.infer("embed_text", TEXT, ["mask"], 10)
    transport.close()


def test_ready(start_server: Start, refused: str) -> None:
    address, _ = start_server()
    for addresses, expected in ((address, True), ([refused, address], True), (refused, False)):
        transport = GrpcTransport(addresses)
        assert transport.ready(5) is expected
        transport.close()

        async def ask(given: str | list[str] = addresses) -> bool:
            asynchronous = AsyncGrpcTransport(given)
            try:
                return await asynchronous.ready(5)
            finally:
                await asynchronous.close()

        ask_once: Coroutine[Any, Any, bool] = ask()
        assert asyncio.run(ask_once) is expected


@pytest.mark.parametrize("address", ["", [], [""], "http://localhost:8000"])
def test_an_address_that_cannot_be_one_is_refused(address: str | list[str]) -> None:
    with pytest.raises(ValueError, match="localhost:8001"):
        GrpcTransport(address)


# Messages as Triton 2.51 (24.10) and gRPC 1.85 send them.
IN = "in ensemble 'e', "
ID = "[request id: <id_unknown>] "
UNKNOWN = "Request for unknown model: 'm' "


@pytest.mark.parametrize(
    ("status", "message", "inputs", "expected", "says"),
    [
        ("UNAVAILABLE", f"{IN}{ID}Exceeds maximum queue size", IMAGE, ServerOverloaded, "no room"),
        ("UNAVAILABLE", f"{ID}Request timeout expired", IMAGE, ServerOverloaded, "no room"),
        ("UNAVAILABLE", "failed to connect to all addresses", IMAGE, ServerUnreachable, "tercet serve"),
        ("UNAVAILABLE", "Socket closed", IMAGE, ServerUnreachable, "Socket closed"),
        ("UNAVAILABLE", f"{UNKNOWN}version 1 is not at ready state", IMAGE, ModelMissing, "'m'"),
        ("NOT_FOUND", f"{UNKNOWN}is not found", IMAGE, ModelMissing, "tercet-export lineup demo"),
        ("NOT_FOUND", f"{UNKNOWN}has no available versions", TEXT, ModelMissing, "'m'"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", IMAGE, RequestTimeout, "within 3 s"),
        ("INVALID_ARGUMENT", f"{IN}the file is truncated", IMAGE, PictureError, "^the file is truncated$"),
        ("INVALID_ARGUMENT", f"{IN}{IN}the file is cut", IMAGE, PictureError, "^the file is cut$"),
        ("INVALID_ARGUMENT", f"{IN}no placeholder", TEXT, TextError, "^no placeholder$"),
        ("INVALID_ARGUMENT", "unexpected inference output 'x' for", IMAGE, InferenceError, "output 'x'"),
        ("INVALID_ARGUMENT", f"{ID}unexpected shape for input 'image'", IMAGE, InferenceError, "shape"),
        ("INVALID_ARGUMENT", f"{ID}inference input 'image' data-type is", IMAGE, InferenceError, "data-type"),
        ("INVALID_ARGUMENT", f"{IN}unexpected deadlock, at least", IMAGE, InferenceError, "deadlock"),
        ("INTERNAL", f"{IN}Stub process is not healthy.", TEXT, InferenceError, "Stub process"),
        (None, None, TEXT, InferenceError, "no message"),
    ],
)
def test_each_failure_is_told_apart(
    status: str | None, message: str | None, inputs: Tensors, expected: type[TercetError], says: str
) -> None:
    error = InferenceServerException(message, status and f"StatusCode.{status}")
    translated = translate_error(error, "m", inputs, "host:8001", 3.0)
    assert type(translated) is expected
    with pytest.raises(expected, match=says):
        raise translated
