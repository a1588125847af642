"""Triton's side of describe_lineup: the manifest that the export wrote, as one JSON string."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Answers every request with lineup.json."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the manifest beside this file."""
        self.manifest = (Path(__file__).parent / "lineup.json").read_bytes()

    def execute(self, requests: list) -> list:
        """The same answer to all."""
        lineup = pb_utils.Tensor("lineup", np.array([[self.manifest]], dtype=np.object_))
        return [pb_utils.InferenceResponse([lineup]) for _ in requests]
