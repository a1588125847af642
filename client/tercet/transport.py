"""The narrow seam between the clients and Triton: one method sends tensors to a model.

`Client` and `AsyncClient` know nothing of gRPC. Whatever has the methods of `Transport` (or `AsyncTransport`)
can stand in its place: `tercet.testing` has stand-ins for tests without a server.

One call of `infer` is one attempt, except that with several addresses one that nobody answers at is passed
over for the next; retries are the clients'.
"""

import itertools
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tercet.errors import (
    InferenceError,
    InputError,
    ModelMissing,
    PictureError,
    RequestTimeout,
    ServerError,
    ServerOverloaded,
    ServerUnreachable,
    TextError,
)

if TYPE_CHECKING:
    from tritonclient.utils import InferenceServerException

__all__ = ["AsyncGrpcTransport", "AsyncTransport", "GrpcTransport", "Tensors", "Transport", "translate_error"]

Tensors = dict[str, np.ndarray]

REST_SECONDS = 5.0
"""How long an address that nobody answered at is passed over while others are left."""

CONNECT_SECONDS = 5.0
"""How long a connection may take before the address counts as one that nobody answers at."""

LARGEST_MESSAGE = 2**31 - 1


class Transport(Protocol):
    """What a `Client` needs of a server; called from several threads at once."""

    def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout: float
    ) -> Tensors:
        """Run `model` once and return the named outputs; raises TercetError. `timeout` is in seconds."""
        ...

    def ready(self, timeout: float) -> bool:
        """Whether a server answers and all its models are ready."""
        ...

    def close(self) -> None:
        """Release connections; pending calls may fail."""
        ...


class AsyncTransport(Protocol):
    """What an `AsyncClient` needs of a server: `Transport`, awaited."""

    async def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout: float
    ) -> Tensors:
        """Run `model` once and return the named outputs; raises TercetError. `timeout` is in seconds."""
        ...

    async def ready(self, timeout: float) -> bool:
        """Whether a server answers and all its models are ready."""
        ...

    async def close(self) -> None:
        """Release connections; pending calls may fail."""
        ...


class GrpcTransport:
    """Triton over gRPC, at one address (`host:port`) or several that serve the same lineup, used in turn."""

    def __init__(self, addresses: str | Sequence[str]) -> None:
        from tritonclient import grpc

        self._rotation = _Rotation(addresses)
        self._servers = {
            address: grpc.InferenceServerClient(address, channel_args=channel_options(address))
            for address in self._rotation.addresses
        }

    def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout: float
    ) -> Tensors:
        """Run `model` at the next address that answers; raises TercetError."""
        from tritonclient.utils import InferenceServerException

        deadline = time.monotonic() + timeout
        arguments = _arguments(model, inputs, outputs)
        for address in self._rotation.turn():
            left = max(deadline - time.monotonic(), 0.001)
            try:
                result = self._servers[address].infer(
                    **arguments, timeout=int(left * 1e6), client_timeout=left
                )
            except InferenceServerException as error:
                translated = translate_error(error, model, inputs, address, timeout)
                if not isinstance(translated, ServerUnreachable):
                    raise translated from error
                self._rotation.rest(address)
                last = translated
            else:
                self._rotation.wake(address)
                return {name: _output(result, name, model) for name in outputs}
        raise _none_answers(self._rotation.addresses, last)

    def ready(self, timeout: float) -> bool:
        """Whether the server at any address answers and all its models are ready."""
        from tritonclient.utils import InferenceServerException

        for server in self._servers.values():
            try:
                if server.is_server_ready(client_timeout=timeout):
                    return True
            except InferenceServerException:
                continue
        return False

    def close(self) -> None:
        """Close every connection."""
        for server in self._servers.values():
            server.close()


class AsyncGrpcTransport:
    """`GrpcTransport` for asyncio; belongs to the event loop of its first request."""

    def __init__(self, addresses: str | Sequence[str]) -> None:
        self._rotation = _Rotation(addresses)
        self._servers: dict[str, Any] = {}

    def _server(self, address: str) -> Any:
        # Not in the constructor: a channel binds to the running event loop.
        from tritonclient.grpc import aio

        if address not in self._servers:
            self._servers[address] = aio.InferenceServerClient(address, channel_args=channel_options(address))
        return self._servers[address]

    async def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout: float
    ) -> Tensors:
        """Run `model` at the next address that answers; raises TercetError."""
        from tritonclient.utils import InferenceServerException

        deadline = time.monotonic() + timeout
        arguments = _arguments(model, inputs, outputs)
        for address in self._rotation.turn():
            left = max(deadline - time.monotonic(), 0.001)
            try:
                result = await self._server(address).infer(
                    **arguments, timeout=int(left * 1e6), client_timeout=left
                )
            except InferenceServerException as error:
                translated = translate_error(error, model, inputs, address, timeout)
                if not isinstance(translated, ServerUnreachable):
                    raise translated from error
                self._rotation.rest(address)
                last = translated
            else:
                self._rotation.wake(address)
                return {name: _output(result, name, model) for name in outputs}
        raise _none_answers(self._rotation.addresses, last)

    async def ready(self, timeout: float) -> bool:
        """Whether the server at any address answers and all its models are ready."""
        from tritonclient.utils import InferenceServerException

        for address in self._rotation.addresses:
            try:
                if await self._server(address).is_server_ready(client_timeout=timeout):
                    return True
            except InferenceServerException:
                continue
        return False

    async def close(self) -> None:
        """Close every connection."""
        for server in self._servers.values():
            await server.close()


class _Rotation:
    """Addresses in turn; those that nobody answered at rest for a while, at the end of the turn."""

    def __init__(self, addresses: str | Sequence[str]) -> None:
        self.addresses = [addresses] if isinstance(addresses, str) else list(addresses)
        if not self.addresses or not all(self.addresses):
            raise ValueError("give at least one server address, such as localhost:8001")
        for address in self.addresses:
            if "://" in address:
                raise ValueError(
                    f"{address!r} is a URL; give Triton's gRPC address as host:port, such as localhost:8001"
                )
        self._starts = itertools.cycle(range(len(self.addresses)))
        self._resting: dict[str, float] = {}
        self._lock = threading.Lock()

    def turn(self) -> list[str]:
        with self._lock:
            start, now = next(self._starts), time.monotonic()
            turned = self.addresses[start:] + self.addresses[:start]
            return sorted(turned, key=lambda address: self._resting.get(address, 0.0) > now)

    def rest(self, address: str) -> None:
        with self._lock:
            self._resting[address] = time.monotonic() + REST_SECONDS

    def wake(self, address: str) -> None:
        with self._lock:
            self._resting.pop(address, None)


def channel_options(address: str) -> list[tuple[str, int]]:
    """gRPC's options for a channel to `address`."""
    options = [
        ("grpc.max_send_message_length", LARGEST_MESSAGE),
        ("grpc.max_receive_message_length", LARGEST_MESSAGE),
        # gRPC's own pauses between attempts to connect grow to two minutes: too long after a restart.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1e3)),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if address.rpartition(":")[0].strip("[]") in ("localhost", "127.0.0.1", "::1"):
        # With http_proxy set, gRPC would ask the proxy for its own localhost.
        options.append(("grpc.enable_http_proxy", 0))
    return options


def _arguments(model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, Any]:
    from tritonclient import grpc, utils

    tensors = []
    for name, values in inputs.items():
        tensor = grpc.InferInput(name, list(values.shape), utils.np_to_triton_dtype(values.dtype))
        tensor.set_data_from_numpy(values)
        tensors.append(tensor)
    wanted = [grpc.InferRequestedOutput(name) for name in outputs]
    return {"model_name": model, "inputs": tensors, "outputs": wanted}


def _output(result: Any, name: str, model: str) -> np.ndarray:
    values = result.as_numpy(name)
    if values is None:
        raise InferenceError(f"{model} answered without its output {name!r}; export the lineup again")
    # What as_numpy returns is a read-only view that keeps the whole message alive.
    return values.copy()


def _none_answers(addresses: list[str], last: ServerUnreachable) -> ServerUnreachable:
    if len(addresses) == 1:
        return last
    return ServerUnreachable(f"none of {', '.join(addresses)} answers; the last: {last}")


# How Triton 24.10 begins its messages where a request was given no id, and where it came through an ensemble.
_PREFIX = re.compile(r"^(in ensemble '[^']*', |\[request id: [^]]*\] )+")
# gRPC reports a full queue and a refused connection with the same status: the words tell them apart.
_BUSY = ("maximum queue size", "timeout expired")
_NOT_LOADED = ("unknown model", "is not ready", "not at ready state", "no available versions")
# Triton's own complaints about a request's tensors, not a model's about the picture or text in them.
_ABOUT_TENSORS = ("unexpected ", "expected ", "inference input", "inference request", "unable to", "invalid ")


def translate_error(
    error: "InferenceServerException", model: str, inputs: Mapping[str, Any], address: str, timeout: float
) -> InputError | ServerError:
    """Return the exception for what Triton or gRPC reported, with a message that names the cure.

    INVALID_ARGUMENT is PictureError or TextError by what was sent: the models that read them report so.
    """
    status = (error.status() or "").removeprefix("StatusCode.")
    message = (error.message() or "no message").strip()
    detail = _PREFIX.sub("", message)
    if status == "UNAVAILABLE" or status == "NOT_FOUND":
        if any(sign in detail.lower() for sign in _NOT_LOADED):
            return ModelMissing(
                f"the server at {address} does not serve {model!r} ({detail}); export a lineup that has its "
                "networks, such as tercet-export lineup demo, and restart the server"
            )
        if any(sign in detail.lower() for sign in _BUSY):
            return ServerOverloaded(
                f"the server at {address} had no room for {model!r} ({detail}); send fewer requests at once "
                "(in_flight), allow more time, or add servers"
            )
        return ServerUnreachable(
            f"no Triton answers at {address} ({detail}); start one with: tercet serve, or check the address: "
            "Triton's gRPC port is 8001 by default"
        )
    if status == "DEADLINE_EXCEEDED":
        return RequestTimeout(
            f"{model!r} at {address} did not answer within {timeout:.3g} s; raise the client's timeout, or "
            "lower in_flight so that requests wait less for one another"
        )
    if status == "INVALID_ARGUMENT" and not detail.lower().startswith(_ABOUT_TENSORS):
        if "image" in inputs:
            return PictureError(detail)
        if "text" in inputs:
            return TextError(detail)
    return InferenceError(f"{model!r} at {address} failed ({status or 'no status'}): {detail}")
