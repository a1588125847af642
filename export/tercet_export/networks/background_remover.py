"""The `background_remover` graph, the same around every network that finds a foreground: scaling before it,
the mask brought to the view, and the view laid over white.
"""

import torch
from torch import Tensor, nn

# The view the graph is traced with; it stays dynamic. 224 is the commonest captioner's.
VIEW = 224


def sample_view(mask: Tensor, box: Tensor, view: Tensor) -> Tensor:
    """The scene's mask (B, 1, S, S) bilinearly sampled at the pixels of the view: (B, V, V).

    `box` (B, 4) is where the view lies in the picture: left, top, right, bottom in 0..1. `view` (B, V, V,
    3) gives V. Each axis is a (V, S) matrix of triangle weights as wide as the larger of a scene and a view
    pixel, so that a view coarser than the scene averages. With V = S and the box [0, 0, 1, 1] both matrices
    are the identity, exactly.

    Pixels are where the scene's own resizing put them. Of the official post-processings, IS-Net's does the
    same; InSPyReNet's aligns the corners instead, which moves the mask by half a scene pixel at the most.
    """
    scene, side = mask.shape[-1], view.shape[1]
    dtype, device = mask.dtype, mask.device
    # A view pixel's centre in scene pixels, exact where both have one size.
    steps = (torch.arange(side, dtype=dtype, device=device) + 0.5) * (scene / side)
    centres = torch.arange(scene, dtype=dtype, device=device) + 0.5

    def weights(low: Tensor, high: Tensor) -> Tensor:
        extent = (high - low)[:, None]  # (B, 1)
        places = (low[:, None] * scene + extent * steps).clamp(0.5, scene - 0.5)  # (B, V)
        width = (extent * (scene / side)).clamp(min=1.0)[:, :, None]
        triangle = (1 - (places[:, :, None] - centres).abs() / width).clamp(min=0)  # (B, V, S)
        return triangle / triangle.sum(dim=-1, keepdim=True)

    across, down = weights(box[:, 0], box[:, 2]), weights(box[:, 1], box[:, 3])
    return down @ mask[:, 0] @ across.transpose(1, 2)


class Remover(nn.Module):
    """The graph around a network that gives masks (B, 1, S, S) of normalised scenes, the answer first."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, scene: Tensor, view: Tensor, view_box: Tensor) -> tuple[Tensor, Tensor]:
        """Scene u8 (B, S, S, 3), view u8 (B, V, V, 3), its box -> foreground like it, mask (B, V, V)."""
        pixels = scene.permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        mask = sample_view(self.network((pixels - self.mean) / self.std)[0], view_box, view)
        alpha = mask[..., None]
        foreground = view.to(alpha.dtype) * alpha + 255 * (1 - alpha)
        return foreground.round().clamp(0, 255).to(torch.uint8), mask
