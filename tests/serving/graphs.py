"""Small ONNX graphs and model repositories for the tests of the embedded server."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str]

Outputs = dict[str, np.ndarray]

CPU = "\ninstance_group { count: 1 kind: KIND_CPU }\n"
# Of OpenVINO; processors without these instructions may compute in bf16 as well, but need not.
PRECISIONS = ("f32", "bf16") if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else ("f32",)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Shape]],
    outputs: Mapping[str, tuple[int, Shape]],
    constants: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """A checked model; a dimension that is a string is dynamic."""
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
            [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return model


def directly(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> Outputs:
    """What onnxruntime itself answers."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def write_model(
    repository: Path, name: str, model: onnx.ModelProto, config: str | None = None, file: str = "1/model.onnx"
) -> Path:
    """Add a model to a repository; without `config` it has no config.pbtxt. Returns the graph's file."""
    path = repository / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    if config is not None:
        (repository / name / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{config}\n')
    return path


def double(shape: Shape = ("batch", "length")) -> onnx.ModelProto:
    """y = x + x."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return graph([node], {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)})


DOUBLE = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: -1 }
output { name: "y" data_type: TYPE_FP32 dims: -1 }
"""


def lookup() -> onnx.ModelProto:
    """y = table[x] for a table of the squares of 0..9: any other x makes the whole run fail."""
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    table = np.arange(10, dtype=np.float32) ** 2
    shape = ("batch", 1)
    return graph(
        [node], {"x": (TensorProto.INT64, shape)}, {"y": (TensorProto.FLOAT, shape)}, {"table": table}
    )


LOOKUP = """
max_batch_size: 16
input { name: "x" data_type: TYPE_INT64 dims: 1 }
output { name: "y" data_type: TYPE_FP32 dims: 1 }
"""


def network(size: int = 64, layers: int = 4) -> onnx.ModelProto:
    """A few layers with fixed random weights, enough work for batching to matter: y = relu(...(x W)...)."""
    random = np.random.default_rng(0)
    constants = {
        f"w{layer}": (random.standard_normal((size, size)) / np.sqrt(size)).astype(np.float32)
        for layer in range(layers)
    }
    nodes = []
    for layer in range(layers):
        nodes += [
            helper.make_node("MatMul", [f"h{layer}" if layer else "x", f"w{layer}"], [f"p{layer}"]),
            helper.make_node("Relu", [f"p{layer}"], [f"h{layer + 1}" if layer + 1 < layers else "y"]),
        ]
    shape = ("batch", size)
    return graph(nodes, {"x": (TensorProto.FLOAT, shape)}, {"y": (TensorProto.FLOAT, shape)}, constants)


NETWORK = """
max_batch_size: 16
input { name: "x" data_type: TYPE_FP32 dims: 64 }
output { name: "y" data_type: TYPE_FP32 dims: 64 }
"""
