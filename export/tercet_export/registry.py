"""Which networks there are: each file under `networks/` registers what it offers with the decorator
`register`.

    @register(name="isnet", role="background_remover", ..., arch="isnet", options=("arch", "size"))
    def load(checkpoint: Path, options: Options) -> Loaded: ...

The loader reads the official checkpoint and returns a graph: a torch module whose `forward` takes the
role's inputs in order and returns its outputs in order, with scaling, mean and deviation inside.
"""

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from tercet.errors import ExportError
from tercet_export.roles import ROLES, Role

# What a network can be written as, and the file's name in a model repository: the backends' defaults.
FORMATS = {"onnx": "model.onnx", "torchscript": "model.pt"}

# The options that every network takes.
EVERYWHERE = ("precision", "format")


@dataclass(frozen=True)
class Options:
    """What a user may choose at export; None leaves the network's own default.

    `arch` is an architecture's name or a JSON file; `size` the side of the network's input in pixels.
    """

    arch: str | None = None
    size: int | None = None
    beams: int | None = None
    max_tokens: int | None = None
    precision: str = "fp32"
    format: str = "onnx"


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes one of `decode_image`'s tensors; mean and deviation are applied inside the graph.

    `resize`: "stretch" (aspect ignored) or "shortest" (shortest side to `size`, then a centre crop).
    `antialias`: True is Pillow's kernel, False is torch's bilinear interpolation without corner alignment,
    truncated to u8 (IS-Net).
    """

    tensor: str
    size: int
    resize: str
    kernel: str
    antialias: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, ready to export.

    `sizes` gives every symbol of the role's dimensions but B (a dynamic one: the size to trace with);
    `details` goes into the role's entry of the manifest as it is (JSON values: `tokenizer`,
    `context_length`, `max_tokens`, ...).
    """

    graph: torch.nn.Module
    sizes: Mapping[str, int]
    preprocessing: Preprocessing | None = None
    details: Mapping[str, Any] | None = None


Loader = Callable[[Path, Options], Loaded]


@dataclass(frozen=True)
class Network:
    """One registered network; `options` names the fields of Options that it takes, beside EVERYWHERE.

    `parameters` and `input_size` (pixels) are those of the official checkpoint at its defaults, for people
    who choose; None where they follow from the architecture given. `non_commercial`: the weights, or the data
    that they were trained on, come with terms that forbid commercial use.
    """

    name: str
    role: str
    title: str
    source: str
    code_licence: str
    weights_licence: str
    arch: str | None
    options: tuple[str, ...]
    loader: Loader
    precisions: tuple[str, ...] = ("fp32", "fp16")
    parameters: int | None = None
    input_size: int | None = None
    non_commercial: bool = False

    def resolve(self, options: Options) -> Options:
        """`options` with the default architecture; ExportError for one that the network does not take."""
        for name in (field.name for field in fields(Options) if field.name not in EVERYWHERE):
            if getattr(options, name) is not None and name not in self.options:
                raise ExportError(
                    f"{self.name} has no option {name!r}: it takes {', '.join((*self.options, *EVERYWHERE))}"
                )
        if options.precision not in self.precisions:
            raise ExportError(
                f"{self.name} has no precision {options.precision!r}: choose {' or '.join(self.precisions)}"
            )
        if options.format not in FORMATS:
            raise ExportError(f"there is no format {options.format!r}: choose {' or '.join(FORMATS)}")
        if options.format == "torchscript" and self.role == "captioner":
            raise ExportError(
                f"{self.name} searches in a loop that ends when every caption has, which tracing for "
                "TorchScript would fix to the traced picture's: export it as onnx"
            )
        if options.format == "torchscript" and options.precision != "fp32":
            raise ExportError(
                "TorchScript is written in fp32: fp16 is made from the ONNX graph. Give one of the two"
            )
        for name in ("size", "beams", "max_tokens"):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise ExportError(f"option {name!r} must be at least 1, not {value}")
        return replace(options, arch=options.arch or self.arch)

    def load(self, checkpoint: Path, options: Options | None = None) -> Loaded:
        """Read `checkpoint` into the network.

        Raises CheckpointError when it does not fit, ExportError for a wrong option.
        """
        loaded = self.loader(checkpoint, self.resolve(options or Options()))
        loaded.graph.eval().requires_grad_(False)
        return loaded


_NETWORKS: dict[str, Network] = {}


def register(
    *,
    name: str,
    role: str,
    title: str,
    source: str,
    code_licence: str,
    weights_licence: str,
    arch: str | None = None,
    options: tuple[str, ...] = ("arch",),
    precisions: tuple[str, ...] = ("fp32", "fp16"),
    parameters: int | None = None,
    input_size: int | None = None,
    non_commercial: bool = False,
) -> Callable[[Loader], Loader]:
    """Decorator: enter a loader into the registry. One function may be registered under several names."""

    def enter(loader: Loader) -> Loader:
        if name in _NETWORKS:
            raise ExportError(f"two networks are called {name!r}: rename one")
        if role not in ROLES:
            raise ExportError(f"{name!r} names the unknown role {role!r}: the roles are {', '.join(ROLES)}")
        _NETWORKS[name] = Network(
            name,
            role,
            title,
            source,
            code_licence,
            weights_licence,
            arch,
            options,
            loader,
            precisions,
            parameters,
            input_size,
            non_commercial,
        )
        return loader

    return enter


@cache
def networks() -> Mapping[str, Network]:
    """Every registered network by name, sorted: imports each file under `networks/`."""
    package = importlib.import_module("tercet_export.networks")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    return dict(sorted(_NETWORKS.items()))


def network(name: str) -> Network:
    """The network called `name`; ExportError lists the known ones."""
    if name not in networks():
        raise ExportError(f"there is no network {name!r}: the known ones are {', '.join(networks())}")
    return networks()[name]


def role_of(entry: Network) -> Role:
    """The role that a network fills."""
    return ROLES[entry.role]


Config = TypeVar("Config")


def architecture(arch: str, known: Mapping[str, Config], kind: type[Config]) -> Config:
    """The configuration called `arch`: one of `known`, or a JSON file with the fields of the dataclass
    `kind`.

    Lists in the file become tuples. Raises ExportError naming the known ones, or the file's unknown or
    missing fields.
    """
    if arch in known:
        return known[arch]
    path = Path(arch)
    if path.suffix != ".json":
        raise ExportError(
            f"there is no architecture {arch!r}: give {', '.join(sorted(known))}, or a .json file"
        )
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise TypeError("a JSON object is expected")
        return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in content.items()})
    except (OSError, ValueError, TypeError) as error:
        raise ExportError(f"architecture file {path} cannot be used: {error}") from error


def manifest_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """The JSON form of a Preprocessing."""
    return asdict(preprocessing)
