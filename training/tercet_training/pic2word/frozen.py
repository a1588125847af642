"""The frozen CLIP of a mapping network's training: a picture's features, and "a photo of *" embedded."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from tercet.errors import InputError
from tercet_export import vocabulary
from tercet_export.networks.clip import TextTower, clip_digest, load_network
from tercet_export.networks.pic2word import Im2Text
from tercet_export.registry import Options, Preprocessing, network
from tercet_training.pic2word.recipe import PROMPT, Recipe


class FrozenCLIP(nn.Module):
    """CLIP's two towers as they are served, with the prompt's tokens; nothing here is trained.

    `state` is the whole network's state dict in open_clip's layout, which is OpenAI's; `sizes` has D, the
    number of features, and W, the width of a token.
    """

    token_ids: Tensor
    place: Tensor

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        token_ids: Tensor,
        place: int,
        preprocessing: Preprocessing,
        state: dict[str, Tensor],
        architecture: str,
        sizes: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.register_buffer("token_ids", token_ids, persistent=False)
        self.register_buffer("place", torch.tensor([[place]], dtype=torch.int32), persistent=False)
        self.preprocessing, self.state = preprocessing, state
        self.architecture, self.sizes = architecture, sizes
        self.scale = float(state["logit_scale"].exp())
        self.digest = clip_digest(state)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """u8 (B, P, P, 3) -> f32 (B, D), not normalised."""
        _, features = self.image(pixels)
        return features.float()

    def compose(self, pseudo_tokens: Tensor) -> Tensor:
        """Pseudo-words (B, W) -> embedding f32 (B, D) of "a photo of *", of unit length, with a gradient."""
        rows = len(pseudo_tokens)
        (embedding,) = self.text(self.token_ids.expand(rows, -1), pseudo_tokens, self.place.expand(rows, -1))
        return embedding.float()

    def new_mapper(self, recipe: Recipe) -> Im2Text:
        """A mapping network of this CLIP's sizes, with PyTorch's own first weights as officially."""
        return Im2Text(self.sizes["D"], recipe.middle, self.sizes["W"], recipe.layers, recipe.dropout)


def load_clip(checkpoint: Path, arch: str | None, tokenizer: str | None = None) -> FrozenCLIP:
    """A CLIP of any open_clip architecture that reads CLIP's BPE, as `tercet-export` reads it.

    `tokenizer` names the merges file; None is CLIP's own. Raises CheckpointError, ExportError, or InputError
    for a text tower that is not CLIP's.
    """
    options = Options(arch=arch)
    image, text = (network(name).load(checkpoint, options) for name in ("clip-image", "clip-text"))
    whole, architecture = load_network(checkpoint, options)
    details = (text.details or {})["tokenizer"]
    if details["kind"] != "clip-bpe" or not isinstance(text.graph, TextTower):
        raise InputError(f"{architecture.name} does not read CLIP's BPE tokens: take a CLIP that does")
    encoding = vocabulary.build(details, tokenizer, Path()).encode(PROMPT, add_special_tokens=False)
    ids = [details["start"], *encoding.ids, details["end"]]
    place = [*encoding.offsets].index((PROMPT.index("*"), PROMPT.index("*") + 1)) + 1
    token_ids = torch.full((1, text.sizes["T"]), details["pad"], dtype=torch.int32)
    token_ids[0, : len(ids)] = torch.tensor(ids)  # the tower reads no further than its end
    assert image.preprocessing is not None
    return FrozenCLIP(
        image.graph,
        text.graph,
        token_ids,
        place,
        image.preprocessing,
        whole.state_dict(),
        architecture.name,
        text.sizes,
    )


def contrast(images: Tensor, texts: Tensor, scale: float, valid: Tensor) -> Tensor:
    """The symmetric contrastive loss of unit vectors (B, D) and (B, D), of the rows that are `valid` (B)."""
    logits = scale * images[valid] @ texts[valid].T
    truth = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def official_geometry(preprocessing: Preprocessing) -> v2.Compose:
    """How CLIP sees a picture that is not cropped at random."""
    kernel = InterpolationMode(preprocessing.kernel)
    side = preprocessing.size
    if preprocessing.resize == "stretch":
        return v2.Compose([v2.Resize((side, side), kernel)])
    return v2.Compose([v2.Resize(side, kernel), v2.CenterCrop(side)])


def random_crop(preprocessing: Preprocessing, least: float) -> v2.RandomResizedCrop:
    """The official augmentation: a crop of at least this share of the area, resized."""
    kernel = InterpolationMode(preprocessing.kernel)
    return v2.RandomResizedCrop(preprocessing.size, scale=(least, 1.0), interpolation=kernel)


def pixels_of(picture: Image.Image) -> Tensor:
    """u8 (P, P, 3)."""
    return v2.functional.pil_to_tensor(picture).permute(1, 2, 0).contiguous()
