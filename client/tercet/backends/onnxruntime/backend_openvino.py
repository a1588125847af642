"""Runs a graph with the openvino package, where onnxruntime has no OpenVINO provider of its own.

It goes beside onnxruntime, whereas onnxruntime-openvino takes the place of its wheel. Part of the Python
onnxruntime backend (`model.py`); self-contained.
"""

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from backend_configuration import ConfigurationError, require
from backend_onnxruntime import Feed, OnnxRuntimeGraph, openvino_properties, session_options

PROVIDER = "OpenVINOExecutionProvider"
PRECISION = "INFERENCE_PRECISION_HINT"
GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"


class OpenVinoGraph:
    """A graph compiled by OpenVINO for this processor; see `OnnxRuntimeGraph`.

    What OpenVINO cannot override, an initializer that is also an input, it takes for a constant. Unlike
    onnxruntime it does not complain of an index that is out of range: a row for it is zeros.
    """

    def __init__(self, file: Path, config: dict[str, Any], properties: dict[str, str]) -> None:
        openvino = import_openvino()
        # OpenVINO forgets some of the sizes that the file states, and the configuration must repeat.
        self.inputs, self.outputs = stated_tensors(file, config)
        self.optional: dict[str, Any] = {}
        for node in (*self.inputs.values(), *self.outputs.values()):
            require(node.type != "tensor(string)", f"tensor '{node.name}': OpenVINO takes no texts")
        core = openvino.Core()
        try:
            compiled = core.compile_model(read_graph(core, file, properties), "CPU", properties)
        except RuntimeError as error:
            raise ConfigurationError(f"OpenVINO cannot run this model: {cause(error)}") from error
        runs = compiled.get_property(PRECISION).get_type_name()
        require(
            runs == properties[PRECISION],
            f"OpenVINO in {properties[PRECISION]} is requested, and on this processor it runs in {runs}: "
            "request that",
        )
        self.places = {
            name: place for place, output in enumerate(compiled.outputs) for name in output.get_names()
        }
        self.request = compiled.create_infer_request()

    def run(self, names: Sequence[str], feed: Feed) -> list[np.ndarray]:
        """Return the outputs of these names."""
        try:
            results = self.request.infer(feed, share_inputs=True)
        except RuntimeError as error:
            raise RuntimeError(cause(error)) from error
        return [results[self.places[name]] for name in names]


def open_graph(file: Path, config: dict[str, Any], kind: str, device: str) -> Any:
    """Open a graph with the engine that the configuration requests, on an instance of this kind and device.

    An accelerator `openvino` is onnxruntime's provider where the installed onnxruntime has it, otherwise the
    package openvino.

    Raises:
        ConfigurationError: what is requested cannot be had.
    """
    import onnxruntime

    properties = openvino_properties(config)
    has_provider = PROVIDER in onnxruntime.get_available_providers()
    if properties is None or has_provider or kind == "GPU":
        return OnnxRuntimeGraph(file, config, kind, device)
    require(
        importlib.util.find_spec("openvino") is not None,
        "the accelerator openvino is requested, and neither the package openvino nor an onnxruntime with "
        f"{PROVIDER} is installed: pip install openvino, or do not request it",
    )
    return OpenVinoGraph(file, config, properties)


def import_openvino() -> Any:
    """Import OpenVINO without openvino_telemetry, which reports every import to its makers."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def read_graph(core: Any, file: Path, properties: dict[str, str]) -> Any:
    """Read a graph and round in it what OpenVINO, with these properties, would round late or not at all.

    Raises:
        ConfigurationError: the size of groups is no number.
    """
    group = properties.get(GROUP, "0")
    require(group.isdecimal(), f"{GROUP} is {group!r}: give a whole number, 0 to round nothing")
    model = core.read_model(str(file))
    if properties[PRECISION] == "bf16":
        round_before_loops(model)
    if int(group):
        round_weights(model, int(group))
    return model


def round_before_loops(model: Any) -> None:
    """Round once to bf16 what the matrix products in a Loop read anew at every step.

    OpenVINO keeps what enters a Loop in f32 and rounds it for the products at each step: a tenth of a
    captioner's time, whose steps read the picture's keys and values. What comes of a product, as these do, is
    in bf16 already, and the result the same bit by bit.
    """
    import openvino
    from openvino import opset13

    for loop in [node for node in model.get_ops() if node.get_type_name() == "Loop"]:
        parameters = loop.get_function().get_parameters()
        for described in loop.get_input_descriptions():
            parameter = parameters[described.body_parameter_index]
            readers = parameter.output(0).get_target_inputs()
            if (
                described.get_type_info().name != "InvariantInputDescription"
                or parameter.get_element_type() != openvino.Type.f32
                or any(reader.get_node().get_type_name() != "MatMul" for reader in readers)
            ):
                continue
            entry = loop.input(described.input_index)
            entry.replace_source_output(opset13.convert(entry.get_source_output(), "bf16").output(0))
            parameter.set_element_type(openvino.Type.bf16)
            widened = opset13.convert(parameter, "f32").output(0)
            for reader in readers:
                reader.replace_source_output(widened)
    model.validate_nodes_and_infer_types()


def round_weights(model: Any, group: int) -> None:
    """Round constant matrices to int8, where so many numbers that are summed up share a scale.

    OpenVINO multiplies such matrices in int8. What they are multiplied by it rounds anew for every row, in
    such groups too, so that a row's result does not depend on its batch. Matrices whose rows are no whole
    number of groups stay as they are, and so do those in a Loop.
    """
    from openvino import opset13

    for product in [node for node in model.get_ops() if node.get_type_name() == "MatMul"]:
        matrix = product.input_value(1).get_node()
        if matrix.get_type_name() != "Constant" or len(matrix.shape) != 2 or matrix.data.dtype != np.float32:
            continue
        transposed = product.get_attributes()["transpose_b"]
        weights = np.ascontiguousarray(matrix.data if transposed else matrix.data.T)
        outputs, inputs = weights.shape
        if inputs % group:
            continue
        grouped = weights.reshape(outputs, inputs // group, group)
        scales = np.maximum(np.abs(grouped).max(axis=2, keepdims=True) / 127, np.finfo(np.float32).tiny)
        whole = opset13.constant(np.rint(grouped / scales).astype(np.int8))
        restored = opset13.multiply(opset13.convert(whole, "f32"), opset13.constant(scales))
        restored = opset13.reshape(restored, opset13.constant([outputs, inputs]), special_zero=False)
        product.input(1).replace_source_output(restored.output(0))
        product.set_attribute("transpose_b", True)
    model.validate_nodes_and_infer_types()


def stated_tensors(file: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return inputs and outputs as the file states them, by name."""
    import onnxruntime

    options = session_options(config)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return {node.name: node for node in inputs}, {node.name: node for node in outputs}


def cause(error: Exception) -> str:
    """Return OpenVINO's message without the places in its source that it begins with."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not re.match(r"Exception from |Check .* failed at ", line)]
    return " ".join(told) or str(error)
