"""Triton's side of decode_image: requests in, tensors or one error per request out."""

import json
from pathlib import Path

import geometry
import numpy as np
import pictures
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Decodes each picture once, then gives each network what its manifest entry asks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the geometry of each output from the manifest beside this file."""
        manifest = json.loads((Path(__file__).parent / "lineup.json").read_text())
        entries = [role["preprocessing"] for role in manifest["roles"].values() if role.get("preprocessing")]
        self.geometries = {entry["tensor"]: geometry.Geometry.read(entry) for entry in entries}

    def execute(self, requests: list) -> list:
        """Answer each request on its own: a bad picture is its own request's error."""
        return [self.answer(request) for request in requests]

    def answer(self, request: "pb_utils.InferenceRequest") -> "pb_utils.InferenceResponse":
        """The outputs asked for, [B, ...] each."""
        contents = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        names = set(request.requested_output_names())
        try:
            rows = [
                self.decode(content, names, number, len(contents)) for number, content in enumerate(contents)
            ]
        except pictures.PictureError as error:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            )
        tensors = [pb_utils.Tensor(name, np.stack([row[name] for row in rows])) for name in sorted(names)]
        return pb_utils.InferenceResponse(tensors)

    def decode(self, content: bytes, names: set[str], number: int, count: int) -> dict[str, np.ndarray]:
        """One picture's outputs; PictureError says which picture of several it was."""
        tensors = {"view" if name == "view_box" else name for name in names}
        missing = tensors - self.geometries.keys()
        if missing:
            raise pictures.PictureError(f"this lineup has no network that takes {', '.join(sorted(missing))}")
        wanted = [self.geometries[name] for name in tensors]
        # Without antialiasing single pixels are picked from the full picture: a reduced one has others.
        reducible = all(one.antialias for one in wanted)
        try:
            picture = pictures.decode(content, max(one.size for one in wanted) if reducible else None)
        except pictures.PictureError as error:
            raise pictures.PictureError(
                f"picture {number + 1} of {count}: {error}" if count > 1 else str(error)
            ) from error
        outputs = {}
        for one in wanted:
            outputs[one.tensor], box = geometry.apply(picture, one)
            if one.tensor == "view":
                outputs["view_box"] = box
        return outputs
