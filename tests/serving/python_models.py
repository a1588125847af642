"""Imports the code of the repository's Python models without Triton."""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2] / "model_repository"


def python_model(model: str, module: str) -> Any:
    """The module of that name in a model's version folder."""
    package = f"model_repository_{model}"
    if package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(REPOSITORY / model / "1")]
    return importlib.import_module(f"{package}.{module}")
