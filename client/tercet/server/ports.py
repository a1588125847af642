"""Ports for a server about to start: free ones chosen or named ones checked, and held until it listens."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tercet.errors import ServerStartError


def _reserve(service: str, host: str, port: int) -> socket.socket:
    """Bind `port` (0: any free one) without listening, so that nobody else is given it.

    With SO_REUSEADDR on both sockets Linux lets Triton bind and listen on a port that is bound here but not
    listened on, while a program that asks for any free port is never handed it.
    """
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reserved.bind((host, port))
    except (OSError, OverflowError) as error:
        reserved.close()
        raise ServerStartError(_explain(service, host, port, error)) from error
    return reserved


def _explain(service: str, host: str, port: int, error: Exception) -> str:
    match getattr(error, "errno", None):
        case errno.EADDRINUSE:
            return (
                f"port {port}, wanted for {service}, is taken on {host}: "
                "stop the program that listens there, choose another port, or 0 for any free one"
            )
        case errno.EACCES:
            return f"port {port}, wanted for {service}, may not be used by this user: choose one above 1023"
        case _:
            return (
                f"cannot listen on {host} port {port} for {service}: {error}; "
                "the host must be an IPv4 address of this machine"
            )


@contextmanager
def reserved_ports(host: str, wanted: dict[str, int]) -> Iterator[dict[str, int]]:
    """Hold a port for each service of `wanted` (0: any free one) and yield them by service.

    Raises:
        ServerStartError: a port is taken or may not be used; the message names it.
    """
    with ExitStack() as held:
        ports = {}
        for service, port in wanted.items():
            reserved = held.enter_context(_reserve(service, host, port))
            ports[service] = reserved.getsockname()[1]
        yield ports
