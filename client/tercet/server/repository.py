"""Which models of a model repository can be served: those whose weights, or all of whose steps, are there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from tercet.errors import ServerStartError

# The file that holds a model, by backend, where its configuration names none (`default_model_filename`).
MODEL_FILES = {"onnxruntime": "model.onnx", "python": "model.py"}


@dataclass(frozen=True)
class Selection:
    """The models to load and, by name, why the others are left out.

    `complete`: every configuration lists its inputs and outputs, so that Triton need not complete any.
    """

    models: tuple[str, ...]
    left_out: dict[str, str]
    complete: bool


def is_model(folder: Path) -> bool:
    """Whether a folder is a model's: it has a configuration, or a version."""
    if not folder.is_dir():
        return False
    return any(
        entry.name in ("config.pbtxt", "configs") or entry.name.isdecimal() for entry in folder.iterdir()
    )


def read_configuration(model: Path, config_name: str | None = None) -> ModelConfig:
    """Read a model's config.pbtxt, or `configs/<config_name>.pbtxt` where the model has one, as Triton does.

    A model without either is taken for an ONNX graph that Triton completes the configuration of.
    """
    named = model / "configs" / f"{config_name}.pbtxt"
    file = named if config_name and named.is_file() else model / "config.pbtxt"
    configuration = ModelConfig()
    try:
        text_format.Parse(file.read_text(), configuration)
    except FileNotFoundError:
        configuration.backend = "onnxruntime"
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ServerStartError(f"{file} is not a Triton model configuration: {error}") from error
    return configuration


def steps(configuration: ModelConfig) -> list[str]:
    """Return the models that an ensemble consists of; none for any other model."""
    return [step.model_name for step in configuration.ensemble_scheduling.step]


def closure(name: str, configurations: Mapping[str, ModelConfig]) -> set[str]:
    """Return a model and, for an ensemble, its steps and theirs."""
    return {name}.union(*(closure(member, configurations) for member in steps(configurations[name])))


def missing_file(model: Path, configuration: ModelConfig) -> Path | None:
    """Return a file that a model lacks in every version; None where it lacks none that is known.

    That is the model itself, and what its configuration names as `required_file`: a Python model may read
    what only some lineups bring.
    """
    backend = configuration.backend or configuration.platform.removesuffix("_onnx")
    file = configuration.default_model_filename or MODEL_FILES.get(backend or "onnxruntime")
    versions = [folder for folder in model.iterdir() if folder.name.isdecimal()]
    for needed in (file, configuration.parameters["required_file"].string_value):
        if needed and not any((version / needed).exists() for version in versions):
            return max(versions, key=lambda folder: int(folder.name), default=model / "1") / needed
    return None


def reason_against(name: str, configurations: Mapping[str, ModelConfig], repository: Path) -> str | None:
    """Return why a model cannot be loaded, None where it can."""
    if name not in configurations:
        return f"{repository} has no model {name}"
    if not re.fullmatch(r"[\w.+-]+", name, re.ASCII):
        return f"Triton takes letters, digits and . _ + - in a model's name only: rename the folder {name!r}"
    members = steps(configurations[name])
    for member in members:
        if reason := reason_against(member, configurations, repository):
            return reason
    missing = None if members else missing_file(repository / name, configurations[name])
    if configurations[name].backend == "pytorch" or (missing and (missing.parent / "model.pt").exists()):
        return (
            f"{name} is TorchScript, and the embedded server has no libtorch backend: serve it with a Triton "
            "that has, and --model-config-name=torchscript, or export the lineup with format onnx"
        )
    if missing:
        return f"{missing.relative_to(repository)} is missing: fill the repository (tercet-export lineup)"
    return None


def select_models(
    repository: Path, only: tuple[str, ...] | None = None, config_name: str | None = None
) -> Selection:
    """Return the models of `repository` that can be loaded; `only` these (and their steps) where given.

    Raises:
        ServerStartError: there is no such folder, a configuration is broken, a model of `only` cannot be
            loaded, or nothing can.
    """
    if not repository.is_dir():
        raise ServerStartError(f"there is no model repository at {repository}: name an existing folder")
    folders = [folder for folder in repository.iterdir() if folder.name[0] != "." and is_model(folder)]
    configurations = {folder.name: read_configuration(folder, config_name) for folder in sorted(folders)}
    wanted = tuple(configurations) if only is None else only
    reasons = {name: reason_against(name, configurations, repository) for name in wanted}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    chosen = {member for name in wanted if name not in left_out for member in closure(name, configurations)}
    if (only is not None and left_out) or not chosen:
        error = ServerStartError(
            f"cannot serve from {repository}{':' if left_out else ', which holds no model'}"
        )
        for name, reason in left_out.items():
            error.add_note(f"  {name}: {reason}")
        raise error
    return Selection(
        models=tuple(sorted(chosen)),
        left_out=left_out,
        complete=all(configurations[name].input and configurations[name].output for name in chosen),
    )
