"""CLIP in transformers as a user would write it for a serving framework, at its best on a processor.

Runs in the peers' own environments, so it imports nothing of Tercet. It computes in bf16 on processors that
have instructions for it (there PyTorch is about twice as fast), else in fp32, with the fast preprocessing and
the fused attention that transformers' documentation recommends.
"""

import base64
import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorFast,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

FOLDER = os.environ.get("PEERS_WEIGHTS", "")
THREADS = int(os.environ.get("PEERS_THREADS", "1"))
BATCH = 8
BF16 = {"avx512_bf16", "amx_bf16", "bf16"} & set(Path("/proc/cpuinfo").read_text().split())
DTYPE = torch.bfloat16 if BF16 else torch.float32


class ImageEncoder:
    """Pictures to embeddings of unit length."""

    def __init__(self) -> None:
        torch.set_num_threads(THREADS)
        self.network = CLIPVisionModelWithProjection.from_pretrained(FOLDER, dtype=DTYPE).eval()
        self.processor = CLIPImageProcessorFast.from_pretrained(FOLDER)

    def __call__(self, pictures: list) -> np.ndarray:
        """PIL pictures to f32 (B, D)."""
        pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return unit(self.network(pixel_values=pixels.to(DTYPE)).image_embeds)


class TextEncoder:
    """Texts to embeddings of unit length."""

    def __init__(self) -> None:
        torch.set_num_threads(THREADS)
        self.network = CLIPTextModelWithProjection.from_pretrained(FOLDER, dtype=DTYPE).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(FOLDER)

    def __call__(self, texts: list) -> np.ndarray:
        """Texts to f32 (B, D)."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            return unit(self.network(**tokens).text_embeds)


def unit(embeddings: torch.Tensor) -> np.ndarray:
    """Each row brought to length 1."""
    return torch.nn.functional.normalize(embeddings.float(), dim=-1).numpy()


def open_picture(file: bytes) -> Image.Image:
    """An encoded picture, decoded."""
    return Image.open(io.BytesIO(file)).convert("RGB")


def encoded(embedding: np.ndarray) -> str:
    """A vector as base64 of its f32: much cheaper to write and to read than decimal numbers."""
    return base64.b64encode(embedding.astype(np.float32).tobytes()).decode()
