"""Writes a network as a TorchScript archive, which Triton's libtorch backend serves: `--format torchscript`.

The archive is traced. It takes the role's inputs by position and gives a tuple of its outputs, and it runs on
whatever device its weights are on: what tracing on a CPU fixed to the CPU is undone (`follow_the_input`).
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tercet.errors import ExportError, ValidationError
from tercet_export.registry import Loaded
from tercet_export.roles import Role
from tercet_export.validate import Arrays, Runner


def write_torchscript(loaded: Loaded, role: Role, path: Path, name: str, batch: int) -> int:
    """Trace the network with examples of this batch and write it; the number of its nodes."""
    examples = role.example_inputs(loaded.sizes, loaded.details or {}, batch)
    inputs = tuple(torch.from_numpy(examples[tensor.name]) for tensor in role.inputs)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would be traced as one operator of one batch size
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(loaded.graph, inputs, check_trace=False)
            follow_the_input(traced)
            torch.jit.save(traced, str(path))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ExportError(f"{name} could not be exported to TorchScript: {error}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return sum(1 for _ in traced.inlined_graph.nodes())


def follow_the_input(traced: torch.jit.ScriptModule) -> None:
    """Make tensors where the input is: in place of the device of the trace, that of the first tensor given.

    `torch.jit.load` moves weights to another device, but not the tensors that the code itself makes.
    """
    module: Any
    for module in traced.modules():
        if not module._c._has_method("forward"):
            continue
        graph = module.graph
        fixed = [
            node
            for node in graph.findAllNodes("prim::Constant")
            if node.output().type().kind() == "DeviceObjType"
        ]
        if not fixed:
            continue
        given = next((value for value in graph.inputs() if value.type().kind() == "TensorType"), None)
        if given is None:
            raise RuntimeError("a part that takes no tensor makes one on a fixed device")
        device = graph.create("prim::device", [given], 1)
        device.output().setType(torch._C.DeviceObjType.get())
        graph.prependNode(device)
        for node in fixed:
            node.output().replaceAllUsesWith(device.output())
            node.destroy()


def open_torchscript(path: Path, role: Role) -> Runner:
    """The archive as libtorch runs it, by position; ValidationError where it does not fit the role."""
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ValidationError(f"{path} cannot be loaded by libtorch: {error}") from error
    wanted = [tensor.name for tensor in role.inputs]
    names = [argument.name for argument in module.forward.schema.arguments[1:]]
    if names != wanted:  # the backend matches a configuration's inputs with these
        raise ValidationError(f"the archive's inputs are {names}, the role {role.name} has {wanted}")

    def run(inputs: Arrays) -> list[np.ndarray]:
        batch = len(next(iter(inputs.values())))
        try:
            with torch.inference_mode():
                outputs = module(*(torch.from_numpy(inputs[name]) for name in wanted))
        except RuntimeError as error:
            raise ValidationError(f"{path} fails at batch {batch}: {error}") from error
        if not isinstance(outputs, tuple) or len(outputs) != len(role.outputs):
            raise ValidationError(f"{path} does not give the {len(role.outputs)} outputs of {role.name}")
        return [output.numpy() for output in outputs]

    return run
