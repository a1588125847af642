"""InSPyReNet, the background remover of Kim et al. 2022 (arXiv:2209.09475), as `transparent-background` runs
it: one pass over the picture at one size.

A backbone's five feature maps are brought to one width; a decoder finds a coarse mask, an eighth of the
scene's side, and three attention modules each add the detail that the next resolution needs: a Laplacian
pyramid of the mask. The modules carry the official names: `state_dict()` is the official layout.

The scene is square and as large as the network was trained for, so that what the official code resizes to
its `base_size` has that size already.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tercet.errors import ExportError
from tercet_export import checkpoints
from tercet_export.networks.background_remover import VIEW, Remover
from tercet_export.networks.res2net import Res2Net
from tercet_export.networks.swin import Swin
from tercet_export.registry import Loaded, Options, Preprocessing, architecture, register

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The coarsest feature map has one value for as many pixels a side.
STRIDE = 32


@dataclass(frozen=True)
class InSPyReNetConfig:
    """`backbone` is "swin" or "res2net"; `width` its first stage's channels, `depths` its stages' blocks.

    `heads` and `window` are Swin's alone; `depth` is the decoder's width, `size` the scene's side in pixels.
    """

    backbone: str = "swin"
    width: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 12
    depth: int = 64
    size: int = 1024


ARCHITECTURES = {
    "swinb": InSPyReNetConfig(),
    "res2net50": InSPyReNetConfig("res2net", width=64, depths=(3, 4, 6, 3), heads=(), window=0, size=384),
}


def resize(x: Tensor, side: int, align_corners: bool = False) -> Tensor:
    """Bilinear to (B, C, side, side)."""
    if x.shape[-1] == side:
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=align_corners)


class ConvNorm(nn.Module):
    """Convolution that keeps the resolution, batch norm: `Conv2d` in the official `layers.py`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        dilation: int = 1,
        norm: bool = True,
        relu: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding="same", dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor, factor: int = 1) -> Tensor:
        """(B, inputs, H, W), of which the true values are `factor` times as large -> (B, outputs, H, W)."""
        if factor != 1:
            return self.relu(self.bn(F.conv2d(x, self.conv.weight * factor)))
        return self.relu(self.bn(self.conv(x)))


class ColumnAttention(nn.Module):
    """Attention among the columns of a square map: `SelfAttention` in the official `layers.py`.

    The official code means to attend among rows here and columns there, but views memory as (-1, side) for
    both: on a square map that is one and the same, and what the checkpoints were trained with.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv = ConvNorm(channels, channels // 8, 1)
        self.key_conv = ConvNorm(channels, channels // 8, 1)
        self.value_conv = ConvNorm(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, s, s) -> the same."""
        query = self.query_conv(x).flatten(1, 2)  # (B, C / 8 * s, s)
        key = self.key_conv(x).flatten(1, 2)
        value = self.value_conv(x).flatten(1, 2)  # (B, C * s, s)
        weights = (query.transpose(1, 2) @ key).softmax(dim=-1)  # (B, s, s)
        seen = value @ weights.transpose(1, 2)
        return self.gamma * seen.unflatten(1, x.shape[1:3]) + x


class AxialBranch(nn.Module):
    """Convolutions of `reach` pixels along each axis, attention along both: `PAA_kernel` officially."""

    def __init__(self, inputs: int, outputs: int, reach: int) -> None:
        super().__init__()
        self.conv0 = ConvNorm(inputs, outputs, 1)
        self.conv1 = ConvNorm(outputs, outputs, (1, reach))
        self.conv2 = ConvNorm(outputs, outputs, (reach, 1))
        self.conv3 = ConvNorm(outputs, outputs, 3, dilation=reach)
        self.Hattn = ColumnAttention(outputs)
        self.Wattn = ColumnAttention(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, s, s) -> (B, outputs, s, s)."""
        x = self.conv2(self.conv1(self.conv0(x)))
        return self.conv3(self.Hattn(x) + self.Wattn(x))


class AxialEncoder(nn.Module):
    """A feature map seen at four reaches, brought to the decoder's width: `PAA_e` officially."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branch0 = ConvNorm(inputs, outputs, 1)
        self.branch1 = AxialBranch(inputs, outputs, 3)
        self.branch2 = AxialBranch(inputs, outputs, 5)
        self.branch3 = AxialBranch(inputs, outputs, 7)
        self.conv_cat = ConvNorm(4 * outputs, outputs, 3)
        self.conv_res = ConvNorm(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, s, s) -> (B, outputs, s, s)."""
        branches = (self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x))
        return F.relu(self.conv_cat(torch.cat(branches, dim=1)) + self.conv_res(x))


class AxialDecoder(nn.Module):
    """The three coarsest maps to features and a first mask: `PAA_d` officially."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3 * width, width, 3)
        self.conv2 = ConvNorm(width, width, 3)
        self.conv3 = ConvNorm(width, width, 3)
        self.conv4 = ConvNorm(width, width, 3)
        self.conv5 = ConvNorm(width, 1, 3, norm=False)
        self.Hattn = ColumnAttention(width)
        self.Wattn = ColumnAttention(width)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of S / 8, S / 16, S / 32 -> features (B, width, S / 8, S / 8), logits (B, 1, S / 8, S / 8)."""
        side = fine.shape[-1]
        maps = (resize(coarse, side, align_corners=True), resize(middle, side, align_corners=True), fine)
        x = self.conv1(torch.cat(maps, dim=1))
        x = self.conv2(self.Hattn(x) + self.Wattn(x))
        x = self.conv4(self.conv3(x))
        return x, self.conv5(x)


class ContextAttention(nn.Module):
    """Pixels attend to the mean looks of a few regions of the mask so far: `SICA` officially.

    The regions are what surely is foreground, background, or unclear; after the first module (`detailed`)
    also where the detail added last is positive or negative. Gives new features and the next detail.
    """

    def __init__(self, inputs: int, width: int, detailed: bool) -> None:
        super().__init__()
        self.scale = width**-0.5
        self.conv_query = _two(inputs, width, 3)
        self.conv_key = _two(inputs, width, 1)
        self.conv_value = _two(inputs, width, 1)
        self.conv_out1 = ConvNorm(width, width, 3, relu=True)
        self.conv_out2 = ConvNorm(inputs + width, width, 3, relu=True)
        self.conv_out3 = ConvNorm(width, width, 3, relu=True)
        self.conv_out4 = ConvNorm(width, 1, 1)
        self.threshold = nn.Parameter(torch.tensor([0.5]))
        self.lthreshold = nn.Parameter(torch.tensor([0.5])) if detailed else None

    def forward(self, x: Tensor, mask: Tensor, detail: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The maps so far to the next features (B, width, s, s) and detail (B, 1, s, s).

        `x` is (B, inputs, s, s); `mask` and the last `detail`, before the sigmoid, are (B, 1, any, any).
        """
        batch, channels, side, _ = x.shape
        over = torch.sigmoid(resize(mask, side)) - self.threshold
        regions = [over.clip(0, 1), (-over).clip(0, 1), self.threshold - over.abs()]
        if self.lthreshold is not None:
            assert detail is not None
            over = torch.sigmoid(resize(detail, side)) - self.lthreshold
            regions += [over.clip(0, 1), (-over).clip(0, 1)]
        shares = torch.cat(regions, dim=1).flatten(2)  # (B, R, s * s)
        # Memory is viewed as (s * s, channels), not transposed to it: what the checkpoints were trained with.
        # These are sums, too large for fp16: their factor `side` goes to the weights that take them in.
        looks = (shares / side) @ x.reshape(batch, side * side, channels)  # (B, R, channels)
        looks = looks.transpose(1, 2).unsqueeze(3)  # (B, channels, R, 1)
        query = self.conv_query(x).flatten(2)  # (B, width, s * s)
        key = self.conv_key[1](self.conv_key[0](looks, side)).flatten(2)  # (B, width, R)
        value = self.conv_value[1](self.conv_value[0](looks, side)).flatten(2)
        weights = (self.scale * (key.transpose(1, 2) @ query)).softmax(dim=1)  # (B, R, s * s)
        context = self.conv_out1((value @ weights).unflatten(2, (side, side)))  # (B, width, s, s)
        features = self.conv_out3(self.conv_out2(torch.cat((x, context), dim=1)))
        return features, self.conv_out4(features)


def _two(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm(inputs, outputs, kernel, relu=True), ConvNorm(outputs, outputs, kernel, relu=True)
    )


class Expand(nn.Module):
    """One step up the pyramid: `ImagePyramid.expand` officially, OpenCV's `pyrUp` with a kernel of 7."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        bell = torch.exp(-0.5 * torch.arange(-3, 4, dtype=torch.float64) ** 2)
        bell = bell / bell.sum()
        kernel = (4 * torch.outer(bell, bell)).float()[None, None]  # (1, 1, 7, 7); 3 of 4 pixels are zero
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, s, s) -> (B, 1, 2 s, 2 s)."""
        apart = F.pixel_shuffle(F.pad(x, (0, 0, 0, 0, 0, 3)), 2)  # each pixel above and left of three zeros
        return F.conv2d(F.pad(apart, (3, 3, 3, 3), mode="reflect"), self.kernel)


class InSPyReNet(nn.Module):
    """The whole network, for scenes of `config.size` pixels a side."""

    def __init__(self, config: InSPyReNetConfig) -> None:
        super().__init__()
        width = config.depth
        self.backbone = _backbone(config)
        for place, channels in enumerate(self.backbone.channels, start=1):
            self.add_module(f"context{place}", AxialEncoder(channels, width))
        self.decoder = AxialDecoder(width)
        self.attention2 = ContextAttention(2 * width, width, detailed=False)
        self.attention1 = ContextAttention(2 * width, width, detailed=True)
        self.attention0 = ContextAttention(width, width, detailed=True)
        self.expand = Expand()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised f32 (B, 3, S, S) -> the one mask (B, 1, S, S), each picture's own stretched to 0..1.

        The official code stretches over the whole batch, which it uses with one picture only.
        """
        size = x.shape[-1]
        maps = [
            self.get_submodule(f"context{place}")(features)
            for place, features in enumerate(self.backbone(x), start=1)
        ]
        features, mask = self.decoder(*maps[2:])  # S / 8
        both = torch.cat((maps[1], resize(features, size // 4)), dim=1)
        features, detail = self.attention2(both, mask)
        mask = self.expand(mask) + detail  # S / 4
        both = torch.cat((resize(maps[0], size // 2), resize(features, size // 2)), dim=1)
        features, finer = self.attention1(both, mask, detail)
        mask = self.expand(mask) + finer  # S / 2
        _, finest = self.attention0(resize(features, size), mask, finer)
        mask = torch.sigmoid(self.expand(mask) + finest)
        low = mask.amin(dim=(1, 2, 3), keepdim=True)
        high = mask.amax(dim=(1, 2, 3), keepdim=True)
        return [(mask - low) / (high - low + 1e-8)]


def _backbone(config: InSPyReNetConfig) -> Swin | Res2Net:
    if config.backbone == "swin":
        return Swin(config.width, config.depths, config.heads, config.window, config.size)
    if config.backbone == "res2net":
        return Res2Net(config.width, config.depths)
    raise ExportError(f"InSPyReNet has no backbone {config.backbone!r}: choose swin or res2net")


@register(
    name="inspyrenet",
    role="background_remover",
    title="InSPyReNet (transparent-background)",
    source="https://github.com/plemeri/transparent-background (ckpt_base.pth; ckpt_fast.pth with --size 384)",
    code_licence="MIT",
    weights_licence="MIT; some of the training data (DIS5K and others) is for non-commercial research",
    arch="swinb",
    options=("arch", "size"),
    parameters=90_721_443,
    input_size=1024,
    non_commercial=True,
)
def load(checkpoint: Path, options: Options) -> Loaded:
    """Official state dict -> graph. Preprocessing as in the official `Remover` with `resize="static"`."""
    config = architecture(options.arch or "swinb", ARCHITECTURES, InSPyReNetConfig)
    size = options.size or config.size
    if size % STRIDE:
        raise ExportError(f"InSPyReNet takes scenes whose side is a multiple of {STRIDE}, not {size}")
    network = InSPyReNet(replace(config, size=size))
    checkpoints.fill(network, checkpoints.read(checkpoint).tensors(), checkpoint, "InSPyReNet")
    return Loaded(
        graph=Remover(network, IMAGENET_MEAN, IMAGENET_STD),
        sizes={"S": size, "V": min(size, VIEW)},
        preprocessing=Preprocessing(
            "scene",
            size,
            "stretch",
            "bilinear",
            antialias=True,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
    )
