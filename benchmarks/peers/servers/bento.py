"""BentoML around transformers: `bentoml serve bento:Clip`, as its pages on adaptive batching, on workers for
processors (one a core) and its example BentoClip have it.
"""

import bentoml
import numpy as np
from clip_encoder import ImageEncoder, TextEncoder
from PIL.Image import Image

BATCHING = {"batchable": True, "max_batch_size": 16, "max_latency_ms": 60_000}


@bentoml.service(workers="cpu_count", traffic={"timeout": 120}, logging={"access": {"enabled": False}})
class Clip:
    """Both towers."""

    def __init__(self) -> None:
        self.encode_images, self.encode_texts = ImageEncoder(), TextEncoder()

    @bentoml.api(**BATCHING)
    def images(self, items: list[Image]) -> np.ndarray:
        """Pictures as multipart files."""
        return self.encode_images([picture.convert("RGB") for picture in items])

    @bentoml.api(**BATCHING)
    def texts(self, items: list[str]) -> np.ndarray:
        """Texts in JSON."""
        return self.encode_texts(items)
