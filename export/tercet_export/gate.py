"""Whether a network is as good in fp16: what its exported file gives is measured against the network in fp32.

Checked are eight inputs in batches of 1, 2 and 5; pictures are rendered scenes and noise in turn. Everything
is measured twice: as ONNX Runtime runs the file on this CPU, and with every fp16 result rounded as hardware
does it (`precision.rounded_everywhere`), without which an overflow would only be seen on a GPU.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir
import torch

from tercet.errors import ValidationError
from tercet_export import precision
from tercet_export.captions import score_captions
from tercet_export.networks.captioner import Captioner
from tercet_export.registry import Loaded
from tercet_export.roles import Role, Tensor
from tercet_export.validate import BATCHES, Arrays, Runner, open_graph, reference, release_weights

# What fp16 may change, at most.
COSINE = 1e-3  # 1 - the cosine of an embedding to that in fp32
MASK = 0.005  # mean absolute difference of the masks; of the foregrounds, in parts of white
SAME_CAPTIONS = 0.95  # so many captions are the same, or else
LOG_PROBABILITY = 0.05  # none of their tokens' log-probabilities is off by more, on average over a caption

# ONNX Runtime's later optimisations break fp16 graphs on a CPU: they crash (microsoft/onnxruntime#28392) or
# make nodes that have no fp16 kernel there (#32186).
LEVEL = "ORT_ENABLE_BASIC"


def validate_half(path: Path, loaded: Loaded, role: Role) -> dict[str, float]:
    """How far each output of an fp16 file is from the fp32 network at worst, in the measure of its limit.

    Captions are the same, or the graph's own score must be true: the mean log-probability that it gives the
    caption which it found is the one that the fp32 network gives this caption. So a near-tie in the search
    refuses no good graph, and a wrong graph does not pass by chance. A large network gives up its weights.
    ValidationError where a limit is passed.
    """
    inputs = examples(loaded, role)
    expected = reference(loaded, role, inputs)
    release_weights(loaded)
    measured = measure(open_graph(path, loaded, role, LEVEL), loaded, role, inputs, expected)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".rounded-") as folder:
        rounded = Path(folder) / path.name
        model = onnx_ir.load(path)
        precision.rounded_everywhere(model)
        onnx_ir.save(model, rounded, external_data=f"{path.name}.data")
        del model
        run = open_graph(rounded, loaded, role, "ORT_DISABLE_ALL")
        again = measure(run, loaded, role, inputs, expected)
    return {name: max(value, again[name]) for name, value in measured.items()}


def examples(loaded: Loaded, role: Role) -> dict[str, np.ndarray]:
    """The role's own examples, with every other picture a rendered scene."""
    inputs = role.example_inputs(loaded.sizes, loaded.details or {}, sum(BATCHES))
    for tensor in role.inputs:
        if tensor.dtype == "uint8":
            side = inputs[tensor.name].shape[1]
            for row in range(0, sum(BATCHES), 2):
                inputs[tensor.name][row] = rendered(side, row)
    return inputs


def rendered(side: int, seed: int) -> np.ndarray:
    """A scene u8 [side, side, 3] as a camera might see it: sky, ground, lit bodies with soft edges, grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    sky, ground = rng.uniform(0.2, 1.0, (2, 3))
    below = 1 / (1 + np.exp(-(y - rng.uniform(0.4, 0.8)) * 60))[..., None]
    picture = sky * (1 - 0.4 * y[..., None]) * (1 - below) + ground * (0.6 + 0.4 * y[..., None]) * below
    for _ in range(rng.integers(2, 6)):
        centre, radius = rng.uniform(0.15, 0.85, 2), rng.uniform(0.06, 0.3, 2)
        u, v = (x - centre[0]) / radius[0], (y - centre[1]) / radius[1]
        power = rng.choice([1.0, 2.0, 8.0])  # a diamond, an ellipse, a box
        distance = (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)
        inside = 1 / (1 + np.exp(np.clip((distance - 1) * radius.min() * side / 1.5, -50, 50)))[..., None]
        light = (0.75 - 0.25 * (u + v) / 2)[..., None]
        texture = 1 + 0.15 * np.sin(rng.uniform(5, 60) * (x + rng.uniform(-1, 1) * y))[..., None]
        picture = picture * (1 - inside) + rng.uniform(0, 1, 3) * light * texture * inside
    grain = rng.normal(0, 0.015, picture.shape)
    return (np.clip(picture + grain, 0, 1) * 255).round().astype(np.uint8)


def measure(run: Runner, loaded: Loaded, role: Role, inputs: Arrays, expected: Arrays) -> dict[str, float]:
    """Run the examples in their batches and hold each output to its limit."""
    ends = np.cumsum(BATCHES)[:-1]
    batches = [
        dict(zip(inputs, parts, strict=True))
        for parts in zip(*(np.split(value, ends) for value in inputs.values()), strict=True)
    ]
    results = [run(batch) for batch in batches]
    found = {
        tensor.name: np.concatenate(parts)
        for tensor, parts in zip(role.outputs, zip(*results, strict=True), strict=True)
    }
    for tensor in role.outputs:
        check_form(tensor, found[tensor.name], expected[tensor.name])
    if role.name == "captioner":
        return captions(loaded, inputs["foreground"], found, expected)
    return {tensor.name: distance(tensor, found, expected) for tensor in role.outputs}


def check_form(tensor: Tensor, found: np.ndarray, expected: np.ndarray) -> None:
    """ValidationError where an output has another type or shape than the network's, or is not finite."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        raise ValidationError(
            f"output {tensor.name!r} is {found.dtype} {found.shape} in fp16, the network gives "
            f"{expected.dtype} {expected.shape}: the graph is wrong and was not kept"
        )
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise ValidationError(
            f"output {tensor.name!r} is not finite in fp16: the network's numbers exceed its range. "
            "Export it with precision fp32"
        )


def distance(tensor: Tensor, found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """How far embeddings are in the worst row (1 - cosine), masks or foregrounds on average (difference)."""
    a, b = (
        values[tensor.name].astype(np.float64).reshape(len(values[tensor.name]), -1)
        for values in (found, expected)
    )
    if len(tensor.dims) == 2:
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        worst = float((1 - (a * b).sum(axis=1) / np.maximum(norms, 1e-12)).max())
        limit, measure = COSINE, "1 - cosine"
    else:
        worst = float(np.abs(a - b).mean()) / (255 if tensor.dtype == "uint8" else 1)
        limit, measure = MASK, "mean difference"
    if not worst <= limit:
        raise ValidationError(
            f"fp16 changes output {tensor.name!r} too much: {measure} {worst:.3g} (accepted: {limit:g}). "
            "Export the network with precision fp32"
        )
    return worst


def captions(loaded: Loaded, pictures: np.ndarray, found: Arrays, expected: Arrays) -> dict[str, float]:
    """The share of captions that differ, and how wrong the graph is about its own at worst.

    The latter is by how much its score is off for one token, see `validate_half`.
    """
    same = (found["token_ids"] == expected["token_ids"]).all(axis=1)
    wrong = np.abs(found["score"] - expected["score"])
    if isinstance(loaded.graph, Captioner):
        scored = score_captions(
            loaded.graph, torch.from_numpy(pictures), torch.from_numpy(found["token_ids"])
        )
        per_token = (scored.divisor / scored.length).numpy()
        wrong = np.abs(found["score"] - scored.score.numpy()) * per_token
    worst = float(wrong.max())
    if same.mean() < SAME_CAPTIONS and not worst <= LOG_PROBABILITY:
        raise ValidationError(
            f"in fp16 {int((~same).sum())} of {len(same)} captions are others, and log-probabilities are off "
            f"by {worst:.3g} (accepted: {LOG_PROBABILITY:g}). Export the network with precision fp32"
        )
    return {"token_ids": float(1 - same.mean()), "score": worst}
