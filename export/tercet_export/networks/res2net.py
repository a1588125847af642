"""Res2Net v1b, a backbone of InSPyReNet: a ResNet whose blocks split their channels into four parts, each
convolved on top of the one before (Gao et al. 2019, arXiv:1904.01169).

The modules carry the names of `lib/backbones/Res2Net_v1b.py` in plemeri/InSPyReNet, which dilates the last
two of four stages.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PARTS = 4
EXPANSION = 4
STRIDES = (1, 2, 2, 2)
DILATIONS = (1, 1, 2, 4)


class Bottle2neck(nn.Module):
    """1x1 convolution, three 3x3 convolutions of a quarter of the channels each, 1x1 convolution, residual.

    The first block of a stage (`leads`) changes the resolution and keeps the parts apart.
    """

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, leads: bool) -> None:
        super().__init__()
        self.leads = leads
        self.part = planes * 26 // 64  # "26w": 26 channels a part where a ResNet's block has 64
        outputs = planes * EXPANSION
        self.conv1 = nn.Conv2d(inputs, PARTS * self.part, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(PARTS * self.part)
        self.convs = nn.ModuleList(
            nn.Conv2d(self.part, self.part, 3, stride, padding=dilation, dilation=dilation, bias=False)
            for _ in range(PARTS - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(self.part) for _ in range(PARTS - 1))
        self.pool = nn.AvgPool2d(3, stride, padding=1) if leads else nn.Identity()
        self.conv3 = nn.Conv2d(PARTS * self.part, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if leads:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 4 * planes, H / stride, W / stride)."""
        parts = F.relu(self.bn1(self.conv1(x))).split(self.part, dim=1)
        done: list[Tensor] = []
        for part, conv, norm in zip(parts[:-1], self.convs, self.bns, strict=True):
            taken = part if self.leads or not done else done[-1] + part
            done.append(F.relu(norm(conv(taken))))
        out = self.bn3(self.conv3(torch.cat((*done, self.pool(parts[-1])), dim=1)))
        return F.relu(out + self.downsample(x))


class Res2Net(nn.Module):
    """The backbone: four stages, the first of `width` planes. `channels` are those of the five maps given."""

    def __init__(self, width: int, depths: Sequence[int]) -> None:
        super().__init__()
        stem = width // 2
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            nn.Conv2d(stem, stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            nn.Conv2d(stem, width, 3, padding=1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = width
        outputs: list[int] = []
        for stage, (depth, stride, dilation) in enumerate(zip(depths, STRIDES, DILATIONS, strict=True)):
            planes = width * 2**stage
            blocks: list[nn.Module] = []
            for number in range(depth):
                wider = dilation * 2**number if stage == len(STRIDES) - 1 else dilation
                blocks.append(Bottle2neck(inputs, planes, 1 if number else stride, wider, leads=number == 0))
                inputs = planes * EXPANSION
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            outputs.append(inputs)
        self.channels = (width, *outputs)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, S, S) -> the stem, S / 4, and each stage's result, S / 4 to S / 32: (B, channels, s, s)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        maps = [x]
        for stage in range(1, len(STRIDES) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
            maps.append(x)
        return maps
