"""Which pictures a step sees, and how they are cropped: decided by seed, epoch and number alone.

So a run that was interrupted goes on with the very pictures it would have seen, whatever the number of worker
processes, and several processes together see what one would.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tercet.errors import InputError, PictureError
from tercet_export.registry import Preprocessing
from tercet_training.pic2word import frozen
from tercet_training.pic2word.recipe import Recipe, seed_for
from tercet_training.pic2word.sources import Source
from tercet_training.pic2word.world import World

Key = tuple[int, int]  # epoch (-1: official geometry) and number of a picture
Batch = tuple[Tensor, Tensor, list[tuple[str, str]]]


class Crops(Dataset):
    """Pictures by epoch and number: u8 (P, P, 3), and nothing; or black pixels, and name and reason."""

    def __init__(self, source: Source, preprocessing: Preprocessing, recipe: Recipe) -> None:
        self.source, self.seed, self.side = source, recipe.seed, preprocessing.size
        self.crop = frozen.random_crop(preprocessing, recipe.crop)
        self.whole = frozen.official_geometry(preprocessing)

    def __getitem__(self, key: Key) -> tuple[Tensor, tuple[str, str] | None]:
        epoch, number = key
        try:
            picture = self.source.picture(number)
        except PictureError as error:
            black = torch.zeros(self.side, self.side, 3, dtype=torch.uint8)
            return black, (self.source.name(number), str(error))
        if epoch < 0:
            return frozen.pixels_of(self.whole(picture)), None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(self.seed, epoch, number))
            return frozen.pixels_of(self.crop(picture)), None


class Plan:
    """The order of all training pictures, epoch after epoch, as steps of `recipe.batch`.

    `held_out` pictures, drawn by the seed, are for validation and never trained on.
    """

    def __init__(self, source: Source, recipe: Recipe) -> None:
        self.source, self.recipe = source, recipe
        rng = np.random.default_rng(seed_for(recipe.seed, "held out"))
        self.held_out = np.sort(rng.permutation(len(source))[: recipe.held_out])
        left = len(source) - recipe.held_out
        self.steps_per_epoch = left // recipe.batch
        self.steps = self.steps_per_epoch * recipe.epochs
        if self.steps < 1:
            raise InputError(
                f"{max(0, left):,} pictures to train on do not fill one batch of {recipe.batch:,} (of "
                f"{len(source):,}, {recipe.held_out:,} are held out): give more pictures or a smaller --batch"
            )

    def epoch(self, number: int) -> NDArray[np.int64]:
        """The pictures of an epoch in order; those that fill no batch are left out."""
        rng = np.random.default_rng(seed_for(self.recipe.seed, "order", number))
        order = self.source.order(rng)
        return order[~np.isin(order, self.held_out)][: self.steps_per_epoch * self.recipe.batch]

    def batches(self, start: int, rank: int, size: int) -> Iterator[list[Key]]:
        """This process's part of every step from `start` to the last."""
        share = self.recipe.batch // size
        for epoch in range(start // self.steps_per_epoch, self.recipe.epochs):
            order = self.epoch(epoch)
            first = max(0, start - epoch * self.steps_per_epoch)
            for step in range(first, self.steps_per_epoch):
                place = step * self.recipe.batch + rank * share
                yield [(epoch, int(number)) for number in order[place : place + share]]


class Sampler:
    """An iterable with a length around `Plan.batches`, as DataLoader wants it."""

    def __init__(self, plan: Plan, start: int, world: World) -> None:
        self.plan, self.start, self.world = plan, start, world

    def __len__(self) -> int:
        return self.plan.steps - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        return self.plan.batches(self.start, self.world.rank, self.world.size)


def stack(rows: list[tuple[Tensor, tuple[str, str] | None]]) -> Batch:
    """Pixels (B, P, P, 3), which rows are pictures (B), and what is wrong with the others."""
    pixels = torch.stack([pixels for pixels, _ in rows])
    faults = [fault for _, fault in rows]
    return pixels, torch.tensor([fault is None for fault in faults]), [fault for fault in faults if fault]


def load(
    source: Source,
    preprocessing: Preprocessing,
    recipe: Recipe,
    keys: Sampler | list[list[Key]],
    workers: int,
) -> DataLoader:
    """Batches of `keys` in their order, read by `workers` processes, or by this one for 0."""
    return DataLoader(
        Crops(source, preprocessing, recipe),
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=stack,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
    )
