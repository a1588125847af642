"""From a network with its weights to a validated file: ONNX, or TorchScript."""

import contextlib
import gc
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir
import torch
from onnx_ir.passes import common as passes

from tercet.errors import ExportError
from tercet_export import checkpoints
from tercet_export.fused_attention import OPSET, TRANSLATION
from tercet_export.gate import validate_half
from tercet_export.precision import to_half
from tercet_export.registry import Loaded, Network, Options, role_of
from tercet_export.roles import Role
from tercet_export.torchscript_export import open_torchscript, write_torchscript
from tercet_export.validate import compare_with_network, validate

TRACED_BATCH = 3

# The first words of a file. By them the onnxruntime backend of `tercet.backends` knows fp16 on a CPU.
PRODUCER = "tercet"
HALF_PRODUCER = "tercet fp16"

# No others: the operator set of `Attention` has a MaxPool that ONNX Runtime 1.31 has no CUDA kernel for.
# So 33 of IS-Net's layers went to the processor.
WITH_ATTENTION = ("captioner", "clip_image", "clip_text")

# Protobuf cannot hold more in one file; a little is left for the graph itself.
LARGEST_FILE = 2_000_000_000


@dataclass(frozen=True)
class Exported:
    """What one export made. `bytes` counts the weights beside the file too; `peak_memory` is in bytes."""

    path: Path
    loaded: Loaded
    checkpoint_sha256: str
    onnx_sha256: str
    parameters: int
    nodes: int
    bytes: int
    seconds: float
    peak_memory: int
    differences: dict[str, float]


def export_network(
    network: Network, checkpoint: Path, output: Path, options: Options | None = None
) -> Exported:
    """Export `checkpoint` to `output` (with `output`.data beside it where weights exceed 2 GB) and validate
    it.

    `output` is replaced only once the new file has passed. Raises CheckpointError, ValidationError or
    ExportError.
    """
    started = time.monotonic()
    reset_peak_memory()
    loaded = network.load(checkpoint, options)
    options = options or Options()
    half = options.precision == "fp16"
    parameters = sum(parameter.numel() for parameter in loaded.graph.parameters())
    role = role_of(network)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as folder:
        partial = Path(folder) / output.name
        if options.format == "torchscript":
            nodes = write_torchscript(loaded, role, partial, network.name, TRACED_BATCH)
            differences = compare_with_network(lambda: open_torchscript(partial, role), loaded, role)
        else:
            nodes = write_graph(loaded, role, partial, network.name, half=half)
            gc.collect()
            differences = (validate_half if half else validate)(partial, loaded, role)
        onnx_sha256 = checkpoints.sha256(partial)
        files = sorted(Path(folder).iterdir(), key=lambda file: file == partial)
        size = sum(file.stat().st_size for file in files)
        for file in files:  # the graph last: it is what names the data
            os.replace(file, output.parent / file.name)
    gc.collect()
    return Exported(
        output,
        loaded,
        checkpoints.sha256(checkpoint),
        onnx_sha256,
        parameters,
        nodes,
        size,
        time.monotonic() - started,
        peak_memory(),
        differences,
    )


def write_graph(
    loaded: Loaded, role: Role, path: Path, name: str, half: bool = False, fused: bool | None = None
) -> int:
    """Trace the graph at batch 3 and write it, `half` for fp16; the number of its nodes.

    `fused`: attention as one operator, which GPUs compute in one kernel; by default where there is any,
    and `half`. In fp32 it stays what it is made of: processors' engines know that, and not all the operator.
    """
    if fused is None:
        fused = half and role.name in WITH_ATTENTION
    examples = role.example_inputs(loaded.sizes, loaded.details or {}, TRACED_BATCH)
    symbols = {symbol: torch.export.Dim(symbol) for symbol in role.dynamic}
    shapes = {
        tensor.name: {axis: symbols[dim] for axis, dim in enumerate(tensor.dims) if dim in role.dynamic}
        for tensor in role.inputs
    }
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                loaded.graph,
                tuple(torch.from_numpy(examples[tensor.name]) for tensor in role.inputs),
                input_names=[tensor.name for tensor in role.inputs],
                dynamic_shapes=tuple(shapes[tensor.name] for tensor in role.inputs),
                opset_version=OPSET if fused else None,
                custom_translation_table=TRANSLATION if fused else None,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
    except (RuntimeError, ValueError, TypeError, AssertionError, torch.onnx.OnnxExporterError) as error:
        raise ExportError(f"{name} could not be exported: {error}") from error
    assert program is not None
    model = program.model
    if half:
        passes.DeduplicateInitializersPass()(model)
        to_half(model)
    finish(model, loaded, role)
    model.producer_name = HALF_PRODUCER if half else PRODUCER
    model.graph.name = name
    weights = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value
    )
    external = f"{path.name}.data" if weights > LARGEST_FILE else None
    onnx_ir.save(model, path, external_data=external)
    return sum(1 for _ in model.graph.all_nodes())


def finish(model: onnx_ir.Model, loaded: Loaded, role: Role) -> None:
    """Give the outputs their public names and shapes, share equal weights, drop where it was made."""
    passes.DeduplicateInitializersPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    public = {tensor.name for tensor in role.outputs}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in public:  # a name may occur once: CLIP has an inner value called `embedding`
                value.name = f"{value.name}_inner"
    for name in public & set(model.graph.initializers):
        model.graph.initializers[name].name = f"{name}_inner"
    for tensor, value in zip(role.outputs, model.graph.outputs, strict=True):
        value.name = tensor.name
        value.shape = onnx_ir.Shape(
            [dim if dim in role.dynamic else loaded.sizes.get(str(dim), dim) for dim in tensor.dims]
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings, and without the fused attention that cannot be exported."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def reset_peak_memory() -> None:
    """Start measuring anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The largest resident memory of this process since `reset_peak_memory`, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
