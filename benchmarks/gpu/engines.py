"""The ways to run a network that are measured: ONNX Runtime's providers, PyTorch, transformers.

What is served is ONNX Runtime as `model_repository/ROLE/configs/gpu.pbtxt` configures it; the engines called
`onnxruntime-...` change one thing of that. All of them find their inputs on the device and leave their
outputs there.
"""

import copy
import ctypes
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from google.protobuf.json_format import MessageToDict
from torch import Tensor, nn

from benchmarks.gpu.cases import transformers_git
from tercet.server.repository import read_configuration
from tercet.server.runtime import BACKEND
from tercet_export.export import WITH_ATTENTION
from tercet_export.networks.background_remover import Remover
from tercet_export.networks.captioner import Captioner
from tercet_export.registry import Loaded
from tercet_export.roles import BATCH, ROLES, Role

__all__ = ["BASELINE", "ENGINES", "Engine", "Runner", "Subject", "out_of_memory"]

sys.path.insert(0, str(BACKEND))
import backend_onnxruntime as backend

Arrays = Mapping[str, np.ndarray]

REPOSITORY = Path(__file__).parents[2] / "model_repository"
WARM_UPS = 3
LIBRARY = "libnvinfer.so.10"
COMPILED = (1, 8, 32)
"""Batches that `torch.compile` compiles for, each of them as its own: half a minute or more for each."""

LARGEST_ENGINE = 64


@dataclass(frozen=True, eq=False)
class Subject:
    """A network to run: in PyTorch in fp32 on the device (`cuda` or `cpu`), and exported in fp16.

    `unfused` is the export in which attention is products and a softmax.
    """

    role: str
    loaded: Loaded
    graph: Path
    unfused: Path
    device: str

    @property
    def tensors(self) -> Role:
        """Its inputs and outputs."""
        return ROLES[self.role]

    @cached_property
    def halved(self) -> nn.Module:
        """The PyTorch network in fp16, as a user halves it: what surrounds a captioner or remover stays."""
        module = copy.deepcopy(self.loaded.graph)
        if isinstance(module, Remover):
            module.network = HalfNetwork(module.network)
        elif isinstance(module, Captioner):
            module.network = HalfDecoder(module.network)
        else:
            module.half()
        return module


class HalfNetwork(nn.Module):
    """A network of masks in fp16 between inputs and outputs in fp32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised f32 (B, 3, S, S) -> the network's masks, f32."""
        return [mask.float() for mask in self.network(pixels.half())]


class HalfDecoder(nn.Module):
    """A captioner's encoder and steps in fp16; the search sees logits in fp32."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.half()

    def encode(self, pixels: Tensor) -> Any:
        """See `CaptioningNetwork.encode`."""
        return self.network.encode(pixels.half())

    def step(self, *arguments: Any) -> tuple[Tensor, Any]:
        """See `CaptioningNetwork.step`."""
        logits, caches = self.network.step(*arguments)
        return logits.float(), caches


class Runner(Protocol):
    """A network that an engine has opened."""

    def prepare(self, inputs: Arrays) -> None:
        """Bring a batch to the device, and run it until nothing is allocated or compiled any more."""

    def run(self) -> None:
        """Run the batch; the device is done when this returns."""

    def outputs(self) -> dict[str, np.ndarray]:
        """What the last run gave, by name; not necessarily all of the role's outputs."""

    def on_processor(self) -> str:
        """Which operators that compute have no kernel on the card, as `33 MaxPool`."""
        return ""


class OnnxRuntimeRunner(Runner):
    """The exported graph in ONNX Runtime, by the configuration that the server has for the device.

    `cuda` are options of the CUDA provider in place of the configured ones. With `fixed` a session is opened
    for each batch, in which every dimension is a number: CUDA graphs need that. `tensorrt` are options of the
    TensorRT provider, in front of the CUDA provider. Without `fused` the graph has no attention operator.
    """

    def __init__(
        self,
        subject: Subject,
        cuda: Mapping[str, str] | None = None,
        fixed: bool = False,
        tensorrt: Callable[[Subject], dict[str, str]] | None = None,
        fused: bool = True,
    ) -> None:
        self.subject, self.fixed = subject, fixed
        self.graph = subject.graph if fused else subject.unfused
        gpu = subject.device == "cuda"
        message = read_configuration(REPOSITORY / subject.role, "gpu" if gpu else None)
        self.config = MessageToDict(message, preserving_proto_field_name=True)
        providers = backend.execution_providers(self.config, "GPU" if gpu else "CPU", "0")
        self.providers = [
            (name, {**options, **(cuda or {})} if name == "CUDAExecutionProvider" else options)
            for name, options in providers
        ]
        if tensorrt is not None:
            self.providers.insert(0, ("TensorrtExecutionProvider", tensorrt(subject)))
        self.session: Any = None

    def prepare(self, inputs: Arrays) -> None:
        """See `Runner`."""
        from onnxruntime import OrtValue

        batch = len(next(iter(inputs.values())))
        sizes = {**self.subject.loaded.sizes, BATCH: batch}
        self.binding: Any = None
        if self.fixed:
            self.session = None  # its memory is free before the next one needs any
        if self.session is None:
            self.session = self._open(sizes if self.fixed else {})
        self.binding = self.session.io_binding()
        for name, array in inputs.items():
            value = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.subject.device, 0)
            self.binding.bind_ortvalue_input(name, value)
        self.results = {}
        for tensor in self.subject.tensors.outputs:
            value = OrtValue.ortvalue_from_shape_and_type(
                tensor.shape(sizes), np.dtype(tensor.dtype), self.subject.device, 0
            )
            self.binding.bind_ortvalue_output(tensor.name, value)
            self.results[tensor.name] = value
        for _ in range(WARM_UPS):
            self.run()

    def run(self) -> None:
        """See `Runner`: ONNX Runtime waits for the device itself."""
        self.session.run_with_iobinding(self.binding)

    def outputs(self) -> dict[str, np.ndarray]:
        """See `Runner`."""
        return {name: value.numpy() for name, value in self.results.items()}

    def on_processor(self) -> str:
        """See `Runner`."""
        return backend.left_on_processor(self.session)

    def _open(self, sizes: Mapping[str, int]) -> Any:
        options = backend.session_options(self.config)
        backend.spare_half_precision(self.graph, options, self.providers)
        options.log_severity_level = 3
        for symbol in self.subject.tensors.dynamic & sizes.keys():
            options.add_free_dimension_override_by_name(symbol, sizes[symbol])
        return backend.create_session(self.graph, options, self.providers)


class TorchRunner(Runner):
    """A PyTorch module, compiled if `compiled` (options of torch.compile) is given."""

    def __init__(self, subject: Subject, compiled: Mapping[str, Any] | None = None) -> None:
        self.subject = subject
        self.module: Any = subject.halved
        self.graphs = compiled is not None and compiled.get("mode") == "reduce-overhead"
        if compiled is not None:
            torch._dynamo.config.recompile_limit = 64  # one for each batch, of each network in this process
            self.module = torch.compile(self.module, dynamic=False, **compiled)

    def prepare(self, inputs: Arrays) -> None:
        """See `Runner`."""
        self.inputs = [
            torch.from_numpy(np.ascontiguousarray(inputs[tensor.name])).to(self.subject.device)
            for tensor in self.subject.tensors.inputs
        ]
        for _ in range(WARM_UPS):
            self.run()

    def run(self) -> None:
        """See `Runner`."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.inference_mode():
            self.found = self.module(*self.inputs)
        synchronise(self.subject.device)

    def outputs(self) -> dict[str, np.ndarray]:
        """See `Runner`."""
        names = (tensor.name for tensor in self.subject.tensors.outputs)
        return {name: found.cpu().numpy() for name, found in zip(names, self.found, strict=True)}


class GenerateRunner(Runner):
    """transformers' GIT with the captioner's weights, in fp16, and its `generate`."""

    def __init__(self, subject: Subject) -> None:
        captioner = subject.loaded.graph
        assert isinstance(captioner, Captioner)
        self.device, self.search = subject.device, captioner.options
        self.mean, self.std = captioner.mean, captioner.std
        self.network = transformers_git(captioner).to(subject.device).half()

    def prepare(self, inputs: Arrays) -> None:
        """See `Runner`."""
        self.pictures = torch.from_numpy(np.ascontiguousarray(inputs["foreground"])).to(self.device)
        for _ in range(WARM_UPS):
            self.run()

    def run(self) -> None:
        """See `Runner`."""
        pixels = (self.pictures.permute(0, 3, 1, 2) / 255 - self.mean) / self.std
        with torch.inference_mode():
            ids = self.network.generate(
                pixel_values=pixels.half(),
                max_new_tokens=self.search.max_tokens,
                num_beams=self.search.beams,
                do_sample=False,
                pad_token_id=self.search.end,
            )
        self.ids = ids[:, 1:]
        synchronise(self.device)

    def outputs(self) -> dict[str, np.ndarray]:
        """See `Runner`: the ids alone."""
        ids = self.ids.cpu().numpy()
        padding = ((0, 0), (0, self.search.max_tokens - ids.shape[1]))
        return {"token_ids": np.pad(ids, padding, constant_values=self.search.end)}


def synchronise(device: str) -> None:
    """Wait until the device has done all that it was told to."""
    if device == "cuda":
        torch.cuda.synchronize()


def tensorrt_options(subject: Subject) -> dict[str, str]:
    """Options of the TensorRT provider: fp16, an engine for all batches, kept beside the graph."""

    def shapes(batch: int) -> str:
        sizes = {**subject.loaded.sizes, BATCH: batch}
        return ",".join(
            f"{tensor.name}:{'x'.join(map(str, tensor.shape(sizes)))}" for tensor in subject.tensors.inputs
        )

    return {
        "device_id": "0",
        "trt_fp16_enable": "1",
        "trt_layer_norm_fp32_fallback": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(subject.graph.parent / "tensorrt"),
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(8),
        "trt_profile_max_shapes": shapes(LARGEST_ENGINE),
    }


def has_tensorrt() -> bool:
    """Whether TensorRT's library can be loaded."""
    if importlib.util.find_spec("tensorrt"):
        import tensorrt  # noqa: F401  # it loads its libraries

        return True
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Engine:
    """A way to run the networks of some `roles`, for `batches` (all of them where None).

    `missing` says what is not there that it needs, given the device; None where it can run.
    """

    open: Callable[[Subject], Runner]
    roles: frozenset[str] = field(default_factory=lambda: frozenset(ROLES))
    batches: tuple[int, ...] | None = None
    missing: Callable[[str], str | None] = lambda device: None


def _needs_cuda(device: str) -> str | None:
    return None if device == "cuda" else "needs an NVIDIA GPU"


def _needs_tensorrt(device: str) -> str | None:
    return _needs_cuda(device) or (None if has_tensorrt() else f"TensorRT ({LIBRARY}) is not installed")


def _needs_transformers(device: str) -> str | None:
    return None if importlib.util.find_spec("transformers") else "transformers is not installed"


BASELINE: Mapping[str, str] = dict.fromkeys(ROLES, "torch") | {"captioner": "transformers"}
"""The engine that the others are compared with, by role: PyTorch as most people use it."""

CAPTIONER, REMOVER = frozenset({"captioner"}), frozenset({"background_remover"})
# torch.compile and CUDA graphs have no use for the captioner: how often its loop runs depends on the data.
STRAIGHT = frozenset(ROLES) - CAPTIONER
# Nor have ONNX Runtime's for texts, of which a batch's longest decides what is computed.
FIXED = STRAIGHT - {"clip_text"}

ENGINES: Mapping[str, Engine] = {
    "onnxruntime": Engine(OnnxRuntimeRunner),
    "onnxruntime-unfused": Engine(partial(OnnxRuntimeRunner, fused=False), frozenset(WITH_ATTENTION)),
    "onnxruntime-graphs": Engine(
        partial(OnnxRuntimeRunner, cuda={"enable_cuda_graph": "1"}, fixed=True), FIXED, missing=_needs_cuda
    ),
    "onnxruntime-fixed": Engine(partial(OnnxRuntimeRunner, fixed=True), CAPTIONER),
    "onnxruntime-exhaustive": Engine(
        partial(OnnxRuntimeRunner, cuda={"cudnn_conv_algo_search": "EXHAUSTIVE"}),
        REMOVER,
        missing=_needs_cuda,
    ),
    "onnxruntime-nhwc": Engine(
        partial(OnnxRuntimeRunner, cuda={"prefer_nhwc": "1"}), REMOVER, missing=_needs_cuda
    ),
    "onnxruntime-tensorrt": Engine(
        partial(OnnxRuntimeRunner, tensorrt=tensorrt_options), STRAIGHT, missing=_needs_tensorrt
    ),
    "transformers": Engine(GenerateRunner, CAPTIONER, missing=_needs_transformers),
    "torch": Engine(TorchRunner),
    "torch-compile": Engine(partial(TorchRunner, compiled={}), STRAIGHT, COMPILED),
    "torch-compile-graphs": Engine(
        partial(TorchRunner, compiled={"mode": "reduce-overhead"}), STRAIGHT, COMPILED, _needs_cuda
    ),
}
"""Each way by name. `-unfused`: attention is no operator of its own; `-graphs`: CUDA graphs; `-fixed`: every
dimension a number; `-exhaustive`, `-nhwc`: how convolutions are chosen and laid out."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an engine's error says that the device has no more memory."""
    text = str(error).lower()
    signs = ("out of memory", "failed to allocate memory", "alloc_failed", "bad allocation")
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or any(sign in text for sign in signs)
