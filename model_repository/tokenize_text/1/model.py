"""Triton's side of tokenize_text: requests in, tensors or one error per request out."""

import json
from pathlib import Path

import numpy as np
import tokenization
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer


class TritonPythonModel:
    """Gives clip_text its three inputs."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the vocabulary that the export wrote beside this file."""
        folder = Path(__file__).parent
        role = json.loads((folder / "lineup.json").read_text())["roles"]["clip_text"]
        entry = role["tokenizer"]
        self.token_width = role["token_width"]
        self.vocabulary = tokenization.Vocabulary(
            Tokenizer.from_file(str(folder / entry["file"])),
            role["context_length"],
            entry["start"],
            entry["end"],
            entry["pad"],
        )

    def execute(self, requests: list) -> list:
        """Answer each request on its own: a bad text is its own request's error."""
        return [self.answer(request) for request in requests]

    def answer(self, request: "pb_utils.InferenceRequest") -> "pb_utils.InferenceResponse":
        """The outputs asked for, [B, ...] each."""
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
        given = pb_utils.get_input_tensor_by_name(request, "pseudo_token")
        pseudo_token = (
            np.zeros((len(texts), self.token_width), np.float32) if given is None else given.as_numpy()
        )
        try:
            if pseudo_token.shape != (len(texts), self.token_width):
                raise tokenization.TextError(
                    f"pseudo_token has shape {list(pseudo_token.shape)}; this lineup's text encoder takes "
                    f"[{len(texts)}, {self.token_width}]: take it from this server's image_token"
                )
            rows = [self.vocabulary.tokenize(text, placeholder=given is not None) for text in texts]
        except tokenization.TextError as error:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            )
        outputs = {
            "token_ids": np.stack([row.ids for row in rows]),
            "pseudo_index": np.array([[row.placeholder] for row in rows], np.int32),
            "pseudo_token_out": pseudo_token,
            "token_count": np.array([[row.count] for row in rows], np.int32),
        }
        names = request.requested_output_names()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, outputs[name]) for name in names])
