"""Triton's `detokenize_caption`: a captioner's token ids to text.

It also hands `foreground` back: an ensemble of this Triton fails where one of its outputs is read by a later
step too, so that the picture the captioner reads has to leave the ensemble under another name.
"""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .captions import detokenize, load_vocabulary


class TritonPythonModel:
    """One instance of the model, as Triton's Python stub drives it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the captioner's vocabulary from the files beside this one."""
        try:
            self.vocabulary = load_vocabulary(Path(__file__).parent)
        except FileNotFoundError as error:
            raise pb_utils.TritonModelException(
                f"{error.filename} is missing: run tercet-export lineup"
            ) from None
        except KeyError as error:
            raise pb_utils.TritonModelException(
                f"lineup.json lacks {error}: export a lineup with a captioner"
            ) from None

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request."""
        return [self.respond(request) for request in requests]

    def respond(self, request: Any) -> Any:
        """The response to one request."""
        wanted = request.requested_output_names()
        outputs = []
        if "caption" in wanted:
            token_ids = pb_utils.get_input_tensor_by_name(request, "token_ids").as_numpy()
            captions = [[text.encode()] for text in detokenize(token_ids, self.vocabulary)]
            outputs.append(pb_utils.Tensor("caption", np.array(captions, np.object_)))
        if "foreground_view" in wanted:
            foreground = pb_utils.get_input_tensor_by_name(request, "foreground")
            if foreground is None:
                return pb_utils.InferenceResponse(
                    error=pb_utils.TritonError(
                        "foreground_view is the input foreground, which was not given: send it too",
                        pb_utils.TritonError.INVALID_ARG,
                    )
                )
            outputs.append(pb_utils.Tensor("foreground_view", foreground.as_numpy()))
        return pb_utils.InferenceResponse(outputs)
