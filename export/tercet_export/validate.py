"""Runs an exported file beside the network it came from, at batches that were not traced, and refuses any
difference.

The network is run one row at a time: so rows that influence each other are found too, and memory stays low.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from tercet.errors import ValidationError
from tercet_export.registry import Loaded
from tercet_export.roles import Role, Tensor

BATCHES = (1, 2, 5)

ONNX_TYPES = {"uint8": "uint8", "int32": "int32", "int64": "int64", "float32": "float"}


def validate(path: Path, loaded: Loaded, role: Role, tolerance: float = 1.0) -> dict[str, float]:
    """The largest difference of each output between `path` in ONNX Runtime and `loaded` in torch.

    Inputs are the role's examples at batches 1, 2 and 5. A difference is relative where values exceed 1,
    and accepted up to the tensor's own tolerance times `tolerance`. Raises ValidationError for wrong names,
    types, shapes or values.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValidationError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
    _check_signature("input", session.get_inputs(), role.inputs, role, loaded.sizes)
    _check_signature("output", session.get_outputs(), role.outputs, role, loaded.sizes)

    inputs = role.example_inputs(loaded.sizes, loaded.details or {}, max(BATCHES))
    expected = reference(loaded, role, inputs)
    largest = dict.fromkeys(expected, 0.0)
    for batch in BATCHES:
        try:
            results = session.run(None, {name: value[:batch] for name, value in inputs.items()})
        except Exception as error:
            raise ValidationError(f"{path} fails at batch {batch}: {error}") from error
        for tensor, result in zip(role.outputs, results, strict=True):
            difference = compare(tensor, result, expected[tensor.name][:batch], batch, tolerance)
            largest[tensor.name] = max(largest[tensor.name], difference)
    return largest


def reference(loaded: Loaded, role: Role, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the torch network answers, row by row, by output name."""
    rows = []
    with torch.inference_mode():
        for row in range(len(next(iter(inputs.values())))):
            one = [torch.from_numpy(inputs[tensor.name][row : row + 1]) for tensor in role.inputs]
            rows.append([output.numpy() for output in loaded.graph(*one)])
    return {
        tensor.name: np.concatenate(outputs)
        for tensor, outputs in zip(role.outputs, zip(*rows, strict=True), strict=True)
    }


def compare(
    tensor: Tensor, result: np.ndarray, expected: np.ndarray, batch: int, tolerance: float = 1.0
) -> float:
    """The largest difference between two values of one output; ValidationError where it is too large."""
    if result.dtype != tensor.dtype or result.shape != expected.shape:
        raise ValidationError(
            f"output {tensor.name!r} at batch {batch} is {result.dtype} {result.shape}, "
            f"the network gives {tensor.dtype} {expected.shape}"
        )
    a, b = result.astype(np.float64), expected.astype(np.float64)
    difference = np.abs(a - b) / max(
        1.0, float(np.abs(b).max(initial=0.0)) if tensor.dtype == "float32" else 1.0
    )
    worst = float(difference.max(initial=0.0))
    allowed = tensor.tolerance * tolerance
    if not worst <= allowed:
        row = int(np.argmax(difference.reshape(batch, -1).max(axis=1)))
        raise ValidationError(
            f"output {tensor.name!r} differs from the network by {worst:.3g} at batch {batch}, row {row} "
            f"(accepted: {allowed:g}): the graph is wrong and was not kept"
        )
    return worst


def _check_signature(
    kind: str, found: list, declared: tuple[Tensor, ...], role: Role, sizes: Mapping[str, int]
) -> None:
    names, wanted = [value.name for value in found], [tensor.name for tensor in declared]
    if names != wanted:
        raise ValidationError(f"the graph's {kind}s are {names}, the role {role.name} has {wanted}")
    for value, tensor in zip(found, declared, strict=True):
        if value.type != f"tensor({ONNX_TYPES[tensor.dtype]})":
            raise ValidationError(f"{kind} {tensor.name!r} is {value.type}, the role wants {tensor.dtype}")
        shape = [
            dim if dim in role.dynamic else tensor.shape({**sizes, "B": 0})[i]
            for i, dim in enumerate(tensor.dims)
        ]
        fits = len(value.shape) == len(shape) and all(
            (isinstance(have, str) or have is None) if isinstance(want, str) else have == want
            for have, want in zip(value.shape, shape, strict=True)
        )
        if not fits:
            raise ValidationError(f"{kind} {tensor.name!r} has shape {value.shape}, the role wants {shape}")
