"""Runs a graph with the onnxruntime package, by what the configuration says to Triton's C++ backend.

Part of the Python onnxruntime backend (`model.py`); self-contained.
"""

import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from backend_configuration import (
    boolean,
    choice,
    integer,
    parameter,
    require,
)

INITIALIZERS = "session.use_device_allocator_for_initializers"
SHRINKAGE = "memory.enable_memory_arena_shrinkage"
BATCH_SIZES = "fixed_batch_sizes"
PACKAGES = {
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "OpenVINOExecutionProvider": "onnxruntime-openvino",
}
NVIDIA = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
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
# Operators that a network's numbers go through. What counts shapes stays on the processor, and should.
COMPUTING = {
    *("Attention", "AveragePool", "Conv", "ConvTranspose", "Einsum", "Gelu", "Gemm", "GridSample"),
    *("InstanceNormalization", "LayerNormalization", "MatMul", "MaxPool", "RMSNormalization", "Resize"),
    *("Sigmoid", "Softmax", "TopK"),
}
# The producer's name, which comes first in a file: tercet_export wrote a graph of fp16.
HALF_PRECISION = b"tercet fp16"

Feed = dict[str, np.ndarray]


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
    options.intra_op_num_threads = operator_threads(config)
    options.inter_op_num_threads = max(integer(config, "inter_op_thread_count"), 0)
    # Every model is a process here: threads that spin for work would take the processors from the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # since 1.24
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


def operator_threads(config: dict[str, Any]) -> int:
    """Return how many threads one operator may use: else this instance's share of the processors."""
    configured = max(integer(config, "intra_op_thread_count"), 0)
    available = int(os.environ.get("TERCET_THREADS") or len(os.sched_getaffinity(0)))
    instances = sum(int(group.get("count", 1)) for group in config.get("instance_group", []))
    return configured or max(available // max(instances, 1), 1)


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
    if (properties := openvino_properties(config)) is not None:
        load = {name: value for name, value in properties.items() if name != "CACHE_DIR"}
        options = {"device_type": "CPU", "load_config": json.dumps({"CPU": load})}
        if "CACHE_DIR" in properties:
            options["cache_dir"] = properties["CACHE_DIR"]
        providers.append(("OpenVINOExecutionProvider", options))
    return [*providers, ("CPUExecutionProvider", {})]


def openvino_properties(config: dict[str, Any]) -> dict[str, str] | None:
    """Return the properties of OpenVINO's CPU plugin, None where no accelerator `openvino` is requested.

    The accelerator's parameters are such properties by their own names, above all INFERENCE_PRECISION_HINT
    (f32 unless it says bf16). The C++ backend reads no parameters of this accelerator.
    """
    properties: dict[str, str] | None = None
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    for accelerator in accelerators.get("cpu_execution_accelerator", []):
        name = accelerator["name"]
        require(name == "openvino", f"unknown Execution Accelerator '{name}' is requested")
        properties = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": str(operator_threads(config)),
            "PERFORMANCE_HINT": "LATENCY",
            # Every model is a process here: bound to processors, they would get into each other's way.
            "ENABLE_CPU_PINNING": "NO",
            **accelerator.get("parameters", {}),
        }
    return properties


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
    if NVIDIA.intersection(wanted) and hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        # CUDA's libraries may be wheels beside onnxruntime, where the loader does not look for them.
        onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    failed = ", ".join(name for name in wanted if name not in session.get_providers())
    require(not failed, f"{failed} is requested and could not be started; the server's log has the reason")
    if left := left_on_processor(session):
        warnings.warn(
            f"{file}: {left} run on the processor: onnxruntime-gpu {onnxruntime.__version__} has no CUDA "
            "kernel for these, and a batch leaves the card and comes back at each. Export anew, or take "
            "another version of it",
            stacklevel=2,
        )
    return session


def left_on_processor(session: Any) -> str:
    """Return which operators that compute a session with a card leaves to the CPU, as `33 MaxPool`.

    Nothing where there are none, and where onnxruntime, older than 1.24, does not tell.
    """
    if not NVIDIA.intersection(session.get_providers()):
        return ""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return ""
    found = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
        if node.op_type in COMPUTING
    )
    return ", ".join(f"{count} {operator}" for operator, count in found.most_common())


def batch_sizes(config: dict[str, Any]) -> list[int]:
    """Return the batch sizes that a graph is opened for, of the parameter `fixed_batch_sizes`; none: for any.

    The CUDA provider prepares each convolution for its input's shape and forgets it at the next shape
    (microsoft/onnxruntime#23006), which is what IS-Net under load seems to spend its time on (docs/gpu.md).
    Each size has a session of its own here, and smaller batches are filled up. The C++ backend reads no such
    parameter.
    """
    text = parameter(config, BATCH_SIZES)
    if text is None:
        return []
    sizes = [int(size) for size in text.split(",") if size.strip().isdecimal()]
    largest = int(config["max_batch_size"])
    require(
        bool(sizes) and len(sizes) == text.count(",") + 1 and sizes[0] > 0 and sizes == sorted(set(sizes)),
        f"parameter {BATCH_SIZES} must be rising numbers such as 1,2,4,8, not '{text}'",
    )
    require(sizes[-1] == largest, f"parameter {BATCH_SIZES} must end with max_batch_size {largest}: '{text}'")
    return sizes


class OnnxRuntimeGraph:
    """A graph opened with the onnxruntime package.

    `inputs`, `optional` (inputs that have a value of their own) and `outputs` are its tensors by name, as
    onnxruntime describes them: `name`, `type`, `shape`.
    """

    def __init__(self, file: Path, config: dict[str, Any], kind: str, device: str) -> None:
        import onnxruntime

        providers = execution_providers(config, kind, device)
        options = session_options(config)
        spare_half_precision(file, options, providers)
        self.sessions = {
            size: create_session(file, options, providers) for size in batch_sizes(config) or [0]
        }
        session = next(iter(self.sessions.values()))
        self.inputs = {node.name: node for node in session.get_inputs()}
        self.optional = {node.name: node for node in session.get_overridable_initializers()}
        self.outputs = {node.name: node for node in session.get_outputs()}
        self.run_options = onnxruntime.RunOptions()
        if shrinkage := parameter(config, SHRINKAGE):
            self.run_options.add_run_config_entry(SHRINKAGE, shrinkage)

    def run(self, names: Sequence[str], feed: Feed) -> list[np.ndarray]:
        """Return the outputs of these names."""
        if (anything := self.sessions.get(0)) is not None:
            return anything.run(names, feed, self.run_options)
        rows = len(next(iter(feed.values())))
        size = next(size for size in self.sessions if size >= rows)
        if size > rows:
            filled = np.minimum(np.arange(size), rows - 1)
            feed = {name: array[filled] for name, array in feed.items()}
        return [array[:rows] for array in self.sessions[size].run(names, feed, self.run_options)]
