"""InSPyReNet at a size that runs in a moment, with either backbone."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import safetensors.torch
import torch

from tercet_export.networks.inspyrenet import InSPyReNet, InSPyReNetConfig
from tests.export import parity

# Of the sides 24, 12, 6 and 3, windows of 4 divide the first two alone; stages one and three shift.
SWIN = InSPyReNetConfig(
    "swin", width=16, depths=(2, 1, 2, 1), heads=(1, 2, 2, 4), window=4, depth=16, size=96
)
RES2NET = replace(
    SWIN, backbone="res2net", width=64, depths=(1, 1, 1, 3), heads=(), window=0
)  # official stem


def inspyrenet_weights(config: InSPyReNetConfig) -> dict[str, torch.Tensor]:
    """Weights that follow from names and shapes, as in the parity tests."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in InSPyReNet(config).state_dict().items()}
    return {name: parity.inspyrenet(name, shape) for name, shape in shapes.items()}


def write_inspyrenet(folder: Path, config: InSPyReNetConfig = SWIN) -> tuple[Path, Path]:
    """Write checkpoint and architecture: `inspyrenet.safetensors` and `inspyrenet.json` in `folder`."""
    checkpoint, arch = folder / "inspyrenet.safetensors", folder / "inspyrenet.json"
    safetensors.torch.save_file(inspyrenet_weights(config), checkpoint)
    arch.write_text(json.dumps(asdict(config)))
    return checkpoint, arch
