"""Stand-ins for a server, to test code that uses `Client` or `AsyncClient` where none runs.

```python
client = tercet.Client(transport=tercet.testing.FakeTransport())
```

`FakeTransport` answers like a server whose networks are hash functions: equal input, equal answer. Give it a
function of your own to answer otherwise; an exception that it raises reaches the client as a server's would.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tercet.errors import ModelMissing
from tercet.transport import Tensors

__all__ = ["AsyncFakeTransport", "FakeTransport", "answer"]

Answer = Callable[[str, Mapping[str, np.ndarray]], Tensors]

DIMENSION = 16
VIEW = 8


def answer(model: str, inputs: Mapping[str, np.ndarray]) -> Tensors:
    """All outputs of `model` as the stand-in server gives them; embeddings are f32 [1, 16] of unit length.

    A token is a word, and there are a start and an end token; a text encoder reads 77.

    Raises:
        ModelMissing: no lineup has such a model.
    """
    if model == "describe_lineup":
        return {"lineup": np.array([[json.dumps(MANIFEST).encode()]], dtype=np.object_)}
    hashed = hashlib.sha256(b"".join(_raw(inputs[name]) for name in sorted(inputs)))
    noise = np.random.default_rng(int.from_bytes(hashed.digest()[:8], "big"))
    if model in ("caption_foreground", "caption_image"):
        return {
            "caption": np.array([[f"a picture of {hashed.hexdigest()[:8]}".encode()]], dtype=np.object_),
            "score": -noise.random((1, 1), dtype=np.float32),
            "foreground": noise.integers(0, 256, (1, VIEW, VIEW, 3), dtype=np.uint8),
            "mask": noise.random((1, VIEW, VIEW), dtype=np.float32),
        }
    if model == "image_token":
        return {"pseudo_token": noise.standard_normal((1, DIMENSION), dtype=np.float32)}
    if model in ("embed_image", "embed_text", "embed_text_with_token", "tokenize_text"):
        vector = noise.standard_normal((1, DIMENSION), dtype=np.float32)
        outputs = {"embedding": vector / np.linalg.norm(vector)}
        if "text" in inputs:
            words = inputs["text"].item().decode().split()
            outputs["token_count"] = np.array([[len(words) + 2]], dtype=np.int32)
        return outputs
    raise ModelMissing(f"the stand-in server does not serve {model!r}")


class FakeTransport:
    """For `Client(transport=...)`: answers without a server."""

    def __init__(self, answer: Answer = answer) -> None:
        """`answer(model, inputs)` returns the model's outputs or raises TercetError, in several threads."""
        self._answer = answer

    def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout: float
    ) -> Tensors:
        """Return those of the answer's outputs that were asked for."""
        given = self._answer(model, inputs)
        return {name: given[name] for name in outputs}

    def ready(self, timeout: float) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing."""


class AsyncFakeTransport:
    """For `AsyncClient(transport=...)`: answers without a server."""

    def __init__(self, answer: Answer = answer) -> None:
        """As in `FakeTransport`."""
        self._fake = FakeTransport(answer)

    async def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout: float
    ) -> Tensors:
        """Return those of the answer's outputs that were asked for."""
        return self._fake.infer(model, inputs, outputs, timeout)

    async def ready(self, timeout: float) -> bool:
        """Return True."""
        return True

    async def close(self) -> None:
        """Do nothing."""


def _raw(tensor: np.ndarray) -> bytes:
    return b"".join(tensor.reshape(-1)) if tensor.dtype == np.object_ else tensor.tobytes()


def _role(**details: Any) -> dict[str, Any]:
    checkpoint = {"source": "none", "sha256": "0" * 64}
    common = {"network": "hash", "options": {}, "precision": "fp32", "onnx_sha256": "0" * 64, "parameters": 0}
    return {"checkpoint": checkpoint, **common, **details}


MANIFEST: dict[str, Any] = {
    "format": 1,
    "name": "fake",
    "fingerprint": "f" * 64,
    "encoder_fingerprint": "e" * 64,
    "versions": {},
    "roles": {
        "background_remover": _role(),
        "captioner": _role(max_tokens=20),
        "clip_image": _role(embedding_dimension=DIMENSION),
        "clip_text": _role(context_length=77, token_width=DIMENSION),
        "image_to_token": _role(),
    },
}
"""The stand-in server's `lineup.json`."""
