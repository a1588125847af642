"""mPLUG, the captioner of Li et al. 2022 (arXiv:2205.12005): CLIP's image encoder, BERT that attends to it.

The modules carry the names of the official release (github.com/alibaba/AliceMind, mPLUG, and ModelScope's
`mplug_image-captioning_*`). Captioning as in its `models/model_caption_mplug.py`, with
`configs/caption_mplug_*.yaml` and `scripts/caption_mplug_*.sh`: no prompt, 5 beams, 8 to 25 tokens.
The encoders of question and fusion, which the official files hold too, have no part in it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tercet.errors import ExportError
from tercet_export import checkpoints
from tercet_export.networks import bert
from tercet_export.networks.captioner import CLIP_MEAN, CLIP_STD, captioner
from tercet_export.networks.clip_vision import ImageEncoder, VisionSizes
from tercet_export.networks.rules import MPLUG as MPLUG_RULES
from tercet_export.networks.search import Caches, KeysValues, Now, SearchOptions
from tercet_export.registry import Loaded, Options, Preprocessing, architecture, register


@dataclass(frozen=True)
class MPLUGConfig:
    """Sizes and ids of an mPLUG; the defaults are mplug-base's. Where vision is wider than text, a linear map
    and a norm come between them.
    """

    image_size: int = 384
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision_projection: int = 512  # width of CLIP's own projection: in the checkpoint, never used
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_feedforward: int = 3072
    vocabulary: int = 30522
    max_positions: int = 512
    start: int = 101
    end: int = 102
    max_tokens: int = 25
    min_tokens: int = 8

    def vision(self) -> VisionSizes:
        """The sizes of the image encoder."""
        return VisionSizes(
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.vision_width,
            layers=self.vision_layers,
            heads=self.vision_heads,
            projection=self.vision_projection,
        )

    def decoder(self) -> bert.DecoderSizes:
        """The sizes of the text decoder."""
        return bert.DecoderSizes(
            vocabulary=self.vocabulary,
            width=self.text_width,
            layers=self.text_layers,
            heads=self.text_heads,
            feedforward=self.text_feedforward,
            memory_width=self.text_width,
            max_positions=self.max_positions,
            token_types=True,
        )


MPLUG_BASE = MPLUGConfig()
MPLUG_LARGE = MPLUGConfig(
    image_size=336,
    patch_size=14,
    vision_width=1024,
    vision_layers=24,
    vision_heads=16,
    vision_projection=768,
)
ARCHITECTURES = {"mplug-base": MPLUG_BASE, "mplug-large": MPLUG_LARGE}

POSITIONS = "visual_encoder.visual.positional_embedding"

# What other tasks and the training need: the encoders of question and fusion, CLIP's text tower, the heads
# and queues of contrastive training, and the momentum copies of everything.
OTHER_PARTS = re.compile(
    r"(text_encoder|fusion_encoder|vision_proj|text_proj|itm_head)\."
    r"|visual_encoder\.(transformer|token_embedding|ln_final)\."
    r"|visual_encoder\.(positional_embedding|text_projection|logit_scale)$"
    r"|(visual_encoder|text_encoder|fusion_encoder|text_decoder|visn_fc|visn_layer_norm|vision_proj|text_proj)_m\."
    r"|(temp|image_queue|text_queue|idx_queue|queue_ptr)$"
)


class MPLUG(nn.Module):
    """What of the network captions: `encode` a picture, then `step` by step."""

    def __init__(self, config: MPLUGConfig) -> None:
        super().__init__()
        self.visual_encoder = nn.ModuleDict({"visual": ImageEncoder(config.vision())})
        self.narrows = config.vision_width != config.text_width
        if self.narrows:
            self.visn_fc = nn.Linear(config.vision_width, config.text_width)
            self.visn_layer_norm = nn.LayerNorm(config.text_width, eps=bert.EPSILON)
        self.text_decoder = bert.Decoder(config.decoder())

    def tokens(self, pixels: Tensor) -> Tensor:
        """Normalised f32 (B, 3, V, V) -> what the decoder attends to, (B, N, text_width)."""
        x = self.visual_encoder["visual"](pixels)  # (B, N, vision_width)
        return self.visn_layer_norm(self.visn_fc(x)) if self.narrows else x

    def encode(self, pixels: Tensor) -> list[KeysValues]:
        """Normalised f32 (B, 3, V, V) -> the picture's keys and values for each decoder layer."""
        return self.text_decoder.memory(self.tokens(pixels))

    def step(
        self, memory: list[KeysValues], token_ids: Tensor, now: Now, caches: Caches
    ) -> tuple[Tensor, Caches]:
        """One token further; see `search.Step`."""
        return self.text_decoder.step(memory, token_ids, now, caches)


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """What captioning needs of an official file, under {"model"}, {"module"} (DeepSpeed's) or neither.

    "model." is taken out of the names wherever it stands, as ModelScope's loader does.
    """
    tensors = checkpoints.read(checkpoint).tensors("model", "module")
    named = {name.replace("model.", ""): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if not OTHER_PARTS.match(name)}


def trained_size(tensors: Mapping[str, Tensor], patch_size: int) -> int:
    """The side of the pictures that the position embeddings (1 + N, D) are for; 0 where there are none such.

    ModelScope's code makes N = int(side**2 / patch_size**2), also where patches do not fill the side: 752 of
    14 pixels for 384, of which it uses the first 27 * 27.
    """
    patches = tensors[POSITIONS].shape[0] - 1 if POSITIONS in tensors and tensors[POSITIONS].ndim == 2 else 0
    side = math.isqrt(patches * patch_size**2 - 1) + 1 if patches > 0 else 0  # the root, rounded up
    usual = side % patch_size == 0 or side % 32 == 0
    return side if usual and side**2 // patch_size**2 == patches else 0


def fit_positions(positions: Tensor, config: MPLUGConfig, trained: int) -> Tensor:
    """Position embeddings (1 + N, D), made for pictures of side `trained`, for those of `config.image_size`.

    As `resize_pos_embed` of the official loader: bilinear, the class token's left alone. What cannot be
    resized is returned as it is, for `checkpoints.check` to refuse.
    """
    side, old = config.image_size // config.patch_size, trained // config.patch_size
    positions = positions[: 1 + old**2]
    if side == old or positions.shape != (1 + old**2, config.vision_width):
        return positions
    grid = positions[1:].T.reshape(1, -1, old, old).float()
    resized = F.interpolate(grid, size=(side, side), mode="bilinear")[0].flatten(1).T  # (side^2, D)
    return torch.cat([positions[:1].float(), resized])


def read(checkpoint: Path, config: MPLUGConfig, size: int | None = None) -> tuple[MPLUG, MPLUGConfig]:
    """The network with its weights, and its configuration for pictures of side `size`.

    Without `size` they are as large as those that the file was trained on, and no smaller than the official
    captioning's: pretraining's are, and the official code raises them too. CheckpointError names what does
    not fit.
    """
    tensors = read_tensors(checkpoint)
    trained = trained_size(tensors, config.patch_size)
    config = replace(config, image_size=size or max(config.image_size, trained))
    if config.image_size < config.patch_size:
        raise ExportError(f"size {size} is less than one patch of mPLUG: give {config.patch_size} or more")
    if trained:
        tensors[POSITIONS] = fit_positions(tensors[POSITIONS], config, trained)
    network = MPLUG(config)
    tensors = bert.complete(tensors, network.text_decoder, "text_decoder.")
    checkpoints.fill(network, tensors, checkpoint, "this mPLUG")
    return network, config


def load(checkpoint: Path, options: Options) -> Loaded:
    """An mPLUG of any size -> graph; picture and search as in the official captioning."""
    config = architecture(options.arch or "mplug-base", ARCHITECTURES, MPLUGConfig)
    network, config = read(checkpoint, config, options.size)
    return captioner(
        network,
        options,
        search=SearchOptions(
            config.start,
            config.end,
            config.max_tokens,
            beams=5,
            length_penalty=0.6,
            rules=MPLUG_RULES,
            min_tokens=config.min_tokens,
        ),
        preprocessing=Preprocessing(
            "view", config.image_size, "stretch", "bicubic", antialias=True, mean=CLIP_MEAN, std=CLIP_STD
        ),
        tokenizer={
            "kind": "wordpiece",
            "vocabulary": config.vocabulary,
            "start": config.start,
            "end": config.end,
        },
        max_positions=config.max_positions,
    )


for size, arch, parameters in (("base", "ViT-B/16", 224_365_626), ("large", "ViT-L/14", 442_963_770)):
    register(
        name=f"mplug-{size}",
        role="captioner",
        title=f"mPLUG {size} ({arch}), beam search",
        source="https://github.com/alibaba/AliceMind/tree/main/mPLUG; "
        f"https://modelscope.cn/models/iic/mplug_image-captioning_coco_{size}_en",
        code_licence="Apache-2.0",
        weights_licence="Apache-2.0",
        arch=f"mplug-{size}",
        options=("arch", "size", "beams", "max_tokens"),
        parameters=parameters,
        input_size=ARCHITECTURES[f"mplug-{size}"].image_size,
    )(load)
