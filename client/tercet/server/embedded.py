"""A real Triton from a pip wheel, run as a child of this process and stopped without a trace."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tercet.errors import ServerError, ServerStartError
from tercet.server import guard
from tercet.server.engines.choice import ENGINES, Trial
from tercet.server.engines.networks import Network, choose_engines, find_networks
from tercet.server.engines.trials import accelerated
from tercet.server.log import Log
from tercet.server.overlay import lay_out_repository
from tercet.server.ports import reserved_ports
from tercet.server.repository import Selection, select_models
from tercet.server.runtime import (
    Installation,
    create_runtime,
    environment,
    find_installation,
    remove_runtime,
    sweep,
)

# Called with the name of each model that is ready, how many are, and how many there will be.
Progress = Callable[[str, int, int], None]

GRACE_SECONDS = 10.0
POLL_SECONDS = 0.1
# What a web page or another user of this machine must not reach: to load a model is to run its code. The key
# that opens it stands on the command line, which everybody can read: it is one that no header can carry.
CLOSED = "model-repository,shared-memory,trace,logging:tercet-key=\x01\n\x01"


class EmbeddedServer:
    """A Triton Inference Server over a model repository, for as long as the context lasts.

        with EmbeddedServer("model_repository") as server:
            client = tercet.Client(server.grpc_address)

    It listens on the loopback interface unless `host` says otherwise. The models whose weights exist, and the
    ensembles whose steps all do, are served; once started, `models` names them, `left_out` gives, by name,
    why the others are not, and `engines` what runs each network whose engine could be chosen. The endpoints
    that load models, share memory, trace or set logging are closed.

    Args:
        repository: the folder of models.
        host: IPv4 address to listen on.
        http_port, grpc_port, metrics_port: ports, 0 for any free one.
        models: names of the models to serve; None for all that can be.
        model_config_name: use each model's `configs/<name>.pbtxt` where it has one.
        engine: what runs the lineup's networks on the processor. `onnxruntime`, `openvino-f32`,
            `openvino-bf16` or `openvino-int8` as they are; `openvino` or `auto`: the fastest of OpenVINO's,
            or of all, whose answers are as good as ONNX Runtime's (`tercet.server.engines`), measured once
            and remembered beside each network. None: what the environment variable TERCET_ENGINE says, or
            else `auto`. Without the package openvino there is only `onnxruntime`.
        timeout: seconds within which every model must be ready.
        log_file: file that gets Triton's log; None keeps it only while the server runs.
        progress: called as models become ready.
        tell: called with each line about the engines as they are tried.
        on_log: called with each line of Triton's log as it is written, from a thread of its own.

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
        engine: str | None = None,
        timeout: float = 600.0,
        log_file: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
        tell: Callable[[str], None] | None = None,
        on_log: Callable[[str], None] | None = None,
    ) -> None:
        self.repository = Path(repository)
        self.host = host
        self.models: tuple[str, ...] = ()
        self.left_out: dict[str, str] = {}
        self.ports = {"HTTP": http_port, "gRPC": grpc_port, "metrics": metrics_port}
        self._wanted = None if models is None else tuple(models)
        self._model_config_name = model_config_name
        self._engine = engine or os.environ.get("TERCET_ENGINE") or "auto"
        self._tell = tell or (lambda line: None)
        self.engines: dict[str, Trial] = {}
        self._timeout = timeout
        self._log_file = None if log_file is None else Path(log_file)
        self._progress = progress
        self._on_log = on_log
        self.runtime: Path | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._follower: threading.Thread | None = None
        self._ended = threading.Event()

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
        if self.runtime is None:
            raise ServerStartError(
                "the server is not running, so there is no log: start it, or give it a log_file"
            )
        return self.runtime / "log"

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
        networks = find_networks(self.repository, selection.models, self._model_config_name)
        self.engines = choose_engines(self.repository, networks, self._engine, self._tell)
        try:
            with reserved_ports(self.host, self.ports) as ports:
                self.ports = ports
                self.runtime, lock = create_runtime(installation)
                try:
                    self._lay_out(self.runtime / "repository", networks)
                    log = self._launch(installation, selection, lock)
                finally:
                    os.close(lock)
                self._wait(selection, log)
        except BaseException:
            self.stop()
            raise
        self.models = selection.models
        self.left_out = selection.left_out
        return self

    def stop(self) -> None:
        """Stop the server and remove what it laid out; harmless when it does not run."""
        if self._guard is not None and self._guard.poll() is None:
            self._guard.send_signal(signal.SIGTERM if self.models else guard.AT_ONCE)
        if self._guard is not None:
            try:
                self._guard.wait(GRACE_SECONDS + 5)
            except subprocess.TimeoutExpired:
                self._guard.kill()
                self._guard.wait()
        self._ended.set()
        if self._follower is not None:
            self._follower.join()
        if self.runtime is not None:
            remove_runtime(self.runtime)
            self.runtime = None

    def processes(self) -> list[int]:
        """The server's processes: Triton, then one for every instance of a model."""
        found = [] if self._guard is None else guard.children(self._guard.pid)
        return found + [stub for triton in found for stub in guard.children(triton)]

    def check(self) -> None:
        """Raise if the server, or the process of a model, has ended by itself.

        Triton does not restart such a process, and says that it is ready all the same.

        Raises:
            ServerError: says which.
        """
        if not self.running:
            raise ServerError("Triton does not run: it was stopped, or killed (for want of memory, perhaps)")
        if any(guard.ended(process) for process in self.processes()):
            raise ServerError(
                "the process of a model was killed, for want of memory perhaps: restart the server"
            )

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

    def _command(self, binary: Path, runtime: Path, selection: Selection) -> list[str]:
        """Return Triton's command line."""
        options = {
            "model-repository": runtime / "repository",
            "backend-directory": runtime / "backends",
            "model-control-mode": "explicit",
            "http-address": self.host,
            "http-port": self.ports["HTTP"],
            "http-restricted-api": CLOSED,
            "grpc-address": self.host,
            "grpc-port": self.ports["gRPC"],
            "grpc-restricted-protocol": CLOSED,
            "metrics-address": self.host,
            "metrics-port": self.ports["metrics"],
            "exit-timeout-secs": int(GRACE_SECONDS / 2),
            "log-format": "ISO8601",
        }
        if self._model_config_name is not None:
            options["model-config-name"] = self._model_config_name
        flags = [f"--{name}={value}" for name, value in options.items()]
        stubs = {
            "shm-region-prefix-name": f"{runtime.name}-",
            # How long Triton waits for a model's process to start; its own 30 s are few on a busy machine.
            "stub-timeout-seconds": max(int(self._timeout), 30),
        }
        flags += [f"--backend-config=python,{name}={value}" for name, value in stubs.items()]
        if selection.complete:
            # Spares a second Python process for each model, started only to complete its configuration.
            flags.append("--disable-auto-complete-config")
        return [str(binary), *flags, *(f"--load-model={name}" for name in selection.models)]

    def _lay_out(self, folder: Path, networks: Mapping[str, Network]) -> None:
        """Make the repository that Triton reads: the user's own where it is served as it is."""
        changed = {name: trial.engine for name, trial in self.engines.items() if ENGINES[trial.engine]}
        configurations = {
            name: accelerated(networks[name].configuration, engine) for name, engine in changed.items()
        }
        if configurations:
            engines = {name: trial.engine for name, trial in self.engines.items()}
            lay_out_repository(folder, self.repository, configurations, engines)
        else:
            folder.symlink_to(self.repository.resolve())

    def _launch(self, installation: Installation, selection: Selection, lock: int) -> Log:
        """Start the guard, which starts Triton; both write to the log that is returned."""
        assert self.runtime is not None
        script = [sys.executable, "-I", "-S", str(guard.__file__), str(os.getpid())]
        command = self._command(installation.binary, self.runtime, selection)
        with self.log_file.open("ab") as file:
            log = Log(self.log_file, file.tell())
            self._guard = subprocess.Popen(
                [*script, str(self.runtime), str(GRACE_SECONDS), *command],
                env=environment(installation, self.runtime),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                pass_fds=(lock,),
                # A Ctrl-C in the terminal is for us: we stop the server in order.
                start_new_session=True,
            )
        if self._on_log is not None:
            self._follower = threading.Thread(
                target=log.follow, args=(self._on_log, self._ended), daemon=True
            )
            self._follower.start()
        return log

    def _wait(self, selection: Selection, log: Log) -> None:
        """Wait until Triton says that it is ready; report each model as the log tells of it."""
        deadline = time.monotonic() + self._timeout
        ready: list[str] = []
        while True:
            running, answers = self.running, self._answers()
            for name in selection.models if answers else log.loaded():
                if name not in ready:
                    ready.append(name)
                    if self._progress is not None:
                        self._progress(name, len(ready), len(selection.models))
            if answers:
                return
            if not running:
                raise log.failure()
            if time.monotonic() > deadline:
                late = ", ".join(name for name in selection.models if name not in ready) or "Triton itself"
                raise ServerStartError(f"not ready within {self._timeout:g} s: {late}; allow more (timeout)")
            time.sleep(POLL_SECONDS)

    def _answers(self) -> bool:
        """Whether Triton says that all its models are ready; it listens only after loading them."""
        host, port = self.http_address.split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()
