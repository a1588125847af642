"""Triton's `tokenize_text`: texts to the tensors that `clip_text` takes.

The work is in `tokens.py`; this file only speaks with Triton. Every request is answered on its own.
"""

from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from .tokens import TextError, load_vocabulary, tokenize


class TritonPythonModel:
    """One instance of the model, as Triton's Python stub drives it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the text encoder's vocabulary from the files beside this one."""
        try:
            self.vocabulary = load_vocabulary(Path(__file__).parent)
        except FileNotFoundError as error:
            raise pb_utils.TritonModelException(
                f"{error.filename} is missing: run tercet-export lineup"
            ) from None
        except KeyError as error:
            raise pb_utils.TritonModelException(
                f"lineup.json lacks {error}: export a lineup with clip_text"
            ) from None
        except ValueError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests: list[Any]) -> list[Any]:
        """Tokenise each request's texts."""
        return [self.respond(request) for request in requests]

    def respond(self, request: Any) -> Any:
        """The response to one request, be it an error."""
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().ravel().tolist()
        pseudo_token = pb_utils.get_input_tensor_by_name(request, "pseudo_token")
        try:
            tensors = tokenize(
                texts, self.vocabulary, None if pseudo_token is None else pseudo_token.as_numpy()
            )
        except TextError as error:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            )
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, tensors[name]) for name in wanted])
