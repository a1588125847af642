"""The Python onnxruntime backend in a real Triton: it answers as onnxruntime, refuses as the C++ backend."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tritonclient.utils import np_to_triton_dtype

from tercet.errors import ServerStartError
from tercet.server import EmbeddedServer
from tests.serving.graphs import (
    CPU,
    DOUBLE,
    LOOKUP,
    NETWORK,
    PRECISIONS,
    Outputs,
    directly,
    double,
    graph,
    lookup,
    network,
    write_model,
)

TYPES = {
    "BOOL": (TensorProto.BOOL, np.bool_),
    "UINT8": (TensorProto.UINT8, np.uint8),
    "UINT16": (TensorProto.UINT16, np.uint16),
    "UINT32": (TensorProto.UINT32, np.uint32),
    "UINT64": (TensorProto.UINT64, np.uint64),
    "INT8": (TensorProto.INT8, np.int8),
    "INT16": (TensorProto.INT16, np.int16),
    "INT32": (TensorProto.INT32, np.int32),
    "INT64": (TensorProto.INT64, np.int64),
    "FP16": (TensorProto.FLOAT16, np.float16),
    "FP32": (TensorProto.FLOAT, np.float32),
    "FP64": (TensorProto.DOUBLE, np.float64),
    "STRING": (TensorProto.STRING, np.object_),
}
# Whatever arrives within the delay becomes one batch.
PATIENT = "dynamic_batching { preferred_batch_size: 16 max_queue_delay_microseconds: 1000000 }"
HASTY = "dynamic_batching { max_queue_delay_microseconds: 2000 }"


def every_type() -> onnx.ModelProto:
    """One output for each type of tensor, equal to its input."""
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in TYPES]
    shape = ("batch", "rows", 2)
    return graph(
        nodes,
        {f"in_{name}": (kind, shape) for name, (kind, _) in TYPES.items()},
        {f"out_{name}": (kind, shape) for name, (kind, _) in TYPES.items()},
    )


def every_type_config() -> str:
    tensors = [
        f'{side}put {{ name: "{side}_{name}" data_type: TYPE_{name} dims: [ -1, 2 ] }}'
        for side in ("in", "out")
        for name in TYPES
    ]
    return "\n".join(["max_batch_size: 8", *tensors, CPU, HASTY])


def unbatched() -> onnx.ModelProto:
    """A graph without batch: y = x * scale + offset; `scale` is a scalar, `offset` may be left out."""
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["product"]),
        helper.make_node("Add", ["product", "offset"], ["y"]),
        helper.make_node("ReduceMax", ["y"], ["largest"], keepdims=0),
    ]
    return graph(
        nodes,
        {
            "x": (TensorProto.FLOAT, (2, 3)),
            "scale": (TensorProto.FLOAT, ()),
            "offset": (TensorProto.FLOAT, (3,)),
        },
        {"y": (TensorProto.FLOAT, (2, 3)), "largest": (TensorProto.FLOAT, ())},
        {"offset": np.array([1, 2, 3], np.float32)},
    )


UNBATCHED = """
max_batch_size: 0
input { name: "x" data_type: TYPE_FP32 dims: [ 2, 3 ] }
input { name: "scale" data_type: TYPE_FP32 dims: 1 }
input { name: "offset" data_type: TYPE_FP32 dims: 3 optional: true }
output { name: "y" data_type: TYPE_FP32 dims: [ 2, 3 ] }
output { name: "largest" data_type: TYPE_FP32 dims: 1 }
"""


def reshaped() -> onnx.ModelProto:
    """The sum of each row."""
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    return graph(
        [node],
        {"x": (TensorProto.FLOAT, ("batch", 6))},
        {"y": (TensorProto.FLOAT, ("batch",))},
        {"axes": np.array([1])},
    )


RESHAPED = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 2, 3 ] reshape { shape: 6 } }
output { name: "y" data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }
"""


def distinct() -> onnx.ModelProto:
    """The distinct rows: fewer than came in, where some are equal."""
    node = helper.make_node("Unique", ["x"], ["y"], axis=0)
    return graph(
        [node], {"x": (TensorProto.FLOAT, ("batch", 1))}, {"y": (TensorProto.FLOAT, ("distinct", 1))}
    )


DISTINCT = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""


def accelerator(kind: str, name: str, **parameters: str) -> str:
    given = " ".join(f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items())
    return (
        f"optimization {{ execution_accelerators {{ {kind}_execution_accelerator "
        f'{{ name: "{name}" {given} }} }} }}'
    )


HONOURED = """
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
parameters { key: "inter_op_thread_count" value { string_value: "1" } }
parameters { key: "execution_mode" value { string_value: "1" } }
parameters { key: "enable_mem_arena" value { string_value: "1" } }
parameters { key: "enable_mem_pattern" value { string_value: "false" } }
parameters { key: "memory.enable_memory_arena_shrinkage" value { string_value: "cpu:0" } }
parameters { key: "session.use_device_allocator_for_initializers" value { string_value: "1" } }
parameters { key: "cudnn_conv_algo_search" value { string_value: "1" } }
parameters { key: "anything else" value { string_value: "is ignored" } }
optimization { graph { level: 2 } execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for each thing that is served."""
    folder = tmp_path_factory.mktemp("repository")
    write_model(folder, "every_type", every_type(), every_type_config())
    write_model(folder, "lookup", lookup(), LOOKUP + CPU + PATIENT)
    write_model(folder, "texts", texts(), TEXTS + CPU + PATIENT)
    write_model(folder, "double", double(), DOUBLE + CPU + HASTY)
    write_model(folder, "network", network(), NETWORK + CPU + PATIENT.replace("1000000", "50000"))
    write_model(folder, "unbatched", unbatched(), UNBATCHED + CPU)
    write_model(folder, "reshaped", reshaped(), RESHAPED + CPU + HASTY)
    write_model(folder, "distinct", distinct(), DISTINCT + CPU + HASTY)
    patient = PATIENT.replace("1000000", "50000")
    for precision in PRECISIONS:
        on_openvino = accelerator("cpu", "openvino", INFERENCE_PRECISION_HINT=precision)
        write_model(folder, f"network_{precision}", network(), NETWORK + CPU + patient + on_openvino)
    on_openvino = accelerator("cpu", "openvino", DYNAMIC_QUANTIZATION_GROUP_SIZE="32")
    write_model(folder, "network_int8", network(), NETWORK + CPU + patient + on_openvino)
    on_openvino = accelerator("cpu", "openvino")
    write_model(folder, "distinct_openvino", distinct(), DISTINCT + CPU + HASTY + on_openvino)
    write_model(folder, "reshaped_openvino", reshaped(), RESHAPED + CPU + HASTY + on_openvino)
    write_model(folder, "scalar_openvino", scaled(), SCALED + CPU + on_openvino)
    write_model(folder, "types_openvino", numbers(), numbers_config() + on_openvino)
    write_model(folder, "honoured", double(), DOUBLE + CPU + HONOURED)
    write_model(
        folder, "renamed", double(), DOUBLE + CPU + 'default_model_filename: "graph.onnx"', "1/graph.onnx"
    )
    write_model(folder, "in_a_folder", double(), DOUBLE + CPU, "1/model.onnx/model.onnx")
    versions = "version_policy { specific { versions: [ 3, 4 ] } }"
    write_model(folder, "versions", double(), DOUBLE + CPU + versions, "3/model.onnx")
    write_model(folder, "versions", squared(), None, "4/model.onnx")
    write_model(folder, "versions", double(), None, "5/model.onnx")
    external = write_model(folder, "external", network(), NETWORK + CPU)
    weights = {"save_as_external_data": True, "location": "weights.data", "size_threshold": 0}
    onnx.save(network(), external, **weights)
    return folder


def scaled() -> onnx.ModelProto:
    """A graph without batch: y = x * scale, where `scale` is a scalar, and its largest number."""
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["y"]),
        helper.make_node("ReduceMax", ["y"], ["largest"], keepdims=0),
    ]
    return graph(
        nodes,
        {"x": (TensorProto.FLOAT, (2, 3)), "scale": (TensorProto.FLOAT, ())},
        {"y": (TensorProto.FLOAT, (2, 3)), "largest": (TensorProto.FLOAT, ())},
    )


SCALED = """
max_batch_size: 0
input { name: "x" data_type: TYPE_FP32 dims: [ 2, 3 ] }
input { name: "scale" data_type: TYPE_FP32 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: [ 2, 3 ] }
output { name: "largest" data_type: TYPE_FP32 dims: 1 }
"""
NUMBERS = {name: kind for name, kind in TYPES.items() if name in ("UINT8", "INT32", "INT64", "FP32")}


def numbers() -> onnx.ModelProto:
    """For each type of tensor that the networks have, its input twice over."""
    nodes = [helper.make_node("Concat", [f"in_{n}", f"in_{n}"], [f"out_{n}"], axis=1) for n in NUMBERS]
    return graph(
        nodes,
        {f"in_{name}": (kind, ("batch", 3)) for name, (kind, _) in NUMBERS.items()},
        {f"out_{name}": (kind, ("batch", 6)) for name, (kind, _) in NUMBERS.items()},
    )


def numbers_config() -> str:
    tensors = [
        f'{side}put {{ name: "{side}_{name}" data_type: TYPE_{name} dims: {size} }}'
        for side, size in (("in", 3), ("out", 6))
        for name in NUMBERS
    ]
    return "\n".join(["max_batch_size: 8", *tensors, CPU, HASTY])


def squared() -> onnx.ModelProto:
    shape = ("batch", "length")
    node = helper.make_node("Mul", ["x", "x"], ["y"])
    return graph([node], {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)})


def texts() -> onnx.ModelProto:
    """Texts in, the same texts out."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return graph([node], {"x": (TensorProto.STRING, ("batch", 1))}, {"y": (TensorProto.STRING, ("batch", 1))})


TEXTS = """
max_batch_size: 16
input { name: "x" data_type: TYPE_STRING dims: 1 }
output { name: "y" data_type: TYPE_STRING dims: 1 }
"""


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(repository) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: EmbeddedServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_address) as connected:
        yield connected


def infer(
    client: grpc.InferenceServerClient,
    model: str,
    inputs: dict[str, np.ndarray],
    outputs: Sequence[str] = (),
    version: str = "",
) -> Outputs:
    tensors = []
    for name, array in inputs.items():
        tensors.append(grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    wanted = [grpc.InferRequestedOutput(name) for name in outputs] or None
    answer = client.infer(model, tensors, version, outputs=wanted)
    return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}


def together(calls: Sequence[Callable[[], Outputs]]) -> list[Outputs | Exception]:
    """Make calls at the same time; what each returned or raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        futures: list[Future[Outputs]] = [pool.submit(call) for call in calls]
    return [future.exception() or future.result() for future in futures]


def counts(client: grpc.InferenceServerClient, model: str) -> tuple[int, int]:
    """Rows answered and runs made so far. Triton counts once it has answered, so wait till it is done."""
    last = None
    while True:
        (statistics,) = client.get_inference_statistics(model).model_stats
        now = statistics.inference_count, statistics.execution_count
        if now == last:
            return now
        last = now
        time.sleep(0.5)


def some(dtype: Any, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if dtype is np.object_:
        words = ["", "a", "blue sky", "Ünïcödé 🖼", "nul\0inside", "x" * 1000]
        return np.array(random.choice(words, shape).tolist(), np.object_).reshape(shape)
    return random.integers(0, 100, shape).astype(dtype)


def plain(array: np.ndarray) -> np.ndarray:
    """Texts as str, whichever way they came."""
    if array.dtype != np.object_:
        return array
    decoded = [text.decode() if isinstance(text, bytes) else text for text in array.flat]
    return np.array(decoded, np.object_).reshape(array.shape)


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_every_type_and_shape_as_onnxruntime(
    client: grpc.InferenceServerClient, batch: int, rows: int
) -> None:
    random = np.random.default_rng(batch * 10 + rows)
    inputs = {f"in_{name}": some(dtype, (batch, rows, 2), random) for name, (_, dtype) in TYPES.items()}
    expected = directly(every_type(), inputs)
    answers = infer(client, "every_type", inputs)
    assert answers.keys() == expected.keys()
    for name, array in expected.items():
        assert answers[name].dtype == array.dtype
        np.testing.assert_array_equal(plain(answers[name]), plain(array))


def test_only_what_is_asked_for_is_returned(client: grpc.InferenceServerClient) -> None:
    random = np.random.default_rng(0)
    inputs = {f"in_{name}": some(dtype, (2, 3, 2), random) for name, (_, dtype) in TYPES.items()}
    both = ["out_UINT8", "out_STRING"]
    calls = [
        lambda: infer(client, "every_type", inputs, both[:1]),
        lambda: infer(client, "every_type", inputs, both),
        lambda: infer(client, "every_type", inputs, both[1:]),
    ]
    for answers, wanted in zip(together(calls), (both[:1], both, both[1:]), strict=True):
        assert isinstance(answers, dict)
        assert set(answers) == set(wanted)
        for name in wanted:
            np.testing.assert_array_equal(plain(answers[name]), inputs[name.replace("out", "in")])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=12))
def test_any_mixture_of_concurrent_requests(
    client: grpc.InferenceServerClient, shapes: list[tuple[int, int]]
) -> None:
    random = np.random.default_rng(len(shapes))
    inputs = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    answers = together([lambda x=x: infer(client, "double", {"x": x}) for x in inputs])  # type: ignore[misc]
    for x, answer in zip(inputs, answers, strict=True):
        assert isinstance(answer, dict), answer
        np.testing.assert_array_equal(answer["y"], x + x)


def test_one_bad_request_does_not_fail_its_neighbours(client: grpc.InferenceServerClient) -> None:
    before = counts(client, "lookup")
    values = [0, 1, 2, 99, 4, 5, 6, 7, 8, 9, -50, 1, 2, 3, 4, 5]
    calls = [lambda x=x: infer(client, "lookup", {"x": np.array([[x]])}) for x in values]  # type: ignore[misc]
    for value, answer in zip(values, together(calls), strict=True):
        if value in (99, -50):
            assert isinstance(answer, grpc.InferenceServerException)
            assert f"idx={value}" in str(answer)
        else:
            assert isinstance(answer, dict), answer
            np.testing.assert_array_equal(answer["y"], [[value**2]])
    deadline = time.monotonic() + 10
    while (after := counts(client, "lookup"))[1] == before[1] and time.monotonic() < deadline:
        time.sleep(0.05)  # Triton counts after it has answered
    assert after[1] - before[1] == 1, "the requests did not meet in one batch"


def test_a_text_that_is_not_utf_8_fails_alone(client: grpc.InferenceServerClient) -> None:
    before = counts(client, "texts")
    values = [f"text {n}".encode() for n in range(16)]
    values[5] = b"\xff\xfe"
    arrays = [np.array([[value]], np.object_) for value in values]
    answers = together([lambda x=x: infer(client, "texts", {"x": x}) for x in arrays])  # type: ignore[misc]
    assert "input 'x' is not UTF-8" in str(answers[5])
    for value, answer in zip(values, answers, strict=True):
        if value != values[5]:
            assert isinstance(answer, dict), answer
            assert answer["y"][0, 0] == value
    assert counts(client, "texts")[1] - before[1] == 1


def test_a_request_that_does_not_fit_is_refused_with_the_name_of_the_tensor(
    client: grpc.InferenceServerClient,
) -> None:
    for inputs, message in {
        (("x", (1, 2), "float32"),): "unexpected shape for input 'x'",
        (("x", (1, 64), "float64"),): "data-type is 'FP64'",
        (("z", (1, 64), "float32"),): "'z'",
        (("x", (17, 64), "float32"),): "batch-size must be <= 16",
    }.items():
        with pytest.raises(grpc.InferenceServerException, match=message):
            infer(client, "network", {name: np.zeros(shape, dtype) for name, shape, dtype in inputs})


def test_64_concurrent_requests_are_batched(client: grpc.InferenceServerClient) -> None:
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((1, 64)).astype(np.float32) for _ in range(64)]
    before = counts(client, "network")
    answers = together([lambda x=x: infer(client, "network", {"x": x}) for x in inputs])  # type: ignore[misc]
    after = counts(client, "network")
    assert after[0] - before[0] == 64
    assert after[1] - before[1] <= 16
    expected = directly(network(), {"x": np.concatenate(inputs)})["y"]
    for answer, row in zip(answers, expected, strict=True):
        assert isinstance(answer, dict), answer
        np.testing.assert_allclose(answer["y"][0], row, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", [*PRECISIONS, "int8"])
def test_openvino_answers_batches_within_its_precision(
    client: grpc.InferenceServerClient, precision: str
) -> None:
    model, random = f"network_{precision}", np.random.default_rng(0)
    inputs = [
        random.standard_normal((rows, 64)).astype(np.float32) for rows in (1, 2, 3, 5) for _ in range(4)
    ]
    before = counts(client, model)
    answers = together([lambda x=x: infer(client, model, {"x": x}) for x in inputs])  # type: ignore[misc]
    after = counts(client, model)
    assert after[0] - before[0] == 44
    assert after[1] - before[1] < 16
    expected = directly(network(), {"x": np.concatenate(inputs)})["y"]
    for answer in answers:
        assert isinstance(answer, dict), answer
    found = np.concatenate([answer["y"] for answer in answers if isinstance(answer, dict)])
    assert found.dtype == np.float32
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.999
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    # bf16 and int8 keep 8 bits of a number: what is exact did not run in them.
    assert difference < 1e-5 if precision == "f32" else (1e-4 < difference < 2e-2)


def test_openvino_gives_every_type_and_only_what_is_asked_for(client: grpc.InferenceServerClient) -> None:
    random = np.random.default_rng(0)
    inputs = {f"in_{name}": some(dtype, (5, 3), random) for name, (_, dtype) in NUMBERS.items()}
    answers = infer(client, "types_openvino", inputs)
    assert len(answers) == len(NUMBERS)
    for name, (_, dtype) in NUMBERS.items():
        twice = np.concatenate([inputs[f"in_{name}"]] * 2, axis=1)
        assert answers[f"out_{name}"].dtype == dtype
        np.testing.assert_array_equal(answers[f"out_{name}"], twice)
    assert infer(client, "types_openvino", inputs, ["out_INT64"]).keys() == {"out_INT64"}


def test_openvino_takes_scalars_and_reshaped_tensors(client: grpc.InferenceServerClient) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    answer = infer(client, "scalar_openvino", {"x": x, "scale": np.array([10], np.float32)})
    np.testing.assert_array_equal(answer["y"], x * 10)
    np.testing.assert_array_equal(answer["largest"], [50])
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    np.testing.assert_array_equal(infer(client, "reshaped_openvino", {"x": x})["y"], [[15], [51]])


def test_openvino_fails_only_the_request_that_loses_rows(client: grpc.InferenceServerClient) -> None:
    one = np.ones((1, 1), np.float32)
    calls = [lambda x=x: infer(client, "distinct_openvino", {"x": x}) for x in (one, one.repeat(2, 0), one)]  # type: ignore[misc]
    first, broken, last = together(calls)
    assert "output 'y' has 1 rows for a batch of 2" in str(broken)
    for answer in (first, last):
        assert isinstance(answer, dict), answer
        np.testing.assert_array_equal(answer["y"], one)


def test_a_graph_without_batch(client: grpc.InferenceServerClient) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    scale = np.array([10], np.float32)
    answer = infer(client, "unbatched", {"x": x, "scale": scale})
    np.testing.assert_array_equal(answer["y"], x * 10 + [1, 2, 3])
    np.testing.assert_array_equal(answer["largest"], [53])
    answer = infer(client, "unbatched", {"x": x, "scale": scale, "offset": np.zeros(3, np.float32)})
    np.testing.assert_array_equal(answer["y"], x * 10)


def test_reshaped_tensors(client: grpc.InferenceServerClient) -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    np.testing.assert_array_equal(infer(client, "reshaped", {"x": x})["y"], [[15], [51]])


def test_a_graph_that_loses_rows_fails_only_where_it_does(client: grpc.InferenceServerClient) -> None:
    one = np.ones((1, 1), np.float32)
    for answer in together([lambda: infer(client, "distinct", {"x": one})] * 4):
        assert isinstance(answer, dict), answer
        np.testing.assert_array_equal(answer["y"], [[1]])
    with pytest.raises(grpc.InferenceServerException, match="output 'y' has 1 rows for a batch of 2"):
        infer(client, "distinct", {"x": np.ones((2, 1), np.float32)})


@pytest.mark.parametrize("model", ["honoured", "renamed", "in_a_folder"])
def test_models_that_are_configured_otherwise(client: grpc.InferenceServerClient, model: str) -> None:
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(infer(client, model, {"x": x})["y"], x + x)


def test_versions(client: grpc.InferenceServerClient) -> None:
    x = np.full((1, 1), 3, np.float32)
    assert infer(client, "versions", {"x": x}, version="3")["y"] == 6
    assert infer(client, "versions", {"x": x}, version="4")["y"] == 9
    assert infer(client, "versions", {"x": x})["y"] == 9
    with pytest.raises(grpc.InferenceServerException, match="version 5"):
        infer(client, "versions", {"x": x}, version="5")


def test_weights_beside_the_graph(client: grpc.InferenceServerClient) -> None:
    x = np.ones((3, 64), np.float32)
    expected = directly(network(), {"x": x})["y"]
    np.testing.assert_allclose(infer(client, "external", {"x": x})["y"], expected, rtol=1e-5)


def test_configurations_are_completed_as_by_the_cpp_backend(tmp_path: Path) -> None:
    write_model(tmp_path, "bare", double(("batch", 3)))
    write_model(tmp_path, "scalar", reshaped(), "max_batch_size: 2" + CPU)
    write_model(tmp_path, "unbatched", double((2, 3)), CPU)
    with EmbeddedServer(tmp_path) as server, grpc.InferenceServerClient(server.grpc_address) as client:
        config = client.get_model_config("bare").config
        assert config.max_batch_size == 4
        assert config.HasField("dynamic_batching")
        assert (config.input[0].name, list(config.input[0].dims)) == ("x", [3])
        assert (config.output[0].name, list(config.output[0].dims)) == ("y", [3])
        x = np.ones((4, 3), np.float32)
        np.testing.assert_array_equal(infer(client, "bare", {"x": x})["y"], x + x)

        config = client.get_model_config("scalar").config
        assert config.max_batch_size == 2
        assert list(config.output[0].dims) == [1]
        assert config.output[0].HasField("reshape")
        x = np.ones((2, 6), np.float32)
        np.testing.assert_array_equal(infer(client, "scalar", {"x": x})["y"], [[6], [6]])

        config = client.get_model_config("unbatched").config
        assert config.max_batch_size == 0
        assert not config.HasField("dynamic_batching")
        assert list(config.input[0].dims) == [2, 3]


def with_parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'


CONTROL = """sequence_batching { control_input { name: "x" control { kind: CONTROL_SEQUENCE_START
fp32_false_true: [ 0, 1 ] } } }"""
BATCH_INPUT = """batch_input { kind: BATCH_ELEMENT_COUNT target_name: "n" data_type: TYPE_FP32
source_input: "x" }"""

# What makes a model unfit to load, and what the message must say.
REFUSED = {
    "wrong_dims": (
        DOUBLE.replace("dims: -1", "dims: [ -1, 2 ]"),
        "tensor 'x': the model's shape is [-1, -1]",
    ),
    "fixed_output": (
        DOUBLE.replace('"y" data_type: TYPE_FP32 dims: -1', '"y" data_type: TYPE_FP32 dims: 3'),
        "tensor 'y': the model's shape is [-1, -1] but the configuration says [-1, 3]",
    ),
    "wrong_type": (
        DOUBLE.replace("FP32", "INT32"),
        "expects datatype TYPE_INT32 for input 'x', model provides TYPE_FP32",
    ),
    "wrong_input": (DOUBLE.replace('"x"', '"z"'), "unexpected inference input 'z', allowed inputs are: x"),
    "wrong_output": (DOUBLE.replace('"y"', '"z"'), "unexpected inference output 'z', allowed outputs are: y"),
    "another_input": (
        DOUBLE + 'input { name: "z" data_type: TYPE_FP32 dims: -1 }',
        "configuration expects 2 inputs, model provides 1",
    ),
    "ragged": (DOUBLE.replace("dims: -1 }", "dims: -1 allow_ragged_batch: true }", 1), "allow_ragged_batch"),
    "optional": (
        DOUBLE.replace("dims: -1 }", "dims: -1 optional: true }", 1),
        "configuration expects 0 inputs, model provides 1",
    ),
    "sequence": (DOUBLE + CONTROL, "sequence_batching is not supported"),
    "batch_input": (DOUBLE + BATCH_INPUT, "batch_input is not supported"),
    "precision": (
        DOUBLE + accelerator("cpu", "openvino", INFERENCE_PRECISION_HINT="f8"),
        "Wrong value f8 for property key INFERENCE_PRECISION_HINT",
    ),
    "property": (DOUBLE + accelerator("cpu", "openvino", ABACUS="1"), "Unsupported property ABACUS"),
    "texts": (TEXTS + accelerator("cpu", "openvino"), "OpenVINO takes no texts"),
    "unknown_accelerator": (DOUBLE + accelerator("cpu", "abacus"), "unknown Execution Accelerator 'abacus'"),
    "thread_count": (
        DOUBLE + with_parameter("intra_op_thread_count", "two"),
        "intra_op_thread_count must be an integer",
    ),
    "execution_mode": (
        DOUBLE + with_parameter("execution_mode", "2"),
        "execution_mode must be between 0 and 1, not 2",
    ),
    "mem_arena": (
        DOUBLE + with_parameter("enable_mem_arena", "maybe"),
        "enable_mem_arena must be true or false",
    ),
    "library": (DOUBLE + 'model_operations { op_library_filename: "/no/such.so" }', "/no/such.so"),
}


def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path) -> None:
    for name, (config, _) in REFUSED.items():
        write_model(tmp_path, name, texts() if name == "texts" else double(), config + CPU)
    write_model(
        tmp_path, "not_batchable", double((1, 3)), "max_batch_size: 4 instance_group { kind: KIND_CPU }"
    )
    with pytest.raises(ServerStartError, match="cannot load") as failed:
        EmbeddedServer(tmp_path).start()
    reasons = dict(note.strip().split(": ", 1) for note in failed.value.__notes__)
    for name, (_, message) in REFUSED.items():
        assert message in reasons[name]
    assert "model does not support batching" in reasons["not_batchable"]
