"""IS-Net on the world's pictures and masks, with the deep supervision of its paper."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tercet_export.networks.isnet import ISNet, ISNetConfig
from tercet_training.loop import Report, Schedule, batches, fit, shift
from tercet_training.pictures import SIDE, Pictures

CONFIG = ISNetConfig(
    stem=12,
    middle=(8, 8, 12, 16, 16, 16),
    out=(16, 24, 32, 48, 48, 48),
    decoder_middle=(16, 16, 12, 8, 8),
    decoder_out=(48, 32, 24, 16, 16),
    size=SIDE,
)


def prepare(scene: np.ndarray) -> Tensor:
    """u8 (B, S, S, 3) -> f32 (B, 3, S, S) around zero: the official mean 0.5 and standard deviation 1."""
    x = torch.from_numpy(np.array(scene)).permute(0, 3, 1, 2)
    return (x.float() / 255 - 0.5).contiguous(memory_format=torch.channels_last)


def train_isnet(pictures: Pictures, schedule: Schedule, seed: int, report: Report) -> ISNet:
    """Binary cross-entropy on all six side outputs, the sum as in the official `muti_loss_fusion`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = ISNet(CONFIG).to(memory_format=torch.channels_last)
    rows = batches(rng, len(pictures), schedule.batch)

    def losses() -> list[Tensor]:
        chosen = next(rows)
        scene, mask = shift(rng, pictures.scene[chosen], pictures.mask[chosen], reach=0)
        truth = torch.from_numpy(np.ascontiguousarray(mask)).float()[:, None] / 255
        sides = [F.binary_cross_entropy(side, truth) for side in network(prepare(scene))]
        return [torch.stack(sides).sum(), sides[0]]

    fit("IS-Net", network, schedule, losses, report)
    return network


@torch.no_grad()
def predict_masks(network: ISNet, scene: np.ndarray, batch: int = 256) -> np.ndarray:
    """u8 scenes (N, S, S, 3) -> u8 masks (N, S, S), as the server would cut them out."""
    network.eval()
    parts = [
        network(prepare(scene[start : start + batch]))[0][:, 0].mul(255).round().byte().numpy()
        for start in range(0, len(scene), batch)
    ]
    return np.concatenate(parts)


def score_masks(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Mean absolute error in 0..1, and intersection over union at one half, of u8 masks (N, S, S)."""
    inside, true = predicted >= 128, truth >= 128
    union = (inside | true).sum(axis=(1, 2))
    overlap = (inside & true).sum(axis=(1, 2)) / np.maximum(union, 1)
    error = np.abs(predicted.astype(np.int16) - truth).mean() / 255
    return {"mean_absolute_error": float(error), "intersection_over_union": float(overlap.mean())}
