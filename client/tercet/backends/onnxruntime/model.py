"""Triton's `onnxruntime` backend in Python: runs `model.onnx` with the onnxruntime or openvino package.

Triton takes its own C++ backend of this name where there is one (the stock NVIDIA container) and this file
where there is none (the embedded server), so that one model repository, unchanged, runs on both. The fields
of the configuration that the C++ backend reads are honoured here in the same way, or refused by name at load:
https://github.com/triton-inference-server/onnxruntime_backend, `src/onnxruntime.cc`.

It runs inside Triton's Python stub and is self-contained, with the modules beside it: NumPy and the engines
only. Unlike the C++ backend it answers each request of a batch on its own: one that cannot run does not fail
its neighbours.
"""

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from backend_configuration import UNSUPPORTED, check_tensors, complete, model_file, require
from backend_onnxruntime import Feed
from backend_openvino import open_graph


class RequestError(Exception):
    """One request cannot be run; its neighbours can."""


def to_graph(name: str, array: np.ndarray, node: Any) -> np.ndarray:
    """Return a request's tensor as the graph takes it."""
    if array.dtype == np.object_:
        try:
            texts = [element.decode() for element in array.flat]
        except UnicodeDecodeError as error:
            raise RequestError(f"input '{name}' is not UTF-8: {error}") from error
        array = np.array(texts, np.object_).reshape(array.shape)
    return array.reshape(()) if not node.shape else array


def from_graph(array: np.ndarray) -> np.ndarray:
    """Return an output of the graph as Triton takes it."""
    if array.dtype == np.object_:
        array = np.array([text.encode() for text in array.flat], np.object_).reshape(array.shape)
    return array.reshape(1) if array.ndim == 0 else np.ascontiguousarray(array)


class TritonPythonModel:
    """One instance of a model, as Triton's Python stub drives it."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Complete the configuration from the graph, where its inputs or outputs are left out."""
        config = auto_complete_model_config.as_dict()
        if not (config["input"] and config["output"]):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            folder = Path(pb_utils.get_model_dir())
            file = str(model_file(str(folder.parent), folder.name, config))
            complete(config, onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]))
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph as the configuration wants it; raise what is wrong with either."""
        config = json.loads(args["model_config"])
        for feature in UNSUPPORTED:
            require(not config.get(feature), f"{feature} is not supported by the Python onnxruntime backend")
        file = model_file(args["model_repository"], args["model_version"], config)
        self.graph = open_graph(file, config, args["model_instance_kind"], args["model_instance_device_id"])
        required = [tensor["name"] for tensor in config["input"] if not tensor.get("optional")]
        require(
            len(required) == len(self.graph.inputs),
            f"configuration expects {len(required)} inputs, model provides {len(self.graph.inputs)}",
        )
        self.inputs = self.graph.inputs | self.graph.optional
        check_tensors(config, "input", self.inputs)
        check_tensors(config, "output", self.graph.outputs)
        self.batched = config["max_batch_size"] > 0

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests, all with one run of the graph if that succeeds."""
        responses: dict[int, Any] = {}
        feeds: dict[int, Feed] = {}
        for index, request in enumerate(requests):
            try:
                tensors = ((tensor.name(), tensor.as_numpy()) for tensor in request.inputs())
                feeds[index] = {name: to_graph(name, array, self.inputs[name]) for name, array in tensors}
            except RequestError as error:
                responses[index] = failure(error, pb_utils.TritonError.INVALID_ARG)
        wanted = [request.requested_output_names() for request in requests]
        for batch in [feeds] if self.batched else [{index: feed} for index, feed in feeds.items()]:
            responses |= self._answer(batch, wanted)
        return [responses[index] for index in range(len(requests))]

    def _answer(self, feeds: dict[int, Feed], wanted: list[list[str]]) -> dict[int, Any]:
        """Run these requests as one batch; where that fails, halve it until only the culprits do."""
        try:
            return self._run(feeds, wanted) if feeds else {}
        except Exception as error:
            indices = list(feeds)
            if len(indices) == 1:
                return {indices[0]: failure(error, pb_utils.TritonError.INTERNAL)}
            middle = len(indices) // 2
            first, second = ({i: feeds[i] for i in half} for half in (indices[:middle], indices[middle:]))
            return self._answer(first, wanted) | self._answer(second, wanted)

    def _run(self, feeds: dict[int, Feed], wanted: list[list[str]]) -> dict[int, Any]:
        """Run the graph once for these requests; return the response of each."""
        batch = next(iter(feeds.values()))
        ends: list[int] = []
        if self.batched:
            ends = list(accumulate(len(next(iter(feed.values()))) for feed in feeds.values()))
        if len(feeds) > 1:
            batch = {name: np.concatenate([feed[name] for feed in feeds.values()]) for name in batch}
        names = sorted({name for index in feeds for name in wanted[index]})
        outputs = dict(zip(names, self.graph.run(names, batch), strict=True))
        for name, array in outputs.items():
            if ends and len(array) != ends[-1]:
                raise RequestError(f"output '{name}' has {len(array)} rows for a batch of {ends[-1]}")
        parts = {name: np.split(array, ends[:-1]) if ends else [array] for name, array in outputs.items()}
        responses = {}
        for place, index in enumerate(feeds):
            tensors = [pb_utils.Tensor(name, from_graph(parts[name][place])) for name in wanted[index]]
            responses[index] = pb_utils.InferenceResponse(output_tensors=tensors)
        return responses


def failure(error: Exception, code: int) -> Any:
    """Return the response that tells one client what went wrong."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
