"""IS-Net, the background remover of Qin et al. 2022 (DIS, arXiv:2203.03041).

A U-Net of U-Nets: each stage is itself a small U-Net (an RSU block), so that every stage sees far and fine
at once. The modules carry the names of the official `IS-Net/models/isnet.py`: `state_dict()` is the
official layout.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tercet_export import checkpoints
from tercet_export.networks.background_remover import VIEW, Remover
from tercet_export.registry import Loaded, Options, Preprocessing, architecture, register


@dataclass(frozen=True)
class ISNetConfig:
    """Channels of stages 1-6: `middle` inside a stage, `out` at its end; `decoder_middle` of stages 5d-1d.

    `stem` is the width of the first convolution, `size` the side of the scene in pixels.
    """

    stem: int = 64
    middle: tuple[int, ...] = (32, 32, 64, 128, 256, 256)
    out: tuple[int, ...] = (64, 128, 256, 512, 512, 512)
    decoder_middle: tuple[int, ...] = (256, 128, 64, 32, 16)
    decoder_out: tuple[int, ...] = (512, 256, 128, 64, 64)
    size: int = 1024


ARCHITECTURES = {"isnet": ISNetConfig()}

# What each stage is: how many resolutions its small U-Net has; 0 means dilation instead of pooling (RSU-4F).
ENCODER_DEPTHS = (7, 6, 5, 4, 0, 0)
DECODER_DEPTHS = (0, 4, 5, 6, 7)


def resize_like(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, without corner alignment, to the height and width of `like`."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def halve() -> nn.MaxPool2d:
    """Max pooling by two that keeps the last odd row and column, as everywhere in IS-Net."""
    return nn.MaxPool2d(2, stride=2, ceil_mode=True)


class ConvNormReLU(nn.Module):
    """3x3 convolution, batch norm, ReLU: `REBNCONV` in the official file."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return F.relu(self.bn_s1(self.conv_s1(x)))


class RSU(nn.Module):
    """Residual U-block with `depth` levels (RSU-7 to RSU-4), or RSU-4F with dilations where `depth` is 0.

    Levels 1 to depth-1 each halve the picture; the last, dilated, does not. RSU-4F keeps one resolution
    throughout.
    """

    def __init__(self, depth: int, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.pooled = depth > 0
        self.depth = depth or 4
        dilations = [1] * (self.depth - 1) + [2] if self.pooled else [1, 2, 4, 8]
        self.rebnconvin = ConvNormReLU(inputs, outputs)
        for level, dilation in enumerate(dilations, start=1):
            block = ConvNormReLU(outputs if level == 1 else middle, middle, dilation)
            self.add_module(f"rebnconv{level}", block)
        for level in range(self.depth - 1, 0, -1):
            block = ConvNormReLU(2 * middle, outputs if level == 1 else middle, dilations[level - 1])
            self.add_module(f"rebnconv{level}d", block)
        self.pool = halve()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        inner = self.rebnconvin(x)
        levels: list[Tensor] = []
        x = inner
        for level in range(1, self.depth + 1):
            if self.pooled and 1 < level < self.depth:
                x = self.pool(x)
            x = self.get_submodule(f"rebnconv{level}")(x)
            levels.append(x)
        for level in range(self.depth - 1, 0, -1):
            skip = levels[level - 1]
            if x.shape[2:] != skip.shape[2:]:
                x = resize_like(x, skip)
            x = self.get_submodule(f"rebnconv{level}d")(torch.cat((x, skip), dim=1))
        return x + inner


class ISNet(nn.Module):
    """The whole network. `forward` gives the six side outputs after the sigmoid, finest first."""

    def __init__(self, config: ISNetConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.stem, 3, stride=2, padding=1)
        inputs = config.stem
        for stage, depth in enumerate(ENCODER_DEPTHS, start=1):
            out = config.out[stage - 1]
            self.add_module(f"stage{stage}", RSU(depth, inputs, config.middle[stage - 1], out))
            inputs = out
        sides: list[int] = []
        for place, depth in enumerate(DECODER_DEPTHS):
            stage = 5 - place
            out = config.decoder_out[place]
            block = RSU(depth, inputs + config.out[stage - 1], config.decoder_middle[place], out)
            self.add_module(f"stage{stage}d", block)
            inputs = out
            sides.insert(0, out)
        for side, channels in enumerate((*sides, config.out[5]), start=1):
            self.add_module(f"side{side}", nn.Conv2d(channels, 1, 3, padding=1))
        self.pool = halve()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised f32 (B, 3, H, W) -> six masks (B, 1, H, W) in 0..1, the answer first."""
        levels: list[Tensor] = []
        hidden = self.conv_in(x)
        for stage in range(1, 7):
            hidden = self.get_submodule(f"stage{stage}")(self.pool(hidden) if levels else hidden)
            levels.append(hidden)
        features = [hidden]
        for stage in range(5, 0, -1):
            skip = levels[stage - 1]
            both = torch.cat((resize_like(hidden, skip), skip), dim=1)
            hidden = self.get_submodule(f"stage{stage}d")(both)
            features.insert(0, hidden)
        sides = (self.get_submodule(f"side{n}")(feature) for n, feature in enumerate(features, start=1))
        return [torch.sigmoid(resize_like(side, x)) for side in sides]


@register(
    name="isnet",
    role="background_remover",
    title="IS-Net (DIS), general use",
    source="https://github.com/xuebinqin/DIS (isnet-general-use.pth)",
    code_licence="Apache-2.0",
    weights_licence="not stated; trained on DIS5K, whose terms are for non-commercial research",
    arch="isnet",
    options=("arch", "size"),
    parameters=44_046_790,
    input_size=1024,
    non_commercial=True,
)
def load(checkpoint: Path, options: Options) -> Loaded:
    """Official state dict -> graph. Preprocessing as in the official `Inference.py`."""
    config = architecture(options.arch or "isnet", ARCHITECTURES, ISNetConfig)
    network = ISNet(config)
    checkpoints.fill(network, checkpoints.read(checkpoint).tensors(), checkpoint, "IS-Net")
    size = options.size or config.size
    mean, std = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)
    return Loaded(
        graph=Remover(network, mean, std),
        sizes={"S": size, "V": min(size, VIEW)},
        preprocessing=Preprocessing(
            "scene", size, "stretch", "bilinear", antialias=False, mean=mean, std=std
        ),
    )
