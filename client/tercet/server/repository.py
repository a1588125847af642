"""Which models of a model repository can be served: those whose weights, or all of whose steps, are there."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from tercet.errors import ServerStartError

# The file that holds a model, by backend; a configuration may name another (`default_model_filename`).
DEFAULT_FILES = {"onnxruntime": "model.onnx", "python": "model.py"}


@dataclass(frozen=True)
class Selection:
    """The models to load, in an order in which each comes after its steps, and why the others are left out."""

    models: tuple[str, ...]
    ensembles: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)


def read_configuration(model: Path, config_name: str | None = None) -> ModelConfig:
    """Read a model's config.pbtxt, or `configs/<config_name>.pbtxt` where the model has one, as Triton does.

    A model without a configuration file is an ONNX graph that completes its own.
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


def _missing_file(model: Path, configuration: ModelConfig) -> str | None:
    """Return the file without which the model cannot be served, or None where nothing is missing."""
    default = DEFAULT_FILES.get(configuration.backend or configuration.platform.removesuffix("_onnx"))
    file = configuration.default_model_filename or default
    versions = [folder for folder in model.iterdir() if folder.name.isdecimal() and folder.is_dir()]
    if file is None or any((version / file).exists() for version in versions):
        return None
    return f"{model.name}/{max((folder.name for folder in versions), key=int, default='1')}/{file}"


def select_models(
    repository: Path, only: tuple[str, ...] | None = None, config_name: str | None = None
) -> Selection:
    """Return the models of `repository` that can be loaded; `only` these (and their steps) where given.

    Raises:
        ServerStartError: no such folder; a broken configuration; a model of `only` is missing or incomplete; or there is
            nothing to serve.
    """
    if not repository.is_dir():
        raise ServerStartError(f"there is no model repository at {repository}: name an existing folder")
    folders = sorted(
        folder for folder in repository.iterdir() if folder.is_dir() and not folder.name.startswith(".")
    )
    configurations = {folder.name: read_configuration(folder, config_name) for folder in folders}
    left_out: dict[str, str] = {}

    def why_not(name: str) -> str | None:
        """Return why the model cannot be loaded, or None."""
        if name not in configurations:
            return f"{repository} has no model {name}"
        if not re.fullmatch(r"[\w.+-]+", name, re.ASCII):
            return f"rename {name!r}: Triton's Python backend allows letters, digits and . + - _ only"
        for step in configurations[name].ensemble_scheduling.step:
            if reason := why_not(step.model_name):
                return f"its step {step.model_name} is left out: {reason}" if ":" not in reason else reason
        missing = None if is_ensemble(name) else _missing_file(repository / name, configurations[name])
        return (
            f"{missing} is missing: export a lineup that fills it (tercet-export lineup)" if missing else None
        )

    def is_ensemble(name: str) -> bool:
        return bool(configurations[name].ensemble_scheduling.step)

    def with_steps(name: str) -> set[str]:
        return {name}.union(
            *(with_steps(step.model_name) for step in configurations[name].ensemble_scheduling.step)
        )

    wanted = set(configurations) if only is None else set(only)
    left_out = {name: reason for name in sorted(wanted) if (reason := why_not(name))}
    if only is not None and left_out:
        raise ServerStartError("; ".join(left_out.values()))
    chosen = set().union(*(with_steps(name) for name in wanted - set(left_out)))
    if not chosen:
        raise ServerStartError(f"nothing in {repository} can be served. " + "; ".join(left_out.values()))
    return Selection(
        models=tuple(sorted(name for name in chosen if not is_ensemble(name))),
        ensembles=tuple(
            sorted((name for name in chosen if is_ensemble(name)), key=lambda name: len(with_steps(name)))
        ),
        left_out=left_out,
    )
