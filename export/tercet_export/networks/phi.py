"""The mapping network "phi" that SEARLE (Baldrati et al. 2023, arXiv:2303.15247) and LinCIR (Gu et al. 2024,
arXiv:2312.01998) share.

Both feed it CLIP's projected picture features as they are, not normalised, and read its answer in place of a
word: "a photo of $ that {modification}" with their tokenizer, `*` here. Published are ViT-B/32 and ViT-L/14
(SEARLE) and ViT-L/14, ViT-H/14 and ViT-bigG/14 (LinCIR); all sizes follow from the tensors.
"""

from pathlib import Path

from torch import Tensor, nn

from tercet.errors import CheckpointError
from tercet_export import checkpoints
from tercet_export.networks.pic2word import Mapper
from tercet_export.registry import Loaded, Options, register


class Phi(nn.Module):
    """A perceptron under the official names: Linears are `layers.0`, `layers.3` and `layers.6`."""

    def __init__(self, features: int, middle: int, width: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, middle),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(middle, middle),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(middle, width),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features f32 (B, D), not normalised -> pseudo-token f32 (B, W)."""
        return self.layers(features)


@register(
    name="searle",
    role="image_to_token",
    title="SEARLE's mapping network, for CLIP ViT-B/32 or ViT-L/14",
    source="https://github.com/miccunifi/SEARLE/releases (SEARLE_ViT-L14.pt, SEARLE_ViT-B32.pt)",
    code_licence="CC-BY-NC-4.0",
    weights_licence="CC-BY-NC-4.0",
    options=(),
    parameters=14_162_688,
    non_commercial=True,
)
@register(
    name="lincir",
    role="image_to_token",
    title="LinCIR's mapping network, for CLIP ViT-L/14, LAION's ViT-H/14 or ViT-bigG/14",
    source="hf://navervision/zeroshot-cir-models/lincir_large.pt (https://github.com/navervision/lincir)",
    code_licence="CC-BY-NC-4.0",
    weights_licence="CC-BY-NC-4.0",
    options=(),
    parameters=14_162_688,
    non_commercial=True,
)
def load(checkpoint: Path, options: Options) -> Loaded:
    """The official checkpoint's `Phi`, or its tensors alone; sizes follow from them."""
    tensors = checkpoints.read(checkpoint).tensors("Phi", "state_dict_img2text")
    first, last = tensors.get("layers.0.weight"), tensors.get("layers.6.weight")
    if first is None or last is None or first.dim() != 2 or last.dim() != 2:
        family = checkpoints.recognise(tensors)
        raise CheckpointError(
            f"{checkpoint} holds no mapping network of SEARLE or LinCIR (layers.0.weight, layers.6.weight)"
            + (f": it looks like a checkpoint of {family}" if family else "")
        )
    (middle, features), width = first.shape, last.shape[0]
    network = Phi(features, middle, width)
    checkpoints.fill(network, tensors, checkpoint, "SEARLE's and LinCIR's mapping network")
    return Loaded(
        graph=Mapper(network),
        sizes={"D": features, "W": width},
        details={"feature_width": features, "token_width": width},
    )
