"""Triton's side of detokenize_caption."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from detokenization import detokenize
from tokenizers import Tokenizer


class TritonPythonModel:
    """Turns ids into captions, and hands the foreground on."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the captioner's vocabulary that the export wrote beside this file."""
        folder = Path(__file__).parent
        entry = json.loads((folder / "lineup.json").read_text())["roles"]["captioner"]["tokenizer"]
        self.tokenizer = Tokenizer.from_file(str(folder / entry["file"]))
        self.end = entry["end"]

    def execute(self, requests: list) -> list:
        """Answer each request with the outputs it asks for."""
        return [self.answer(request) for request in requests]

    def answer(self, request: "pb_utils.InferenceRequest") -> "pb_utils.InferenceResponse":
        """`caption` [B, 1], and `foreground_view` where it is asked for."""
        outputs = []
        for name in request.requested_output_names():
            if name == "caption":
                ids = pb_utils.get_input_tensor_by_name(request, "token_ids").as_numpy()
                captions = [[detokenize(self.tokenizer, row.tolist(), self.end).encode()] for row in ids]
                outputs.append(pb_utils.Tensor("caption", np.array(captions, dtype=np.object_)))
                continue
            foreground = pb_utils.get_input_tensor_by_name(request, "foreground")
            if foreground is None:
                error = pb_utils.TritonError(
                    "foreground_view needs the input foreground", pb_utils.TritonError.INVALID_ARG
                )
                return pb_utils.InferenceResponse(error=error)
            outputs.append(pb_utils.Tensor("foreground_view", foreground.as_numpy()))
        return pb_utils.InferenceResponse(outputs)
