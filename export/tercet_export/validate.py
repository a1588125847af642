"""Runs an exported file beside the network it came from, at batches that were not traced, and refuses any
difference.

The network is run one row at a time: so rows that influence each other are found too, and memory stays low.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from tercet.errors import ValidationError
from tercet_export.captions import score_captions
from tercet_export.networks.captioner import Captioner
from tercet_export.registry import Loaded
from tercet_export.roles import Role, Tensor

BATCHES = (1, 2, 5)

ONNX_TYPES = {"uint8": "uint8", "int32": "int32", "int64": "int64", "float32": "float"}

# More of them than this are not kept in memory twice.
LARGE_WEIGHTS = 2_000_000_000

# Where a network's own rounding comes near a tolerance: how many times that much a graph, which adds the same
# numbers in another order, may differ by; and how many tolerances at the most.
ROUNDINGS, MOST = 10.0, 100.0

Arrays = Mapping[str, np.ndarray]
Runner = Callable[[Arrays], list[np.ndarray]]
"""Runs an exported file: inputs by name -> outputs in the role's order."""


def validate(path: Path, loaded: Loaded, role: Role, tolerance: float = 1.0) -> dict[str, float]:
    """The largest difference of each output between `path` in ONNX Runtime and `loaded` in torch.

    See `compare_with_network`; a network with more than 2 GB of weights gives them up. Raises ValidationError
    for wrong names, types, shapes or values.
    """
    return compare_with_network(lambda: open_graph(path, loaded, role), loaded, role, tolerance)


def compare_with_network(
    opened: Callable[[], Runner], loaded: Loaded, role: Role, tolerance: float = 1.0
) -> dict[str, float]:
    """The largest difference of each output between a file, which `opened` opens, and `loaded` in torch.

    Inputs are the role's examples at batches 1, 2 and 5. A difference is relative where values exceed 1,
    and accepted up to the tensor's own tolerance times `tolerance`; further where the network rounds worse
    itself (`rounding`). Captions must be the same, but for ties (`settle_ties`).
    """
    inputs = role.example_inputs(loaded.sizes, loaded.details or {}, max(BATCHES))
    expected = reference(loaded, role, inputs)
    release_weights(loaded)
    run = opened()
    largest = dict.fromkeys(expected, 0.0)
    rounded: dict[str, float] | None = None
    for batch in BATCHES:
        given = {name: value[:batch] for name, value in inputs.items()}
        results = run(given)
        wanted = {name: value[:batch] for name, value in expected.items()}
        if isinstance(loaded.graph, Captioner):
            wanted = settle_ties(loaded.graph, given["foreground"], results, wanted, role, tolerance)
        for tensor, result in zip(role.outputs, results, strict=True):
            try:
                difference = compare(tensor, result, wanted[tensor.name], batch, tolerance)
            except ValidationError:
                if rounded is None:
                    rounded = rounding(loaded, role, inputs, expected)
                if not (roundings := ROUNDINGS * rounded.get(tensor.name, 0.0)):
                    raise
                eased = max(tolerance, min(MOST, roundings / tensor.tolerance))
                difference = compare(tensor, result, wanted[tensor.name], batch, eased)
            largest[tensor.name] = max(largest[tensor.name], difference)
    return largest


def rounding(loaded: Loaded, role: Role, inputs: Arrays, expected: Arrays) -> dict[str, float]:
    """How far `expected`, which the network gives in f32, is from what it gives in f64, by f32 output.

    Differences as in `compare`. Empty for captioners, whose choices are no numbers, and for networks that
    have given up their weights.
    """
    if isinstance(loaded.graph, Captioner) or any(p.is_meta for p in loaded.graph.parameters()):
        return {}
    graph = copy.deepcopy(loaded.graph).double()
    wide = {
        name: value.astype(np.float64) if value.dtype == np.float32 else value
        for name, value in inputs.items()
    }
    exact = reference(replace(loaded, graph=graph), role, wide)
    return {
        tensor.name: float(np.abs(exact[tensor.name] - expected[tensor.name]).max(initial=0.0))
        / max(1.0, float(np.abs(expected[tensor.name]).max(initial=0.0)))
        for tensor in role.outputs
        if tensor.dtype == "float32"
    }


def open_graph(path: Path, loaded: Loaded, role: Role, level: str = "ORT_ENABLE_ALL") -> Runner:
    """`path` in ONNX Runtime, optimised at `level`; ValidationError where it does not fit the role."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValidationError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
    _check_signature("input", session.get_inputs(), role.inputs, role, loaded.sizes)
    _check_signature("output", session.get_outputs(), role.outputs, role, loaded.sizes)

    def run(inputs: Arrays) -> list[np.ndarray]:
        try:
            return session.run(None, dict(inputs))
        except Exception as error:
            batch = len(next(iter(inputs.values())))
            raise ValidationError(f"{path} fails at batch {batch}: {error}") from error

    return run


def release_weights(loaded: Loaded) -> None:
    """Free the weights of a large network once it has answered: ONNX Runtime needs the room.

    A captioner keeps them: its network is asked again about captions that differ.
    """
    size = sum(parameter.nbytes for parameter in loaded.graph.parameters())
    if size > LARGE_WEIGHTS and not isinstance(loaded.graph, Captioner):
        loaded.graph.to_empty(device="meta")


def settle_ties(
    captioner: Captioner,
    foreground: np.ndarray,
    results: list[np.ndarray],
    expected: Arrays,
    role: Role,
    tolerance: float,
) -> dict[str, np.ndarray]:
    """What to expect of a captioner's graph, where its search may fall either way of a tie.

    A row whose ids differ from the network's is a tie where the network itself gives both captions one
    score, or one probability up to the first token in which they differ, within the score's tolerance. Then
    the graph's caption is right, and its score must be the one that the network gives this caption.
    """
    token_ids, score = expected["token_ids"], expected["score"]
    found = results[0]
    if found.dtype != token_ids.dtype or found.shape != token_ids.shape:
        return dict(expected)
    pictures = torch.from_numpy(foreground)
    allowed = role.outputs[1].tolerance * tolerance
    token_ids, score = token_ids.copy(), score.copy()
    for row in np.flatnonzero((found != token_ids).any(axis=1)):
        one = pictures[row : row + 1]
        try:
            ours, theirs = (
                score_captions(captioner, one, torch.from_numpy(ids[row : row + 1]))
                for ids in (token_ids, found)
            )
        except (IndexError, RuntimeError):
            continue  # ids that are no words
        first = int(np.argmax(found[row] != token_ids[row]))
        pairs = (
            (float(ours.score), float(theirs.score)),
            (float(ours.log_probs[0, : first + 1].sum()), float(theirs.log_probs[0, : first + 1].sum())),
        )
        if any(abs(a - b) <= allowed * max(1.0, abs(a)) for a, b in pairs):
            token_ids[row], score[row] = found[row], theirs.score.numpy()
    return {"token_ids": token_ids, "score": score}


def reference(loaded: Loaded, role: Role, inputs: Arrays) -> dict[str, np.ndarray]:
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
