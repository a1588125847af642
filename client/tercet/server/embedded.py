"""A real Triton from a pip wheel, run as a child of this process: started, watched, and stopped without a trace."""

import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from tercet.errors import ServerStartError
from tercet.server import guard
from tercet.server.ports import reserved_ports
from tercet.server.repository import Selection, select_models
from tercet.server.runtime import create_runtime, environment, find_installation, remove_runtime, sweep

# Called with the name of each model that is ready, how many are, and how many there will be.
Progress = Callable[[str, int, int], None]

GRACE_SECONDS = 10.0
LOADERS = 4
# What a web page or another user of this machine must not reach: loading a model is running its code.
RESTRICTED = "model-repository,shared-memory,trace,logging"
KEY_HEADER = "tercet-key"


class EmbeddedServer:
    """A Triton Inference Server over a model repository, for as long as the context lasts.

        with EmbeddedServer("model_repository") as server:
            client = tercet.Client(server.grpc_address)

    It listens on the loopback interface unless `host` says otherwise; port 0 means any free port. Loaded are the models whose
    weights exist and the ensembles whose steps are all loaded (`models`: only these, with their steps); `left_out` says which
    are not and why. The endpoints that load models, read shared memory or change logging are closed to others.

    Args:
        repository: the folder of models.
        host: IPv4 address to listen on.
        http_port, grpc_port, metrics_port: ports, 0 for any free one.
        models: names of the models to serve; None for all that can be.
        model_config_name: use each model's `configs/<name>.pbtxt` where it has one.
        timeout: seconds within which every model must be ready.
        log_file: file that gets Triton's log; None keeps it only while the server runs.
        progress: called as models become ready.

    Raises:
        ServerStartError: from `start` (and on entering the context), with cause and cure.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        *,
        host: str = "127.0.0.1",
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        models: Iterable[str] | None = None,
        model_config_name: str | None = None,
        timeout: float = 600.0,
        log_file: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.repository = Path(repository)
        self.host = host
        self.models: tuple[str, ...] = ()
        self.left_out: dict[str, str] = {}
        self.ports = {"HTTP": http_port, "gRPC": grpc_port, "metrics": metrics_port}
        self._wanted = None if models is None else tuple(models)
        self._model_config_name = model_config_name
        self._timeout = timeout
        self._log_file = None if log_file is None else Path(log_file)
        self._progress = progress
        self._key = secrets.token_hex(16)
        self._runtime: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def http_address(self) -> str:
        """Host and port of the HTTP service."""
        return self._address("HTTP")

    @property
    def grpc_address(self) -> str:
        """Host and port of the gRPC service."""
        return self._address("gRPC")

    @property
    def metrics_address(self) -> str:
        """Host and port of the Prometheus metrics."""
        return self._address("metrics")

    @property
    def log_file(self) -> Path:
        """The file that Triton's log goes to; it exists once the server was started."""
        if self._log_file is not None:
            return self._log_file
        if self._runtime is None:
            raise ServerStartError(
                "the server is not running, so there is no log: start it, or give it a log_file"
            )
        return self._runtime / "log"

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> Self:
        """Start the server and wait until every model is ready."""
        if self._guard is not None:
            raise ServerStartError("this server was already started: make another")
        selection = select_models(self.repository, self._wanted, self._model_config_name)
        installation = find_installation()
        sweep()
        deadline = time.monotonic() + self._timeout
        try:
            with reserved_ports(self.host, self.ports) as ports:
                self.ports = ports
                self._runtime, lock = create_runtime(installation, self.repository)
                try:
                    self._launch(installation.binary, environment(installation, self._runtime), lock)
                finally:
                    os.close(lock)
                self._wait_until_it_answers(deadline)
            self._load(selection, deadline)
        except BaseException:
            self.stop()
            raise
        self.models = selection.models + selection.ensembles
        self.left_out = selection.left_out
        return self

    def stop(self) -> None:
        """Stop the server and remove what it laid out; harmless when it does not run."""
        if self._guard is not None and self._guard.poll() is None:
            self._guard.terminate()
        if self._guard is not None:
            try:
                self._guard.wait(GRACE_SECONDS + 5)
            except subprocess.TimeoutExpired:
                self._guard.kill()
                self._guard.wait()
        if self._runtime is not None:
            remove_runtime(self._runtime)
            self._runtime = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _address(self, service: str) -> str:
        if not self.ports[service]:
            raise ServerStartError(f"the {service} port is not chosen yet: start the server first")
        return f"{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.ports[service]}"

    def _command(self, binary: Path, runtime: Path) -> list[str]:
        options = {
            "model-repository": runtime / "repository",
            "backend-directory": runtime / "backends",
            "backend-config": f"python,shm-region-prefix-name={runtime.name}-",
            "model-control-mode": "explicit",
            "http-address": self.host,
            "http-port": self.ports["HTTP"],
            "http-restricted-api": f"{RESTRICTED}:{KEY_HEADER}={self._key}",
            "grpc-address": self.host,
            "grpc-port": self.ports["gRPC"],
            "grpc-restricted-protocol": f"{RESTRICTED}:{KEY_HEADER}={self._key}",
            "metrics-address": self.host,
            "metrics-port": self.ports["metrics"],
            "exit-timeout-secs": int(GRACE_SECONDS / 2),
            "log-format": "ISO8601",
        }
        if self._model_config_name is not None:
            options["model-config-name"] = self._model_config_name
        return [str(binary), *(f"--{name}={value}" for name, value in options.items())]

    def _launch(self, binary: Path, variables: dict[str, str], lock: int) -> None:
        assert self._runtime is not None
        script = [sys.executable, "-I", "-S", str(guard.__file__), str(os.getpid())]
        with self.log_file.open("ab") as log:
            self._guard = subprocess.Popen(
                [*script, str(self._runtime), str(GRACE_SECONDS), *self._command(binary, self._runtime)],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                # A Ctrl-C in the terminal is for us: we stop the server in order.
                start_new_session=True,
            )

    def _ask(self, method: str, path: str, timeout: float, body: object = None) -> tuple[int, bytes]:
        """Send one HTTP request to the server; return status and body."""
        host, port = self.http_address.split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=max(timeout, 0.1))
        try:
            headers = {KEY_HEADER: self._key}
            connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _wait_until_it_answers(self, deadline: float) -> None:
        while True:
            self._check_alive()
            try:
                if self._ask("GET", "/v2/health/live", 1.0)[0] == http.client.OK:
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise ServerStartError(
                    f"Triton did not answer within {self._timeout:g} s.{self._log_lines()}"
                )
            time.sleep(0.05)

    def _check_alive(self) -> None:
        if not self.running:
            code = self._guard.returncode if self._guard is not None else None
            raise ServerStartError(f"Triton ended by itself with status {code}.{self._log_lines()}")

    def _load(self, selection: Selection, deadline: float) -> None:
        """Load the models, several at a time, then the ensembles that stand on them."""
        total = len(selection.models) + len(selection.ensembles)
        ready = 0
        for stage in (selection.models, selection.ensembles):
            with ThreadPoolExecutor(LOADERS if stage is selection.models else 1) as pool:
                for name in pool.map(lambda name: self._load_one(name, deadline), stage):
                    ready += 1
                    if self._progress is not None:
                        self._progress(name, ready, total)

    def _load_one(self, name: str, deadline: float) -> str:
        try:
            status, answer = self._ask(
                "POST", f"/v2/repository/models/{name}/load", deadline - time.monotonic(), {}
            )
        except TimeoutError:
            message = f"model {name} was not ready within {self._timeout:g} s: allow it more (timeout)."
            raise ServerStartError(message + self._log_lines(name)) from None
        except OSError:
            self._check_alive()
            raise
        if status != http.client.OK:
            reason = json.loads(answer or b"{}").get("error", f"HTTP status {status}")
            raise ServerStartError(f"model {name} cannot be loaded: {reason.strip()}{self._log_lines(name)}")
        return name

    def _log_lines(self, name: str | None = None, count: int = 12) -> str:
        """Return the last lines of the log that tell of trouble (with `name`, those that name the model first)."""
        lines = self.log_file.read_text(errors="replace").splitlines()
        trouble = [line for line in lines if " E " in line or " W " in line or "rror" in line]
        named = [line for line in trouble if name is not None and name in line]
        chosen = (named or trouble or lines)[-count:]
        return "".join(f"\n  {line}" for line in ["Triton's log:", *chosen]) if chosen else ""
