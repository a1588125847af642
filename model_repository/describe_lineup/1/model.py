"""Triton's `describe_lineup`: the manifest of what is served, `lineup.json`, to whoever asks."""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of the model, as Triton's Python stub drives it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the manifest beside this file."""
        manifest = Path(__file__).with_name("lineup.json")
        if not manifest.is_file():
            raise pb_utils.TritonModelException(f"{manifest} is missing: run tercet-export lineup")
        self.lineup = np.array([manifest.read_bytes()], np.object_)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request with the manifest."""
        return [pb_utils.InferenceResponse([pb_utils.Tensor("lineup", self.lineup)]) for _ in requests]
