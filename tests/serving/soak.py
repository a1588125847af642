"""Soak: many clients hammer a server while some of them are killed; answers must be right and memory flat.

By hand, with the server's own pipeline and pictures of your choice:

    python -m tests.serving.soak --repository model_repository --model embed_image --pictures FOLDER
"""

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import np_to_triton_dtype

from tercet.server import EmbeddedServer, guard
from tests.serving.graphs import CPU, NETWORK, network, write_model

THREADS = 4
KILL_SECONDS = 2.0
SAMPLE_SECONDS = 0.5

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Report:
    """What a soak saw: answers that were checked, what was wrong, and memory at each sample in bytes."""

    seconds: float
    answered: int
    wrong: list[str]
    killed: int
    memory: list[int] = field(repr=False)
    shared_memory: list[int] = field(repr=False)

    @staticmethod
    def growth(samples: Sequence[int]) -> int:
        """By how much the last quarter's median exceeds the second's: the first quarter warms up."""
        quarter = len(samples) // 4
        return int(statistics.median(samples[-quarter:]) - statistics.median(samples[quarter : 2 * quarter]))

    def __str__(self) -> str:
        mebibytes = {
            name: f"{samples[-1] / 2**20:.1f} MiB ({self.growth(samples) / 2**20:+.1f})"
            for name, samples in (("memory", self.memory), ("shared memory", self.shared_memory))
        }
        return (
            f"{self.answered:,} right answers in {self.seconds:.0f} s, {len(self.wrong)} wrong, "
            f"{self.killed} clients killed; "
            + ", ".join(f"{name} {text}" for name, text in mebibytes.items())
        )


def ask(client: grpc.InferenceServerClient, model: str, inputs: Tensors) -> Tensors:
    """One request."""
    tensors = []
    for name, array in inputs.items():
        tensors.append(grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    answer = client.infer(model, tensors, client_timeout=60)
    return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}


def difference(expected: Tensors, answer: Tensors) -> str | None:
    """What is wrong with an answer, None where nothing is."""
    for name, array in expected.items():
        if array.dtype == np.object_:
            equal = np.array_equal(array, answer[name])
        else:
            equal = np.allclose(array, answer[name], rtol=1e-4, atol=1e-5)
        if not equal:
            return f"{name} differs"
    return None


def hammer(
    address: str, model: str, items: list[Tensors], expected: list[Tensors], until: float, answers: Connection
) -> None:
    """A process of several clients: ask for random items until the time is over, then tell what was seen."""
    counts: list[int] = []
    wrong: list[str] = []

    def ask_on() -> None:
        choose = random.Random()
        count = 0
        with grpc.InferenceServerClient(address) as client:
            while time.time() < until:
                index = choose.randrange(len(items))
                try:
                    trouble = difference(expected[index], ask(client, model, items[index]))
                except grpc.InferenceServerException as error:
                    trouble = str(error)
                if trouble is not None:
                    wrong.append(f"item {index}: {trouble}")
                count += 1
        counts.append(count)

    threads = [threading.Thread(target=ask_on) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.send((sum(counts) - len(wrong), wrong))


def resident_memory(server: EmbeddedServer) -> int:
    """Bytes of the server and of its models' processes; what they share counts once for each."""
    pages = sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in server.processes())
    return pages * os.sysconf("SC_PAGESIZE")


def shared_memory(server: EmbeddedServer) -> int:
    """Bytes of the server's files in /dev/shm."""
    assert server.runtime is not None
    files = guard.SHARED_MEMORY.glob(f"{server.runtime.name}*")
    return sum(file.stat().st_blocks * 512 for file in files)


def soak(
    server: EmbeddedServer, model: str, items: list[Tensors], seconds: float, clients: int = 32
) -> Report:
    """Let `clients` clients ask for `items` at random; kill some all the while, and start others instead."""
    with grpc.InferenceServerClient(server.grpc_address) as client:
        expected = [ask(client, model, item) for item in items]
    spawn = multiprocessing.get_context("spawn")
    until = time.time() + seconds
    running: dict[SpawnProcess, Connection] = {}

    def start() -> None:
        here, there = spawn.Pipe(duplex=False)
        arguments = (server.grpc_address, model, items, expected, until, there)
        process = spawn.Process(target=hammer, args=arguments, daemon=True)
        process.start()
        there.close()
        running[process] = here

    for _ in range(clients // THREADS):
        start()
    memory, shared, killed = [], [], 0
    next_kill = time.time() + KILL_SECONDS
    while time.time() < until:
        memory.append(resident_memory(server))
        shared.append(shared_memory(server))
        if time.time() > next_kill:
            victim = random.choice(list(running))
            victim.kill()
            victim.join()
            del running[victim]
            killed += THREADS
            if until - time.time() > 3 * KILL_SECONDS:
                start()
            next_kill = time.time() + KILL_SECONDS
        time.sleep(SAMPLE_SECONDS)
    answered, wrong = 0, []
    for process, connection in running.items():
        if connection.poll(120):
            count, trouble = connection.recv()
            answered += count
            wrong += trouble
        else:
            wrong.append(f"client process {process.pid} never ended")
            process.kill()
    with grpc.InferenceServerClient(server.grpc_address) as client:
        for item, right in zip(items, expected, strict=True):
            if trouble := difference(right, ask(client, model, item)):
                wrong.append(f"afterwards: {trouble}")
    return Report(seconds, answered, wrong, killed, memory, shared)


def rows(count: int = 64) -> list[Tensors]:
    """Items for the small network of the tests."""
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal((1 + n % 3, 64)).astype(np.float32)} for n in range(count)]


def pictures(folder: Path) -> list[Tensors]:
    """Items for the ensembles that take an encoded picture."""
    files = sorted(file for file in folder.iterdir() if file.is_file())[:200]
    return [{"image": np.array([[file.read_bytes()]], np.object_)} for file in files]


def main() -> int:
    """Run a soak by hand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--repository", type=Path, help="default: a small network of the tests")
    parser.add_argument("--model", default="embed_image")
    parser.add_argument("--pictures", type=Path, help="folder of pictures to send")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository, model = given.repository, given.model
        if repository is None:
            repository, model = Path(folder), "network"
            write_model(repository, model, network(), NETWORK + CPU + "dynamic_batching {}")
        items = rows() if given.pictures is None else pictures(given.pictures)
        with EmbeddedServer(repository) as server:
            report = soak(server, model, items, given.seconds, given.clients)
    print(report)
    for trouble in report.wrong[:20]:
        print(f"  {trouble}")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
