"""Servers as processes: started together, and all but the one that is measured stopped meanwhile."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.environments import install
from benchmarks.peers.http import get_is_ok
from benchmarks.peers.systems import PEERS, SERVERS
from tercet.bench.processes import tree

__all__ = ["NotStarted", "Running", "awake", "end_on_termination", "start_peer", "start_tercet"]

START_SECONDS, END_SECONDS, POLL_SECONDS = 900.0, 20.0, 0.5


class NotStarted(Exception):
    """A server ended, or did not answer in time; the message has the end of its log."""


@dataclass(frozen=True)
class Running:
    """A server: its root process, and the port that it is asked at."""

    process: subprocess.Popen
    port: int

    def end(self) -> None:
        """End it, and what it leaves behind of its own session."""
        send(signal.SIGCONT, tree(self.process.pid))
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def end_on_termination() -> None:
    """Let SIGTERM end this process as Ctrl-C does: servers that were stopped would stay behind for good."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def send(number: int, processes: Sequence[int]) -> None:
    """A signal to each process that is still there."""
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


@contextlib.contextmanager
def awake(chosen: Running | None, all_of_them: Sequence[Running]) -> Iterator[None]:
    """Only `chosen` may run; the others are stopped, so that they use no processor time, and go on after."""
    others = [running for running in all_of_them if running is not chosen]
    for running in others:
        send(signal.SIGSTOP, tree(running.process.pid))
    try:
        yield
    finally:
        for running in others:
            send(signal.SIGCONT, tree(running.process.pid))


def start_peer(name: str, cache: Path, weights: Path, logs: Path) -> Running:
    """Install where needed, start, and wait until it can be asked.

    Raises:
        NotStarted: it cannot be.
        subprocess.CalledProcessError: it cannot be installed.
    """
    peer, environment, port = PEERS[name], install(name, cache), free_port()
    command = peer.command(environment / "bin", weights, port)
    variables = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL_ENV", "PYTHON"))},
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "PEERS_WEIGHTS": str(weights),
        "PEERS_THREADS": str(peer.threads),
        "OMP_NUM_THREADS": str(peer.threads),
        "HF_HUB_OFFLINE": "1",
        **peer.environment,
    }
    return start(name, command, variables, SERVERS, lambda: get_is_ok(port, peer.ready), port, logs)


def start_tercet(repository: Path, logs: Path) -> Running:
    """Tercet's own server over a model repository; its port is gRPC's."""
    grpc_port, http_port = free_port(), free_port()
    command = (
        Path(sys.executable).with_name("tercet"),
        *("serve", "--repository", repository, "--grpc-port", str(grpc_port)),
        *("--http-port", str(http_port), "--metrics-port", "0"),
    )
    variables = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    ready = lambda: get_is_ok(http_port, "/v2/health/ready")  # noqa: E731
    return start("tercet", command, variables, Path.cwd(), ready, grpc_port, logs)


def start(
    name: str,
    command: Sequence[str | Path],
    variables: Mapping[str, str],
    folder: Path,
    ready: Callable[[], bool],
    port: int,
    logs: Path,
) -> Running:
    """Start a command in a session of its own and wait until it is ready."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{name}.log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [str(part) for part in command],
            env=dict(variables),
            cwd=folder,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running, until = Running(process, port), time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > until:
            running.end()
            raise NotStarted(f"{name} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(POLL_SECONDS)
    return running


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
