"""Tries the engines on a network: each in a process of its own, which may crash, beside ONNX Runtime's."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import ModelConfig

from tercet.server.engines.choice import ENGINES, ONNXRUNTIME, Trial
from tercet.server.engines.examples import ROWS, make_examples
from tercet.server.engines.gate import Arrays, measure_distances, refusal
from tercet.server.runtime import BACKEND, thread_settings

__all__ = ["Laboratory", "TrialFailed", "accelerated"]

ROUNDS = 5
ENOUGH_SECONDS = 2.0
"""Rounds are fewer, two at least, where they take longer."""

LONGEST_ANSWER = 300.0
TIMED_ROWS = 8


class TrialFailed(Exception):
    """The engine cannot run the network, or its process died."""


def accelerated(configuration: ModelConfig, engine: str) -> ModelConfig:
    """Return a model's configuration with the accelerator that an engine is; ONNX Runtime is none."""
    changed = ModelConfig()
    changed.CopyFrom(configuration)
    parameters = ENGINES[engine]
    if parameters is not None:
        accelerator = changed.optimization.execution_accelerators.cpu_execution_accelerator.add()
        accelerator.name = "openvino"
        accelerator.parameters.update(parameters)
    return changed


class Run(NamedTuple):
    """How long a graph took, and the time of all threads together: what others use does not add to that."""

    seconds: float
    processor_seconds: float


class Worker:
    """The process of one engine; started when it is first asked, and again after it died."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self._process: subprocess.Popen[str] | None = None

    def open(self, file: Path, configuration: ModelConfig) -> Mapping[str, Any]:
        """Open a graph in place of the one before; its inputs: type and dimensions by name."""
        changed = accelerated(configuration, self.engine)
        config = MessageToDict(changed, preserving_proto_field_name=True)
        return self._ask({"open": str(file), "config": config})["inputs"]

    def close(self) -> None:
        """Free the memory of the graph that is open; harmless where none is."""
        if self._process is not None:
            self._ask({"open": None})

    def run(self, inputs: Path, batches: Sequence[int], save: Path | None = None) -> Run:
        """Run the first rows in these batches; how long the graph took."""
        command = {"run": str(inputs), "batches": list(batches), "save": None if save is None else str(save)}
        return Run(**self._ask(command))

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(BACKEND / "trial.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **thread_settings()},
                # A Ctrl-C in the terminal is for us: we stop the process.
                start_new_session=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(LONGEST_ANSWER, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            code = process.wait()
            self.stop()
            raise TrialFailed(f"its process ended with code {code}")
        answer = json.loads(line)
        if "error" in answer:
            raise TrialFailed(answer["error"])
        return answer


class Laboratory:
    """Where engines are tried, one network after another; a context that ends its processes and files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._workers = {engine: Worker(engine) for engine in ENGINES}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            worker.stop()

    def try_engines(
        self, role: str, file: Path, configuration: ModelConfig, manifest: Mapping[str, Any]
    ) -> list[Trial]:
        """Try every engine on the network that fills a role: its answers, then its time.

        Raises:
            TrialFailed: ONNX Runtime itself cannot run it, so that there is nothing to compare with.
        """
        reference = self._workers[ONNXRUNTIME]
        inputs, expected_file = self._folder / f"{role}.npz", self._folder / f"{role}-expected.npz"
        described = reference.open(file, configuration)
        np.savez(inputs, **make_examples(role, described, manifest))
        reference.run(inputs, ROWS[role], expected_file)
        expected = read_arrays(expected_file)
        trials = [Trial(ONNXRUNTIME)]
        for engine, worker in self._workers.items():
            if engine != ONNXRUNTIME:
                try:
                    worker.open(file, configuration)
                    trial = self._try_engine(worker, role, inputs, expected)
                    worker.close()
                except TrialFailed as error:
                    trial = Trial(engine, refused=str(error))
                trials.append(trial)
        return trials

    def _try_engine(self, worker: Worker, role: str, inputs: Path, expected: Arrays) -> Trial:
        """Hold one engine to the gate, then time it and ONNX Runtime in turns."""
        found = self._folder / "found.npz"
        worker.run(inputs, ROWS[role], found)
        distances = measure_distances(expected, read_arrays(found))
        batches = timed_batches(role)
        pairs: list[tuple[float, ...]] = []
        started = time.monotonic()
        while len(pairs) < ROUNDS and (len(pairs) < 2 or time.monotonic() - started < ENOUGH_SECONDS):
            pair = (engine.run(inputs, batches).seconds for engine in (self._workers[ONNXRUNTIME], worker))
            pairs.append(tuple(pair))
        # The best of each: what else runs on the machine only ever adds to a time.
        baseline, seconds = (min(times) / sum(batches) for times in zip(*pairs, strict=True))
        return Trial(
            worker.engine,
            seconds=seconds,
            baseline=baseline,
            distances=distances,
            refused=refusal(expected, distances),
        )


def timed_batches(role: str) -> list[int]:
    """The batches that are timed: the first of those that are compared, up to eight rows."""
    batches: list[int] = []
    for rows in ROWS[role]:
        if sum(batches) + rows <= TIMED_ROWS:
            batches.append(rows)
    return batches


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file."""
    with np.load(file) as arrays:
        return dict(arrays)
