"""The composed query as a researcher would write it: PyTorch, IS-Net, GIT's `generate`, open_clip.

    python -m benchmarks.peers.researcher FOLDER [--batch 8]

`FOLDER` has the weights of `benchmarks/peers/weights.py`. IS-Net's network is the official one under our
name (`tercet_export/networks/isnet.py` has its layers and its state dict), the rest is the libraries' own.
fp32, eager, on all processors, pictures decoded and prepared by Pillow and torchvision one after another.
"""

import argparse
import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
import open_clip
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor
from torchvision import transforms

from tercet.bench.inputs import make_pictures, make_texts
from tercet.bench.values import Done
from tercet.errors import TercetError
from tercet_export.networks.isnet import ISNet, ISNetConfig

SCENE, VIEW, TOKENS = 1024, 224, 20
ARCH = "ViT-B-32-quickgelu"
SPECIALS = 104  # ids below are no words
GATHERING = 0.05
"""Seconds to wait for another query of a batch: next to nothing beside what a batch takes."""


class Researcher:
    """The networks, loaded once."""

    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.isnet = ISNet(ISNetConfig()).eval()
        self.isnet.load_state_dict(safetensors.torch.load_file(folder / "rest" / "isnet.safetensors"))
        self.git = transformers.GitForCausalLM.from_pretrained(folder / "rest" / "git").eval()
        weights = folder / ARCH / "open_clip.safetensors"
        self.clip = open_clip.create_model(ARCH, pretrained=str(weights)).eval()
        self.tokenize = open_clip.get_tokenizer(ARCH)
        self.words = (folder / "rest" / "vocab.txt").read_text().split("\n")
        self.view = transforms.Compose(
            [
                transforms.Resize(VIEW, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(VIEW),
                transforms.ToTensor(),
            ]
        )
        self.normalise = transforms.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)

    @torch.inference_mode()
    def queries(self, files: Sequence[bytes], modifications: Sequence[str]) -> np.ndarray:
        """Reference pictures and what to change about each -> embeddings f32 [N, D], all as one batch."""
        pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        masks = self.masks(pictures)
        views = torch.stack([self.view(picture) for picture in pictures])  # (N, 3, V, V)
        # The mask of the middle of the picture: where Resize and CenterCrop put the view.
        alpha = torch.stack(
            [self.mask_view(mask, picture) for mask, picture in zip(masks, pictures, strict=True)]
        )
        foregrounds = (views * alpha + (1 - alpha)).mul(255).round() / 255
        captions = self.captions(self.normalise(foregrounds))
        texts = [f"{caption}, {text}" for caption, text in zip(captions, modifications, strict=True)]
        return F.normalize(self.clip.encode_text(self.tokenize(texts)), dim=-1).numpy()

    def masks(self, pictures: Sequence[Image.Image]) -> Tensor:
        """IS-Net's official Inference.py: (N, 1, S, S) in 0..1."""
        scenes = [
            F.interpolate(
                torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float(),
                (SCENE, SCENE),
                mode="bilinear",
            ).type(torch.uint8)
            for picture in pictures
        ]
        return self.isnet(torch.cat(scenes) / 255 - 0.5)[0]

    def mask_view(self, mask: Tensor, picture: Image.Image) -> Tensor:
        """One mask (1, S, S) at the picture's size, then as the view is made of the picture."""
        whole = F.interpolate(mask[None], picture.size[::-1], mode="bilinear")[0]
        return self.view(transforms.functional.to_pil_image(whole))

    def captions(self, pixels: Tensor) -> list[str]:
        """GIT's captions, greedy, at most 20 tokens."""
        ids = self.git.generate(
            pixel_values=pixels, max_new_tokens=TOKENS, num_beams=1, do_sample=False, pad_token_id=0
        )
        return [" ".join(self.words[number] for number in row if number >= SPECIALS) for row in ids.tolist()]


class ResearcherTarget:
    """The script as a target for load: one after another, or everybody who asks at once as one batch."""

    def __init__(self, name: str, researcher: Researcher, batch: int) -> None:
        self.name = name
        self._researcher, self._batch = researcher, batch
        self._pictures, self._texts = make_pictures(), make_texts()
        self._waiting: SimpleQueue[tuple[int, Done]] = SimpleQueue()
        self._pool = ThreadPoolExecutor(1, "researcher")

    def send(self, number: int, done: Done) -> None:
        """Ask one query."""
        self._waiting.put((number, done))
        self._pool.submit(self._compute)

    def close(self) -> None:
        """Nothing more is computed."""
        self._pool.shutdown(cancel_futures=True)

    def _compute(self) -> None:
        """Answer as many as wait, at most a batch."""
        waiting: list[tuple[int, Done]] = []
        with suppress(Empty):
            while len(waiting) < self._batch:
                waiting.append(self._waiting.get(timeout=GATHERING))
        if not waiting:
            return
        failure = None
        try:
            files = [self._pictures[number % len(self._pictures)] for number, _ in waiting]
            texts = [self._texts[number % len(self._texts)] for number, _ in waiting]
            self._researcher.queries(files, texts)
        except Exception as error:  # it must not be waited for, whatever befell it
            failure = TercetError(f"{type(error).__name__}: {error}")
        for _, done in waiting:
            done(failure)


def main() -> None:
    """Time it alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    researcher = Researcher(arguments.folder, torch.get_num_threads())
    files, texts = make_pictures()[: arguments.batch], make_texts()[: arguments.batch]
    for _ in range(3):
        started = time.perf_counter()
        researcher.queries(files, texts)
        print(f"{(time.perf_counter() - started) / len(files):.2f} s a query")


if __name__ == "__main__":
    main()
