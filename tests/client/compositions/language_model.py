"""A small server that speaks the OpenAI-compatible interface, over HTTP, and answers as it is told."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[BaseHTTPRequestHandler], None]


class LanguageModel:
    """What was asked of the server, and what it answers: `replies` in turn, the last one for ever."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.url = ""
        self._lock = threading.Lock()

    def take(self, handler: BaseHTTPRequestHandler) -> Reply:
        """Write the request down and choose the reply."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append(body)
            self.headers.append(dict(handler.headers))
            self.paths.append(handler.path)
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    @property
    def prompts(self) -> list[str]:
        """The prompts that were sent."""
        return [request["messages"][0]["content"] for request in self.requests]


def says(text: Any) -> Reply:
    """A chat completion with that content."""
    return sends(200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode())


def sends(status: int, body: bytes, **headers: str) -> Reply:
    """That status and body."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def waits(seconds: float, then: Reply) -> Reply:
    """Nothing for a while."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        then(handler)

    return reply


def drips(seconds: float) -> Reply:
    """A byte now and then, for ever."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(seconds)

    return reply


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    """No answer at all."""
    handler.close_connection = True
    handler.connection.close()


@contextmanager
def language_model(*replies: Reply) -> Iterator[LanguageModel]:
    """The server, running."""
    model = LanguageModel(*replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                model.take(self)(self)
            except OSError:
                self.close_connection = True  # The client has gone.

        def log_message(self, *_: object) -> None:
            pass

        def finish(self) -> None:
            with suppress(OSError, ValueError):
                super().finish()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    model.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield model
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
