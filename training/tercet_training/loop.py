"""The training loop that the demo networks share: Muon and AdamW, warm-up and cosine, reports of progress."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Report(Protocol):
    """Told how far a task is: `done` of `total`, and a note such as the running losses."""

    def __call__(self, task: str, done: int, total: int, note: str) -> None:
        """Show it."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.05
    warm_up: int = 100


class Muon(torch.optim.Optimizer):
    """Momentum, every matrix's update orthogonalised (Jordan et al. 2024) and scaled as AdamW's would be.

    A transformer this small learns from half as many pictures as with AdamW. In f32, unlike PyTorch's own:
    without hardware for bf16 that one takes longer than the network.
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                updates = []
                for matrix in matrices:
                    assert matrix.grad is not None
                    mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
                    mean.lerp_(matrix.grad, 1 - group["momentum"])
                    updates.append(matrix.grad.lerp(mean, group["momentum"]))
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                for matrix, update in zip(matrices, orthogonalise(torch.stack(updates)), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)


def orthogonalise(matrices: Tensor) -> Tensor:
    """(N, R, C) -> (N, R, C): singular values pushed to about 1 by five Newton-Schulz steps."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x.mT if tall else x


def optimisers(network: nn.Module, schedule: Schedule, muon: Iterable[Tensor]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices named, AdamW for all else; vectors and scalars do not decay."""
    matrices = list(muon)
    taken = {id(matrix) for matrix in matrices}
    rest = [p for p in network.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=1e-3 if matrices else schedule.learning_rate, betas=(0.9, 0.98))
    ]
    if matrices:
        found.append(Muon(matrices, schedule.learning_rate, schedule.weight_decay))
    return found


def batches(rng: np.random.Generator, count: int, batch: int) -> Iterator[np.ndarray]:
    """Row numbers, `batch` at a time, in a new order in every epoch; for ever."""
    if batch > count:
        raise ValueError(f"a batch of {batch} is more than the {count} pictures there are")
    while True:
        order = rng.permutation(count)
        for start in range(0, count - batch + 1, batch):
            yield order[start : start + batch]


def normalise(pixels: np.ndarray) -> Tensor:
    """u8 (B, H, W, 3) -> f32 (B, 3, H, W), with CLIP's mean and standard deviation."""
    x = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def shift(
    rng: np.random.Generator, pixels: np.ndarray, masks: np.ndarray, reach: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """A batch and its masks (B, H, W), mirrored or not, moved by up to `reach` pixels, borders repeated."""
    down, across = rng.integers(0, 2 * reach + 1, 2)
    mirrored = rng.random() < 0.5

    def move(array: np.ndarray) -> np.ndarray:
        edges = [(0, 0), (reach, reach), (reach, reach), (0, 0)][: array.ndim]
        moved = np.pad(array[:, :, ::-1] if mirrored else array, edges, mode="edge")
        return moved[:, down : down + array.shape[1], across : across + array.shape[2]]

    return move(pixels), move(masks)


def fit(
    task: str,
    network: nn.Module,
    schedule: Schedule,
    losses: Callable[[], list[Tensor]],
    report: Report,
    muon: Iterable[Tensor] = (),
) -> None:
    """Train `network` in place.

    Args:
        task: what reports call it.
        network: everything that learns.
        schedule: the learning rates climb for `warm_up` steps and fall to nothing along a cosine.
        losses: called at every step; the first it gives is minimised, all are reported as running means.
        report: told after every step.
        muon: the matrices that Muon trains.
    """
    found = optimisers(network, schedule, muon)
    full = [[group["lr"] for group in optimiser.param_groups] for optimiser in found]
    warm_up = min(schedule.warm_up, max(1, schedule.steps // 10))
    network.train()
    started = time.perf_counter()
    means: list[float] = []
    for step in range(schedule.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
        for optimiser, rates in zip(found, full, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * min((step + 1) / warm_up, cosine)
        values = losses()
        network.zero_grad(set_to_none=True)
        values[0].backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimiser in found:
            optimiser.step()
        now = [float(value.detach()) for value in values]
        means = [0.97 * mean + 0.03 * value for mean, value in zip(means, now, strict=True)] if means else now
        speed = (step + 1) * schedule.batch / (time.perf_counter() - started)
        note = " ".join(f"{mean:.3f}" for mean in means)
        report(task, step + 1, schedule.steps, f"{speed:,.0f}/s  loss {note}")
    network.eval()
