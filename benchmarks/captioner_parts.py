"""A captioner's graph taken apart, and ONNX Runtime's profile of it: for `benchmarks.captioner`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from tercet.server.runtime import processors
from tercet_export.networks.git import GIT_BASE

__all__ = ["profile", "up_to", "vision_output", "with_most"]


def vision_output(model: onnx.ModelProto) -> str:
    """The value that the vision encoder's last norm gives."""
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    return norms[2 * GIT_BASE.vision_layers + 1].output[0]


def up_to(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """The part of a graph that makes one of its values, f32 of three dimensions."""
    needed, nodes = {output}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input)
    graph = helper.make_graph(
        nodes[::-1],
        "part",
        model.graph.input,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ("B", "N", "D"))],
        [tensor for tensor in model.graph.initializer if tensor.name in needed],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def with_most(model: onnx.ModelProto) -> onnx.ModelProto:
    """The captioner with one input more, `most` i64 (B, 1): of so many steps at most."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    graph.input.append(helper.make_tensor_value_info("most", TensorProto.INT64, ("B", 1)))
    (place,) = [place for place, node in enumerate(graph.node) if node.op_type == "Loop"]
    graph.node[place].input[0] = "trip_count"
    graph.node.insert(place, helper.make_node("ReduceMax", ["most"], ["trip_count"], keepdims=0))
    return changed


def profile(graph: Path, folder: Path, pictures: np.ndarray) -> dict[str, float]:
    """Seconds of a greedy run in ONNX Runtime by what they are spent on, by its own profiler."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = processors()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(graph, options)
    for _ in range(3):
        session.run(None, {"foreground": pictures})
    events = json.loads(Path(session.end_profiling()).read_text())
    run = [event for event in events if event["name"] == "model_run"][-1]
    kernels = [
        event
        for event in events
        if event["name"].endswith("_kernel_time") and run["ts"] <= event["ts"] < run["ts"] + run["dur"]
    ]
    (loop,) = [event for event in kernels if event["args"]["op_name"] == "Loop"]
    spent: dict[str, float] = {}
    for event in kernels:
        if event is not loop:
            inside = loop["ts"] <= event["ts"] < loop["ts"] + loop["dur"]
            what = kind_of_step(event["args"]) if inside else kind_of_picture(event["args"])
            spent[what] = spent.get(what, 0.0) + event["dur"]
    spent["steps: between the operators"] = loop["dur"] - sum(
        microseconds for what, microseconds in spent.items() if what.startswith("steps")
    )
    return {what: round(spent[what] / 1e6, 4) for what in sorted(spent)}


def shapes(described: list[dict[str, list[int]]]) -> list[list[int]]:
    """Sizes of tensors as the profiler writes them."""
    return [size for tensor in described for size in tensor.values()]


def kind_of_picture(event: dict[str, Any]) -> str:
    """What an operator outside of the loop is for."""
    if event["op_name"] not in ("MatMul", "FusedMatMul", "Conv"):
        return "picture: the rest"
    return "picture: attention" if len(shapes(event["input_type_shape"])[0]) == 4 else "picture: weights"


def kind_of_step(event: dict[str, Any]) -> str:
    """What an operator of the loop is for."""
    sizes, (made, *_) = shapes(event["input_type_shape"]), shapes(event["output_type_shape"])
    if event["op_name"] == "ScatterND":
        return "steps: writing keys and values"
    if made[-1:] == [GIT_BASE.vocabulary]:
        return "steps: vocabulary" if "MatMul" in event["op_name"] else "steps: choice of the word"
    if "MatMul" not in event["op_name"]:
        return "steps: the rest"
    if len(made) < 4:
        return "steps: weights"
    tokens = (GIT_BASE.image_size // GIT_BASE.patch_size) ** 2 + 1
    seen = "the picture" if any(tokens in size for size in sizes) else "the caption"
    return f"steps: attention to {seen}"
