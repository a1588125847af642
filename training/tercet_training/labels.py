"""What a scene is, as class numbers, and heads that read them off features: a richer signal than captions.

Networks this small see some hundred thousand pictures in half an hour: each must teach them much. The heads
are thrown away after training.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tercet_training.world import Scene
from tercet_training.world.vocabulary import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZES, STYLES

NONE = "none"
# Aspect -> its values. The last two are seen only in whole pictures, not in cut-outs.
ASPECTS: dict[str, list[str]] = {
    "shape": list(SHAPES),
    "colour": list(COLOURS),
    "pattern": list(PATTERNS),
    "size": list(SIZES),
    "companion_shape": [*SHAPES, NONE],
    "companion_colour": [*COLOURS, NONE],
    "background": list(BACKGROUNDS),
    "style": list(STYLES),
}
OF_SUBJECT = 6
# Shapes are the hardest to tell apart, backgrounds the easiest.
WEIGHTS = torch.tensor([3.0, 1.0, 1.5, 1.0, 1.0, 1.0, 0.5, 0.5])
COMPANION = list(ASPECTS).index("companion_shape")


def label_scenes(scenes: Sequence[Scene]) -> np.ndarray:
    """Class numbers i64 (N, 8), in the order of `ASPECTS`."""
    rows = []
    for scene in scenes:
        thing, companion = scene.subject.thing, scene.subject.companion
        values = (
            thing.shape,
            thing.colour,
            thing.pattern,
            thing.size,
            companion.shape if companion else NONE,
            companion.colour if companion else NONE,
            scene.background,
            scene.style,
        )
        rows.append([names.index(value) for names, value in zip(ASPECTS.values(), values, strict=True)])
    return np.array(rows, np.int64)


class AspectHead(nn.Module):
    """One linear classifier for each aspect of a picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, sum(map(len, ASPECTS.values())))

    def loss(self, features: Tensor, labels: Tensor, whole: int) -> Tensor:
        """The weighted sum of cross-entropies of features (B, width), labels (B, 8).

        The first `whole` pictures of the batch are whole, the others are cut-outs.
        """
        logits = self.linear(features).split([len(values) for values in ASPECTS.values()], dim=1)
        terms = [
            F.cross_entropy(of_aspect[:whole], labels[:whole, aspect])
            if aspect >= OF_SUBJECT
            else F.cross_entropy(of_aspect, labels[:, aspect])
            for aspect, of_aspect in enumerate(logits)
        ]
        return (torch.stack(terms) * WEIGHTS).sum()


class PatchHead(nn.Module):
    """What every patch shows: how much of it is foreground, and the thing's or the background's classes."""

    KNOWN = ("shape", "colour", "pattern", "background")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1 + sum(len(ASPECTS[name]) for name in self.KNOWN))

    def loss(self, patches: Tensor, labels: Tensor, masks: Tensor, whole: int) -> Tensor:
        """Of patches (B, N, width), labels (B, 8), masks f32 (B, V, V); the first `whole` are whole."""
        count = patches.shape[1]
        side = masks.shape[1] // round(count**0.5)
        share = F.avg_pool2d(masks[:, None], side).flatten(1)  # (B, N)
        foreground, *logits = self.linear(patches).split(
            [1, *(len(ASPECTS[name]) for name in self.KNOWN)], dim=2
        )
        total = 2 * F.binary_cross_entropy_with_logits(foreground[..., 0], share)
        # Where there is a companion, a patch could show either.
        alone = labels[:, COMPANION] == len(ASPECTS["companion_shape"]) - 1
        of_thing = (share > 0.4) & alone[:, None]
        of_background = (share < 0.1) & (torch.arange(len(labels)) < whole)[:, None]
        for name, of_name in zip(self.KNOWN, logits, strict=True):
            chosen = of_background if name == "background" else of_thing
            truth = labels[:, list(ASPECTS).index(name), None].expand(-1, count)
            if chosen.any():
                weight = 0.5 if name == "background" else 1.0
                total = total + weight * F.cross_entropy(of_name[chosen], truth[chosen])
        return total
