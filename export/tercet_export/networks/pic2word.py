"""Pic2Word's mapping network (Saito et al. 2023, arXiv:2302.03084): picture features become a pseudo-word.

The official checkpoint holds the frozen CLIP too (`state_dict`). Its digest goes into the manifest, so that
a lineup with another CLIP of the same size is refused.
"""

from pathlib import Path

import safetensors
import torch.nn.functional as F
from torch import Tensor, nn

from tercet.errors import CheckpointError
from tercet_export import checkpoints
from tercet_export.networks.clip import clip_digest
from tercet_export.registry import Loaded, Options, register


class Im2Text(nn.Module):
    """A perceptron under the official names: `layers.N.0` (Linear, dropout, ReLU) and `fc_out`."""

    def __init__(self, features: int, middle: int, width: int, layers: int, dropout: float = 0.1) -> None:
        super().__init__()
        inputs = [features] + [middle] * (layers - 1)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(size, middle)) for size in inputs)
        self.fc_out = nn.Linear(middle, width)
        self.dropout = dropout

    def forward(self, features: Tensor) -> Tensor:
        """Features f32 (B, D), not normalised -> pseudo-token f32 (B, W)."""
        for layer in self.layers:
            features = F.relu(F.dropout(layer(features), self.dropout, self.training))
        return self.fc_out(features)


class Mapper(nn.Module):
    """The `image_to_token` graph: one output, in a tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> tuple[Tensor]:
        """Features f32 (B, D) -> pseudo-token f32 (B, W)."""
        return (self.network(features),)


@register(
    name="pic2word",
    role="image_to_token",
    title="Pic2Word's mapping network, for CLIP ViT-L/14",
    source="hf://navervision/zeroshot-cir-models/pic2word_large.pt, LinCIR's copy of the official file "
    "(https://github.com/google-research/composed_image_retrieval links to Google Drive)",
    code_licence="Apache-2.0",
    weights_licence="not stated",
    options=(),
    parameters=1_050_368,
)
def load(checkpoint: Path, options: Options) -> Loaded:
    """The official checkpoint's `state_dict_img2text`, or its tensors alone; sizes follow from them."""
    content = checkpoints.read(checkpoint)
    tensors = content.tensors("state_dict_img2text", "Phi")  # the other: to say what it is
    layers = sum(name.startswith("layers.") and name.endswith(".0.weight") for name in tensors)
    first, last = tensors.get("layers.0.0.weight"), tensors.get("fc_out.weight")
    if first is None or last is None or first.dim() != 2 or last.dim() != 2:
        family = checkpoints.recognise(tensors)
        raise CheckpointError(
            f"{checkpoint} holds no mapping network of Pic2Word (layers.0.0.weight, fc_out.weight)"
            + (f": it looks like a checkpoint of {family}" if family else "")
        )
    (middle, features), width = first.shape, last.shape[0]
    network = Im2Text(features, middle, width, layers)
    checkpoints.fill(network, tensors, checkpoint, "Pic2Word's mapping network")
    trained_for = digest_of_its_clip(content)
    return Loaded(
        graph=Mapper(network),
        sizes={"D": features, "W": width},
        details={
            "feature_width": features,
            "token_width": width,
            **({"clip_digest": trained_for} if trained_for else {}),
        },
    )


def digest_of_its_clip(checkpoint: checkpoints.Checkpoint) -> str | None:
    """Which CLIP the mapping network was trained for: the one in the official container, or the note
    `clip_digest` in the metadata of a safetensors file. None where neither is there.
    """
    if checkpoint.container == "safetensors":
        with safetensors.safe_open(checkpoint.path, "pt") as file:
            return (file.metadata() or {}).get("clip_digest")
    if "state_dict_img2text" not in checkpoint.content:
        return None
    if checkpoint.content.get("state_dict"):
        return clip_digest(checkpoint.tensors("state_dict"))
    # `tercet-train pic2word --no-clip-in-checkpoint`
    return checkpoint.content.get("tercet", {}).get("clip_digest")
