"""Load over HTTP: a target for Tercet's own closed loop, by requests made beforehand."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from threading import local

from tercet.bench.values import Done
from tercet.errors import TercetError

__all__ = ["HttpTarget", "Post", "post"]


@dataclass(frozen=True)
class Post:
    """One request: a path, a body, and what the body is."""

    path: str
    body: bytes
    content_type: str = "application/json"


class HttpTarget:
    """One server. Every request under way has a thread with a connection of its own, which is kept; answers
    are received whole and not parsed, as those of gRPC are not.
    """

    def __init__(self, name: str, port: int, posts: Sequence[Post], clients: int, timeout: float) -> None:
        self.name = name
        self._port, self._posts, self._timeout = port, posts, timeout
        self._pool = ThreadPoolExecutor(clients, "peers-http")
        self._own = local()
        self._connections: list[HTTPConnection] = []

    def send(self, number: int, done: Done) -> None:
        """Send one of the requests, each in turn."""
        self._pool.submit(self._ask, self._posts[number % len(self._posts)], done)

    def close(self) -> None:
        """Disconnect."""
        self._pool.shutdown(cancel_futures=True)
        for connection in self._connections:
            connection.close()

    def _ask(self, request: Post, done: Done) -> None:
        failure = None
        try:
            post(self._connection(), request)
        except TercetError as error:
            failure = error
        except Exception as error:  # it must not be waited for, whatever befell it
            self._own.connection = None
            failure = TercetError(f"{type(error).__name__}: {error}")
        done(failure)

    def _connection(self) -> HTTPConnection:
        if getattr(self._own, "connection", None) is None:
            self._own.connection = HTTPConnection("127.0.0.1", self._port, timeout=self._timeout)
            self._connections.append(self._own.connection)
        return self._own.connection


def post(connection: HTTPConnection, request: Post) -> bytes:
    """The answer's body.

    Raises:
        TercetError: the answer is not 200.
    """
    connection.request("POST", request.path, request.body, {"Content-Type": request.content_type})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise TercetError(f"HTTP {answer.status}: {content[:200].decode(errors='replace')}")
    return content


def get_is_ok(port: int, path: str) -> bool:
    """Whether a GET is answered by 200."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
