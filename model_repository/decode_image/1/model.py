"""Triton's `decode_image`: picture files to the u8 tensors that the lineup's networks take.

The work is in `pictures.py` and `geometry.py`; this file only speaks with Triton. Every request is answered
on its own: a bad picture is an error of its request and of no other in the batch.
"""

import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .geometry import prepare, read_geometries
from .pictures import PictureError


class TritonPythonModel:
    """One instance of the model, as Triton's Python stub drives it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read what the lineup's networks want from the manifest beside this file."""
        manifest = Path(__file__).with_name("lineup.json")
        if not manifest.is_file():
            raise pb_utils.TritonModelException(f"{manifest} is missing: run tercet-export lineup")
        self.geometries = read_geometries(json.loads(manifest.read_text()))
        # Odd metadata in somebody's picture is nothing for the server's log.
        warnings.filterwarnings("ignore", module="PIL")
        # Pillow leaves Python's lock while it decodes and resizes.
        self.threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Decode the pictures of a batch of requests side by side."""
        asked = [
            (
                pb_utils.get_input_tensor_by_name(request, "image").as_numpy().ravel().tolist(),
                request.requested_output_names(),
            )
            for request in requests
        ]
        return [respond(answer) for answer in self.threads.map(self.answer, asked)]

    def answer(self, asked: tuple[list[bytes], list[str]]) -> dict[str, np.ndarray] | PictureError:
        """The tensors asked for, or why there are none."""
        try:
            return prepare(*asked, self.geometries)
        except PictureError as error:
            return error

    def finalize(self) -> None:
        """End the threads."""
        self.threads.shutdown()


def respond(answer: dict[str, np.ndarray] | PictureError) -> Any:
    """The response for Triton to send."""
    if isinstance(answer, PictureError):
        return pb_utils.InferenceResponse(
            error=pb_utils.TritonError(str(answer), pb_utils.TritonError.INVALID_ARG)
        )
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in answer.items()])
