"""The Python onnxruntime backend's engines, without Triton: options, providers, and what OpenVINO does."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tercet.server.engines.choice import ENGINES
from tercet.server.runtime import BACKEND
from tests.serving.graphs import PRECISIONS, directly, double, graph, network, write_model


@pytest.fixture(scope="module")
def backend() -> Iterator[ModuleType]:
    """The part of the backend that runs onnxruntime, imported as Triton's stub does."""
    sys.path.insert(0, str(BACKEND))
    yield importlib.import_module("backend_onnxruntime")
    sys.path.remove(str(BACKEND))


def refusal() -> type[Exception]:
    """What the backend raises at load."""
    return importlib.import_module("backend_configuration").ConfigurationError


def config_of(parameters: dict[str, str], **fields: Any) -> dict[str, Any]:
    return {"parameters": {name: {"string_value": value} for name, value in parameters.items()}, **fields}


def batch_seen() -> onnx.ModelProto:
    """Two outputs for each row: the row, and of how many rows the graph was run."""
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Shape", ["x"], ["count"], start=0, end=1),
        helper.make_node("Cast", ["count"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "number"], ["seen"]),
    ]
    row = (TensorProto.FLOAT, ("batch", 1))
    return graph(nodes, {"x": row}, {"y": row, "seen": row}, {"zero": np.zeros(1, np.float32)})


def test_fixed_batch_sizes_fill_batches_up_and_answer_only_what_was_asked(
    backend: ModuleType, tmp_path: Path
) -> None:
    file = write_model(tmp_path, "seen", batch_seen())
    config = config_of({"fixed_batch_sizes": "1,2,5"}, max_batch_size=5)
    fixed = backend.OnnxRuntimeGraph(file, config, "CPU", "0")
    free = backend.OnnxRuntimeGraph(file, config_of({}, max_batch_size=5), "CPU", "0")
    for rows, seen in ((1, 1), (2, 2), (3, 5), (4, 5), (5, 5)):
        x = np.arange(rows, dtype=np.float32)[:, None]
        y, number = fixed.run(["y", "seen"], {"x": x})
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(number, np.full_like(x, seen))
        np.testing.assert_array_equal(free.run(["seen"], {"x": x})[0], np.full_like(x, rows))


@pytest.mark.parametrize("sizes", ["", "1,two,8", "8,1", "0,8", "1,1,8", "1,2,4", "1,16"])
def test_fixed_batch_sizes_that_make_no_sense_are_refused(backend: ModuleType, sizes: str) -> None:
    with pytest.raises(refusal(), match="fixed_batch_sizes"):
        backend.batch_sizes(config_of({"fixed_batch_sizes": sizes}, max_batch_size=8))


def test_session_options_follow_the_parameters(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    options = backend.session_options(
        config_of(
            {
                "intra_op_thread_count": "3",
                "inter_op_thread_count": "2",
                "execution_mode": "1",
                "enable_mem_arena": "0",
                "enable_mem_pattern": "0",
                "session.use_device_allocator_for_initializers": "1",
            }
        )
    )
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"

    monkeypatch.setenv("TERCET_THREADS", "5")
    shared = {"instance_group": [{"count": 2, "kind": "KIND_CPU"}]}
    assert backend.session_options(shared).intra_op_num_threads == 2  # a process each
    shared["instance_group"][0]["count"] = 8
    assert backend.session_options(shared).intra_op_num_threads == 1
    options = backend.session_options({})
    assert options.intra_op_num_threads == 5
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.enable_cpu_mem_arena
    assert options.enable_mem_pattern


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (-1, "ORT_ENABLE_BASIC"),
        (0, "ORT_ENABLE_ALL"),
        (1, "ORT_ENABLE_EXTENDED"),
        (2, "ORT_DISABLE_ALL"),
        (3, "ORT_ENABLE_ALL"),
    ],
)
def test_graph_optimization_levels_are_the_cpp_backends(
    backend: ModuleType, level: int, expected: str
) -> None:
    options = backend.session_options({"optimization": {"graph": {"level": level}}})
    assert options.graph_optimization_level == getattr(onnxruntime.GraphOptimizationLevel, expected)


def test_providers_of_a_gpu_instance(backend: ModuleType) -> None:
    assert backend.execution_providers({}, "CPU", "0") == [("CPUExecutionProvider", {})]
    assert backend.execution_providers({}, "GPU", "1") == [
        ("CUDAExecutionProvider", {"device_id": "1"}),
        ("CPUExecutionProvider", {}),
    ]
    tensorrt = {
        "precision_mode": "FP16",
        "max_workspace_size_bytes": "1073741824",
        "trt_engine_cache_enable": "1",
    }
    accelerators = {
        "gpu_execution_accelerator": [
            {"name": "tensorrt", "parameters": tensorrt},
            {"name": "cuda", "parameters": {"enable_cuda_graph": "1", "device_id": "7"}},
        ]
    }
    config = config_of(
        {"cudnn_conv_algo_search": "1", "gpu_mem_limit": "4096", "arena_extend_strategy": "1"},
        optimization={"execution_accelerators": accelerators},
    )
    assert backend.execution_providers(config, "GPU", "1") == [
        (
            "TensorrtExecutionProvider",
            {
                "trt_fp16_enable": "1",
                "trt_max_workspace_size": "1073741824",
                "trt_engine_cache_enable": "1",
                "device_id": "1",
            },
        ),
        (
            "CUDAExecutionProvider",
            {
                "enable_cuda_graph": "1",
                "device_id": "1",
                "cudnn_conv_algo_search": "HEURISTIC",
                "gpu_mem_limit": "4096",
                "arena_extend_strategy": "kSameAsRequested",
                "do_copy_in_default_stream": "1",
            },
        ),
        ("CPUExecutionProvider", {}),
    ]
    for name, parameters in {"abacus": {}, "tensorrt": {"precision_mode": "FP4"}}.items():
        entry = {"name": name, "parameters": parameters}
        unknown = {"optimization": {"execution_accelerators": {"gpu_execution_accelerator": [entry]}}}
        with pytest.raises(refusal(), match=r"unknown"):
            backend.execution_providers(unknown, "GPU", "0")
        assert backend.execution_providers(unknown, "CPU", "0") == [("CPUExecutionProvider", {})]


def test_openvino_is_onnxruntimes_provider_where_it_has_one(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERCET_THREADS", "5")
    given = {"INFERENCE_PRECISION_HINT": "bf16", "CACHE_DIR": "compiled"}
    accelerators = {"cpu_execution_accelerator": [{"name": "openvino", "parameters": given}]}
    config = config_of({}, optimization={"execution_accelerators": accelerators})
    (name, options), last = backend.execution_providers(config, "CPU", "0")
    assert (name, last) == ("OpenVINOExecutionProvider", ("CPUExecutionProvider", {}))
    assert (options["device_type"], options["cache_dir"]) == ("CPU", "compiled")
    properties = json.loads(options["load_config"])["CPU"]
    assert properties["INFERENCE_PRECISION_HINT"] == "bf16"
    assert properties["INFERENCE_NUM_THREADS"] == "5"
    config["parameters"] = {"intra_op_thread_count": {"string_value": "3"}}
    assert backend.openvino_properties(config)["INFERENCE_NUM_THREADS"] == "3"
    assert backend.openvino_properties({}) is None


def test_openvino_that_is_not_installed_is_named(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = importlib.import_module("backend_openvino")
    file = write_model(tmp_path, "double", double())
    accelerators = {"cpu_execution_accelerator": [{"name": "openvino"}]}
    config = config_of({}, optimization={"execution_accelerators": accelerators})
    monkeypatch.setattr(openvino.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(refusal(), match="pip install openvino"):
        openvino.open_graph(file, config, "CPU", "0")
    assert openvino.open_graph(file, {}, "CPU", "0").run(["y"], {"x": np.ones((1, 2), np.float32)})


def test_another_precision_than_asked_for_is_refused(backend: ModuleType, tmp_path: Path) -> None:
    openvino = importlib.import_module("backend_openvino")
    file = write_model(tmp_path, "network", network())
    graph = openvino.OpenVinoGraph(file, {}, {"INFERENCE_PRECISION_HINT": "f32"})
    x = np.ones((3, 64), np.float32)
    np.testing.assert_allclose(graph.run(["y"], {"x": x})[0], directly(network(), {"x": x})["y"], rtol=1e-5)
    # What OpenVINO cannot do it does in another precision, without a word.
    with pytest.raises(refusal(), match=r"OpenVINO in undefined is requested, .* runs in"):
        openvino.OpenVinoGraph(file, {}, {"INFERENCE_PRECISION_HINT": "undefined"})


def repeated() -> onnx.ModelProto:
    """Three times state = state @ weights + offset, both of which are made of x before the loop."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "weights"], ["product"]),
            helper.make_node("Add", ["product", "offset"], ["next"]),
            helper.make_node("Identity", ["go"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "mixing"], ["weights"]),
        helper.make_node("Mul", ["x", "shift"], ["offset"]),
        helper.make_node("Loop", ["steps", "", "x"], ["y"], body=body),
    ]
    square = (TensorProto.FLOAT, ("batch", 64, 64))
    mixing = np.random.default_rng(1).normal(0, 0.02, (64, 64)).astype(np.float32)
    numbers = {"mixing": mixing, "shift": np.array(0.3, np.float32), "steps": np.array(3)}
    return graph(nodes, {"x": square}, {"y": square}, numbers)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_a_loop_reads_in_bf16_is_rounded_once_and_alike(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    module = importlib.import_module("backend_openvino")
    file = write_model(tmp_path, "repeated", repeated())
    x = np.random.default_rng(0).standard_normal((3, 64, 64)).astype(np.float32)
    seen: list[Any] = []

    def round_and_see(model: Any) -> None:
        module_round(model)
        (loop,) = [node for node in model.get_ops() if node.get_type_name() == "Loop"]
        seen.extend(parameter.get_element_type().get_type_name() for parameter in loop.get_function().inputs)

    module_round = module.round_before_loops
    answers = []
    for change in (round_and_see, lambda model: None):
        monkeypatch.setattr(module, "round_before_loops", change)
        loaded = module.OpenVinoGraph(file, {}, {"INFERENCE_PRECISION_HINT": precision})
        answers.append(loaded.run(["y"], {"x": x})[0])
    # The weights alone: the state is not read only, and what is added was never rounded.
    assert seen.count("bf16") == (precision == "bf16")
    np.testing.assert_array_equal(*answers)
    expected = directly(repeated(), {"x": x})["y"]
    assert np.abs(answers[0] - expected).max() < (0.02 if precision == "bf16" else 1e-5) * expected.max()


INT8 = dict(ENGINES["openvino-int8"] or {})


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_in_int8_are_near_and_each_row_by_itself(
    backend: ModuleType, tmp_path: Path, transposed: bool
) -> None:
    module = importlib.import_module("backend_openvino")
    random, shape = np.random.default_rng(0), (TensorProto.FLOAT, ("batch", 256))
    matrix = (random.standard_normal((256, 256)) / 16).astype(np.float32)
    matrix[:, 0] *= 1000  # of one output: no other is rounded more coarsely for it
    matrix[128:, 1] = 0  # a whole group
    if transposed:
        nodes = [helper.make_node("Gemm", ["x", "matrix"], ["y"], transB=1)]
    else:
        nodes = [helper.make_node("MatMul", ["x", "matrix"], ["y"])]
    weights = {"matrix": np.ascontiguousarray(matrix.T) if transposed else matrix}
    file = write_model(tmp_path, "product", graph(nodes, {"x": shape}, {"y": shape}, weights))
    x = random.standard_normal((7, 256)).astype(np.float32)
    x[3] *= 1000  # one row of the batch: no other is rounded more coarsely for it
    loaded = module.OpenVinoGraph(file, {}, INT8)
    (found,) = loaded.run(["y"], {"x": x})
    expected = x @ matrix
    difference = np.abs(found - expected)[:, 1:] / expected[:, 1:].std(axis=1, keepdims=True)
    assert 1e-3 < difference.max() < 0.1
    for row in range(len(x)):
        np.testing.assert_allclose(loaded.run(["y"], {"x": x[row : row + 1]})[0][0], found[row], rtol=1e-5)


def test_what_has_no_whole_groups_is_not_rounded(backend: ModuleType, tmp_path: Path) -> None:
    module = importlib.import_module("backend_openvino")
    file = write_model(tmp_path, "network", network())
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    expected = directly(network(), {"x": x})["y"]
    for size in ("128", "0"):
        loaded = module.OpenVinoGraph(file, {}, {**INT8, "DYNAMIC_QUANTIZATION_GROUP_SIZE": size})
        np.testing.assert_allclose(loaded.run(["y"], {"x": x})[0], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(refusal(), match="GROUP_SIZE is 'few': give a whole number"):
        module.OpenVinoGraph(file, {}, {**INT8, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "few"})
    rounded = module.OpenVinoGraph(file, {}, {**INT8, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"})
    assert np.abs(rounded.run(["y"], {"x": x})[0] - expected).max() > 1e-3


def test_openvinos_telemetry_stays_unimported(backend: ModuleType) -> None:
    code = "import sys, backend_openvino as b; b.import_openvino(); print(sys.modules['openvino_telemetry'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BACKEND, capture_output=True, text=True, check=True
    )
    assert done.stdout == "None\n"


def test_a_gpu_provider_that_is_not_installed_is_no_silent_fallback(
    backend: ModuleType, tmp_path: Path
) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    file = write_model(tmp_path, "double", double())
    providers = backend.execution_providers({}, "GPU", "0")
    with pytest.raises(refusal(), match=r"CUDAExecutionProvider .* install onnxruntime-gpu"):
        backend.create_session(file, backend.session_options({}), providers)


def test_what_a_card_leaves_to_the_processor_is_told(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = [("CPUExecutionProvider", {})]
    file = write_model(tmp_path, "network", network())
    session = backend.create_session(file, backend.session_options({}), providers)
    assert backend.left_on_processor(session) == ""  # there is no card
    monkeypatch.setattr(backend, "NVIDIA", {"CPUExecutionProvider"})
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with pytest.warns(UserWarning, match=r"model.onnx: 4 MatMul run on the processor: .* no CUDA kernel"):
        session = backend.create_session(file, backend.session_options({}), providers)
    assert backend.left_on_processor(session) == "4 MatMul"
    file = write_model(tmp_path, "double", double())  # a sum is not worth a word
    session = backend.create_session(file, backend.session_options({}), providers)
    assert backend.left_on_processor(session) == ""


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
def test_cudas_libraries_are_loaded_from_wheels_before_a_session_needs_them(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    happened = []

    class Session:
        def __init__(self, file: str, options: Any, providers: list[Any]) -> None:
            happened.append("session")
            self.names = [name for name, _ in providers]

        def get_providers(self) -> list[str]:
            return self.names

    known = [provider, "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: happened.append("libraries"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    file = write_model(tmp_path, "double", double())
    backend.create_session(file, backend.session_options({}), [(name, {}) for name in known])
    assert happened == ["libraries", "session"]
    backend.create_session(file, backend.session_options({}), [("CPUExecutionProvider", {})])
    assert happened == ["libraries", "session", "session"]
