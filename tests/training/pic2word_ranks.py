"""What torchrun starts in test_pic2word.py: a training whose every number is compared with one process's.

With so large an epsilon AdamW's step grows with the gradient: one of half the size would show.
"""

import sys
from pathlib import Path

import torch

from tercet_training.pic2word.frozen import load_clip
from tercet_training.pic2word.recipe import Recipe
from tercet_training.pic2word.sources import open_source
from tercet_training.pic2word.train import Habits, train
from tercet_training.pic2word.world import join

RECIPE = Recipe(
    epochs=3, batch=16, learning_rate=3e-2, warm_up=2, epsilon=0.05, middle=16, held_out=20, seed=4
)


def main(folder: Path, output: Path) -> None:
    """Train on the pictures of `folder`/pictures for the CLIP in `folder`."""
    torch.set_num_threads(1)
    clip = load_clip(folder / "clip.safetensors", str(folder / "clip.json"), str(folder / "merges.txt"))
    with join("cpu") as world:
        habits = Habits(output, log_every=1)
        source = open_source(str(folder / "pictures"))
        train(clip, source, RECIPE, lambda task, done, total, note: None, world, habits)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
