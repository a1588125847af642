"""Triton's `onnxruntime` backend in Python: runs `model.onnx` with the onnxruntime package.

Triton takes its own C++ backend of this name where there is one (the stock NVIDIA container) and this file
where there is none (the embedded server), so that one model repository, unchanged, runs on both. The fields
of the configuration that the C++ backend reads are honoured here in the same way, or refused by name at load:
https://github.com/triton-inference-server/onnxruntime_backend, `src/onnxruntime.cc`.

It runs inside Triton's Python stub and is self-contained: NumPy and onnxruntime only. Unlike the C++ backend
it answers each request of a batch on its own: one that cannot run does not fail its neighbours.
"""

import json
import os
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

ELEMENT_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
DEFAULT_MAX_BATCH_SIZE = 4
INITIALIZERS = "session.use_device_allocator_for_initializers"
SHRINKAGE = "memory.enable_memory_arena_shrinkage"
PACKAGES = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
}
# Features of Triton that the C++ backend has and this one has not.
UNSUPPORTED = ("sequence_batching", "batch_input", "batch_output", "cc_model_filenames")
TENSORRT_PRECISION: dict[str, dict[str, str]] = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}
TENSORRT_RENAMED = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
BOOLEANS = {"1": True, "true": True, "0": False, "false": False}
# The producer's name, which comes first in a file: tercet_export wrote a graph of fp16.
HALF_PRECISION = b"tercet fp16"

Feed = dict[str, np.ndarray]


class ConfigurationError(Exception):
    """The configuration asks for what this backend cannot do; the model is not loaded."""


class RequestError(Exception):
    """One request cannot be run; its neighbours can."""


def require(condition: bool, message: str) -> None:
    """Refuse the configuration unless `condition` holds."""
    if not condition:
        raise ConfigurationError(message)


def model_file(model_folder: str, version: str, config: dict[str, Any]) -> Path:
    """Return the graph: `model.onnx`, or what the configuration names; a folder holds a `model.onnx`."""
    file = Path(model_folder) / version / (config.get("default_model_filename") or "model.onnx")
    file = file / "model.onnx" if file.is_dir() else file
    require(file.is_file(), f"unable to find '{file}' for model '{config['name']}'")
    return file


def parameter(config: dict[str, Any], name: str) -> str | None:
    """Return the value of a parameter of the configuration, None where it is not given."""
    entry = config.get("parameters", {}).get(name)
    return None if entry is None else str(entry["string_value"])


def integer(config: dict[str, Any], name: str) -> int:
    """Return a parameter that is an integer, 0 where it is not given."""
    text = parameter(config, name)
    try:
        return 0 if text is None else int(text)
    except ValueError as error:
        raise ConfigurationError(f"parameter {name} must be an integer, not '{text}'") from error


def boolean(config: dict[str, Any], name: str) -> bool | None:
    """Return a parameter that is true or false, None where it is not given."""
    text = parameter(config, name)
    if text is None:
        return None
    require(text.lower() in BOOLEANS, f"parameter {name} must be true or false, not '{text}'")
    return BOOLEANS[text.lower()]


def choice(config: dict[str, Any], name: str, values: list[str]) -> str:
    """Return the value that a parameter, an index into `values`, chooses (the first if it is not given)."""
    index = integer(config, name)
    last = len(values) - 1
    require(0 <= index <= last, f"parameter {name} must be between 0 and {last}, not {index}")
    return values[index]


def session_options(config: dict[str, Any]) -> Any:
    """Return onnxruntime's session options as the configuration wants them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    level = config.get("optimization", {}).get("graph", {}).get("level", 0)
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = {
        -1: levels.ORT_ENABLE_BASIC,
        1: levels.ORT_ENABLE_EXTENDED,
        2: levels.ORT_DISABLE_ALL,
    }.get(int(level), levels.ORT_ENABLE_ALL)
    mode = choice(config, "execution_mode", ["ORT_SEQUENTIAL", "ORT_PARALLEL"])
    options.execution_mode = getattr(onnxruntime.ExecutionMode, mode)
    options.intra_op_num_threads = max(integer(config, "intra_op_thread_count"), 0) or default_threads()
    options.inter_op_num_threads = max(integer(config, "inter_op_thread_count"), 0)
    # Every model is a process here: threads that spin for work would take the processors from the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if (arena := boolean(config, "enable_mem_arena")) is not None:
        options.enable_cpu_mem_arena = arena
    if (pattern := boolean(config, "enable_mem_pattern")) is not None:
        options.enable_mem_pattern = pattern
    if entry := parameter(config, INITIALIZERS):
        options.add_session_config_entry(INITIALIZERS, entry)
    for library in config.get("model_operations", {}).get("op_library_filename", []):
        options.register_custom_ops_library(library)
    return options


def spare_half_precision(file: Path, options: Any, providers: list[tuple[str, dict[str, str]]]) -> None:
    """Leave out onnxruntime's later optimisations for a graph of fp16 on the CPU, where they break it.

    They crash the process (microsoft/onnxruntime#28392, seen with 1.32), or make nodes that have no kernel
    there (#32186).
    """
    import onnxruntime

    with file.open("rb") as content:
        half = HALF_PRECISION in content.read(64)
    basic = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if half and all(name == "CPUExecutionProvider" for name, _ in providers):
        options.graph_optimization_level = min(options.graph_optimization_level, basic, key=int)


def default_threads() -> int:
    """Return how many threads one operator may use: the processors that this process may run on."""
    return int(os.environ.get("TERCET_THREADS") or len(os.sched_getaffinity(0)))


def execution_providers(config: dict[str, Any], kind: str, device: str) -> list[tuple[str, dict[str, str]]]:
    """Return the execution providers to ask for, in order, with their options.

    As in the C++ backend the GPU's accelerators are not even looked at on a CPU instance.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    providers: list[tuple[str, dict[str, str]]] = []
    if kind == "GPU":
        cuda = {"device_id": device}
        for accelerator in accelerators.get("gpu_execution_accelerator", []):
            name, options = accelerator["name"], accelerator.get("parameters", {})
            require(name in ("tensorrt", "cuda"), f"unknown Execution Accelerator '{name}' is requested")
            if name == "cuda":
                cuda = {**options, **cuda}
            else:
                tensorrt = {**tensorrt_options(options), "device_id": device}
                providers.append(("TensorrtExecutionProvider", tensorrt))
        if config.get("parameters"):
            cuda |= cuda_options(config)
        providers.append(("CUDAExecutionProvider", cuda))
    for accelerator in accelerators.get("cpu_execution_accelerator", []):
        name = accelerator["name"]
        require(name == "openvino", f"unknown Execution Accelerator '{name}' is requested")
        providers.append(("OpenVINOExecutionProvider", {"device_type": "CPU"}))
    return [*providers, ("CPUExecutionProvider", {})]


def cuda_options(config: dict[str, Any]) -> dict[str, str]:
    """Return the CUDA provider's options from the parameters, with the C++ backend's own defaults."""
    searches, strategies = ["EXHAUSTIVE", "HEURISTIC", "DEFAULT"], ["kNextPowerOfTwo", "kSameAsRequested"]
    return {
        "cudnn_conv_algo_search": choice(config, "cudnn_conv_algo_search", searches),
        "gpu_mem_limit": parameter(config, "gpu_mem_limit") or str(2**64 - 1),
        "arena_extend_strategy": choice(config, "arena_extend_strategy", strategies),
        "do_copy_in_default_stream": parameter(config, "do_copy_in_default_stream") or "1",
    }


def tensorrt_options(parameters: dict[str, str]) -> dict[str, str]:
    """Return the TensorRT provider's options; onnxruntime refuses an unknown `trt_...` by name."""
    options: dict[str, str] = {}
    for name, value in parameters.items():
        if name == "precision_mode" and value in TENSORRT_PRECISION:
            options |= TENSORRT_PRECISION[value]
        else:
            known = name in TENSORRT_RENAMED or name.startswith("trt_")
            require(known, f"TensorRT Execution Accelerator: unknown parameter '{name}' or value '{value}'")
            options[TENSORRT_RENAMED.get(name, name)] = value
    return options


def create_session(file: Path, options: Any, providers: list[tuple[str, dict[str, str]]]) -> Any:
    """Open the graph with exactly these providers; onnxruntime alone would fall back on the CPU."""
    import onnxruntime

    wanted = [name for name, _ in providers]
    available = onnxruntime.get_available_providers()
    for name in wanted:
        require(
            name in available,
            f"{name} is requested, and the installed onnxruntime {onnxruntime.__version__} has only "
            f"{', '.join(available)}: install {PACKAGES.get(name)} in its place, or do not request it",
        )
    session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    failed = ", ".join(name for name in wanted if name not in session.get_providers())
    require(not failed, f"{failed} is requested and could not be started; the server's log has the reason")
    return session


def graph_dims(node: Any) -> list[int]:
    """Return the dimensions of a graph's input or output, -1 for a dynamic one."""
    return [size if isinstance(size, int) and size >= 0 else -1 for size in node.shape]


def check_tensors(config: dict[str, Any], kind: str, nodes: dict[str, Any]) -> None:
    """Compare the inputs or outputs (`kind`) of configuration and graph, as strictly as the C++ backend.

    A fixed dimension of the graph must be the same number in the configuration, and a dynamic one of an
    output must be -1; a dynamic one of an input may be any.
    """
    batched = config["max_batch_size"] > 0
    for tensor in config[kind]:
        name = tensor["name"]
        allowed = ", ".join(nodes)
        require(name in nodes, f"unexpected inference {kind} '{name}', allowed {kind}s are: {allowed}")
        given, wanted = ELEMENT_TYPES.get(nodes[name].type, nodes[name].type), tensor["data_type"]
        require(
            given == wanted,
            f"configuration expects datatype {wanted} for {kind} '{name}', model provides {given}",
        )
        require(
            not tensor.get("allow_ragged_batch"),
            f"{kind} '{name}': allow_ragged_batch is not supported by the Python backend",
        )
        require(
            not (tensor.get("optional") and batched),
            f"optional input '{name}' is not supported for models that support batching",
        )
        dims = [int(size) for size in (tensor["reshape"]["shape"] if "reshape" in tensor else tensor["dims"])]
        check_dims(name, graph_dims(nodes[name]), [-1, *dims] if batched else dims, exact=kind == "output")


def check_dims(name: str, graph: list[int], configured: list[int], exact: bool) -> None:
    """Raise unless a tensor's dimensions in the configuration (with the batch) suit those of the graph."""
    if not graph and all(size == 1 for size in configured):
        return  # a scalar, which a configuration can only write as [1]
    fits = len(graph) == len(configured) and all(
        ours == theirs or (theirs == -1 and not exact) for ours, theirs in zip(configured, graph, strict=True)
    )
    require(
        fits,
        f"tensor '{name}': the model's shape is {graph} but the configuration says {configured}"
        " (with the batch in front where max_batch_size > 0); Triton's C++ backend refuses this too: "
        "write the graph's sizes in config.pbtxt, or make the dimension dynamic in the graph",
    )


def complete(config: dict[str, Any], session: Any) -> None:
    """Fill in what the configuration leaves out (inputs, outputs, batching), by the C++ backend's rules."""
    nodes = {"input": session.get_inputs(), "output": session.get_outputs()}
    batchable = all(graph_dims(node)[:1] == [-1] for node in [*nodes["input"], *nodes["output"]])
    require(
        batchable or config["max_batch_size"] == 0,
        "autofill failed: model does not support batching while non-zero max_batch_size is specified",
    )
    if batchable and config["max_batch_size"] == 0:
        config["max_batch_size"] = DEFAULT_MAX_BATCH_SIZE
    if config["max_batch_size"] > 1 and "sequence_batching" not in config:
        config.setdefault("dynamic_batching", {})
    batched = config["max_batch_size"] > 0
    for kind, graph in nodes.items():
        config[kind] = config.get(kind) or [complete_tensor(node, batched) for node in graph]


def complete_tensor(node: Any, batched: bool) -> dict[str, Any]:
    """Return the configuration of one tensor of the graph."""
    dims = graph_dims(node)[1 if batched else 0 :]
    tensor = {"name": node.name, "data_type": ELEMENT_TYPES.get(node.type, node.type), "dims": dims or [1]}
    return {**tensor, "reshape": {"shape": []}} if batched and not dims else tensor


def to_graph(name: str, array: np.ndarray, node: Any) -> np.ndarray:
    """Return a request's tensor as onnxruntime takes it."""
    if array.dtype == np.object_:
        try:
            texts = [element.decode() for element in array.flat]
        except UnicodeDecodeError as error:
            raise RequestError(f"input '{name}' is not UTF-8: {error}") from error
        array = np.array(texts, np.object_).reshape(array.shape)
    return array.reshape(()) if not node.shape else array


def from_graph(array: np.ndarray) -> np.ndarray:
    """Return an output of onnxruntime as Triton takes it."""
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
        import onnxruntime

        config = json.loads(args["model_config"])
        for feature in UNSUPPORTED:
            require(not config.get(feature), f"{feature} is not supported by the Python onnxruntime backend")
        providers = execution_providers(config, args["model_instance_kind"], args["model_instance_device_id"])
        file = model_file(args["model_repository"], args["model_version"], config)
        options = session_options(config)
        spare_half_precision(file, options, providers)
        self.session = create_session(file, options, providers)
        self.inputs = {node.name: node for node in self.session.get_inputs()}
        overridable = {node.name: node for node in self.session.get_overridable_initializers()}
        outputs = {node.name: node for node in self.session.get_outputs()}
        required = [tensor["name"] for tensor in config["input"] if not tensor.get("optional")]
        require(
            len(required) == len(self.inputs),
            f"configuration expects {len(required)} inputs, model provides {len(self.inputs)}",
        )
        self.inputs |= overridable
        check_tensors(config, "input", self.inputs)
        check_tensors(config, "output", outputs)
        self.batched = config["max_batch_size"] > 0
        self.run_options = onnxruntime.RunOptions()
        if shrinkage := parameter(config, SHRINKAGE):
            self.run_options.add_run_config_entry(SHRINKAGE, shrinkage)

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
        outputs = dict(zip(names, self.session.run(names, batch, self.run_options), strict=True))
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
