"""Runs graphs as the backend does, without Triton, to try engines (`tercet.server.engines.trials`).

    python trial.py

Commands and answers are JSON objects, one a line, on standard input and output:

    {"open": FILE, "config": {...}}                    ->  {"inputs": {NAME: [TYPE, SHAPE], ...}}
    {"open": null}                                     ->  {}, and the memory of the last one is free
    {"run": INPUTS.npz, "batches": [1, 2, 5]}          ->  {"seconds": 0.1, "processor_seconds": 0.2}, in all
    {"run": ..., "batches": ..., "save": OUTPUTS.npz}  ->  the same, and the file is written

Whatever fails is answered by {"error": MESSAGE}.
"""

import json
import os
import sys
import time
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from backend_configuration import ELEMENT_TYPES, graph_dims
from backend_openvino import open_graph


class Trial:
    """The graph that is open, and the inputs that were read last."""

    def __init__(self) -> None:
        self.graph: Any = None
        self.inputs: tuple[str, dict[str, np.ndarray]] = ("", {})

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do what a command says."""
        if "open" in command:
            self.graph = None  # its memory is free before the next one needs any
            if command["open"] is None:
                return {}
            self.graph = open_graph(Path(command["open"]), command["config"], "CPU", "0")
            nodes = self.graph.inputs.values()
            return {"inputs": {node.name: [ELEMENT_TYPES[node.type], graph_dims(node)] for node in nodes}}
        return self.run(command["run"], command["batches"], command.get("save"))

    def run(self, file: str, batches: list[int], save: str | None) -> dict[str, Any]:
        """Run the first rows of the inputs in these batches; the graph's time, and that of all threads."""
        if self.inputs[0] != file:
            with np.load(file) as arrays:
                self.inputs = (file, dict(arrays))
        ends = [0, *accumulate(batches)]
        names, results = list(self.graph.outputs), []
        seconds = processor_seconds = 0.0
        for start, end in pairwise(ends):
            feed = {name: array[start:end] for name, array in self.inputs[1].items()}
            started, used = time.perf_counter(), time.process_time()
            results.append(self.graph.run(names, feed))
            seconds += time.perf_counter() - started
            processor_seconds += time.process_time() - used
        if save is not None:
            np.savez(save, **{name: np.concatenate([r[i] for r in results]) for i, name in enumerate(names)})
        return {"seconds": seconds, "processor_seconds": processor_seconds}


def main() -> None:
    """Answer commands until there are no more."""
    # What an engine prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    trial = Trial()
    for line in sys.stdin:
        try:
            answer = trial.answer(json.loads(line))
        except Exception as error:
            answer = {"error": str(error) or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
