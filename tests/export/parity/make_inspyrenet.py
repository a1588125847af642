"""Makes inspyrenet.npz: what the official InSPyReNet computes with weights that follow from names and shapes.

    python -m tests.export.parity.make_inspyrenet REPOSITORY

Needs transparent-background==1.3.4, kornia==0.8.1, kornia_rs, opencv-python-headless, easydict and pyyaml,
installed without their own dependencies outside the project's environment and named in PYTHONPATH; REPOSITORY
is a clone of https://github.com/plemeri/InSPyReNet (692ad8a), for Res2Net alone. At 1024 it takes about a
minute and 4 GB.

For each network `swinb_384`, `swinb_1024`, `res2net50_384`, and the tiny `swin_96` and `res2net_96`:
`NAME/mask` [2, S / step, S / step], the official masks of both pictures at every `step`-th pixel, from the
file through the official preprocessing; `NAME/crop` [2, 64, 64] from the middle, every pixel (whole for the
tiny); `NAME/statistics` [2, 2]: mean and deviation. `NAME/final` is the first picture's mask after official
post-processing, u8, every fourth pixel. `file_0` and `file_1` are the pictures, PNG.
"""

import importlib.util
import io
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from tercet_export.networks.inspyrenet import ARCHITECTURES, InSPyReNetConfig
from tests.export import parity
from tests.tiny_inspyrenet import RES2NET, SWIN

CROP = 64
CONFIGS = {
    "swin_96": SWIN,
    "res2net_96": RES2NET,
    "swinb_384": replace(ARCHITECTURES["swinb"], size=384),
    "res2net50_384": ARCHITECTURES["res2net50"],
    "swinb_1024": ARCHITECTURES["swinb"],
}


def import_official(repository: Path) -> types.SimpleNamespace:
    """The official modules, without what the package imports beside the network."""
    found = importlib.util.find_spec("transparent_background")
    assert found is not None
    assert found.submodule_search_locations is not None
    package = types.ModuleType("transparent_background")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["transparent_background"] = package
    for name in ("albumentations", "albumentations.core", "albumentations.core.transforms_interface"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["albumentations.core.transforms_interface"].ImageOnlyTransform = object  # type: ignore[attr-defined]
    from transparent_background import utils
    from transparent_background.backbones.SwinTransformer import SwinTransformer
    from transparent_background.InSPyReNet import InSPyReNet

    file = repository / "lib" / "backbones" / "Res2Net_v1b.py"
    spec = importlib.util.spec_from_file_location("res2net", file)
    assert spec is not None
    assert spec.loader is not None
    res2net = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(res2net)
    return types.SimpleNamespace(
        utils=utils, SwinTransformer=SwinTransformer, InSPyReNet=InSPyReNet, res2net=res2net
    )


def build(official: types.SimpleNamespace, config: InSPyReNetConfig) -> torch.nn.Module:
    """The official network of an architecture, one pass as `Remover` has it, with weights by the rule."""
    if config.backbone == "swin":
        backbone = official.SwinTransformer(
            embed_dim=config.width, depths=config.depths, num_heads=config.heads, window_size=config.window
        )
        channels = [config.width, *(config.width * 2**stage for stage in range(4))]
    else:
        module = official.res2net
        planes = config.width
        assert planes == 64  # the official stem is not adjustable
        backbone = module.Res2Net(module.Bottle2neck, config.depths, baseWidth=26, scale=4)
        channels = [planes, *(4 * planes * 2**stage for stage in range(4))]
    network = official.InSPyReNet(
        backbone, channels, config.depth, [config.size, config.size], threshold=None
    )
    network.eval()
    weights = {
        name: parity.inspyrenet(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()
    }
    for name, tensor in network.state_dict().items():
        if name.endswith("relative_position_index"):
            assert torch.equal(weights[name], tensor)
    network.load_state_dict(weights, strict=True)
    return network


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Shapes with hard edges before a slope."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, 256, (2, 3))
    slope = np.linspace(0, 1, width)[None, :, None]
    rows = (ends[0] * (1 - slope) + ends[1] * slope).astype(np.uint8)
    image = Image.fromarray(np.repeat(rows, height, axis=0))
    draw = ImageDraw.Draw(image)
    for number in range(12):
        left, top = int(rng.integers(0, width * 3 // 4)), int(rng.integers(0, height * 3 // 4))
        box = (left, top, left + int(rng.integers(20, width // 3)), top + int(rng.integers(20, height // 3)))
        colour = tuple(rng.integers(0, 256, 3).tolist())
        (draw.ellipse if number % 2 else draw.rectangle)(box, fill=colour)
    return image


def main(repository: Path) -> None:
    """Compute and store everything."""
    official = import_official(repository)
    pictures = [picture(1, 640, 427), picture(2, 333, 500)]
    arrays: dict[str, np.ndarray] = {}
    for number, image in enumerate(pictures):
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        arrays[f"file_{number}"] = np.frombuffer(file.getvalue(), np.uint8)
    for name, config in CONFIGS.items():
        size = config.size
        network = build(official, config)
        steps = (
            official.utils.static_resize([size, size]),
            official.utils.tonumpy(),
            official.utils.normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            official.utils.totensor(),
        )
        masks = []
        for image in pictures:
            x = image
            for step in steps:
                x = step(x)
            with torch.inference_mode():
                masks.append(network(x[None]))
        mask = torch.cat(masks)[:, 0]
        low = (size - CROP) // 2 if size > 96 else 0
        high = low + CROP if size > 96 else size
        arrays[f"{name}/mask"] = mask[:, :: size // 48, :: size // 48].numpy()
        arrays[f"{name}/crop"] = mask[:, low:high, low:high].numpy()
        arrays[f"{name}/statistics"] = torch.stack((mask.mean((1, 2)), mask.std((1, 2))), dim=1).numpy()
        width, height = pictures[0].size
        final = F.interpolate(masks[0], (height, width), mode="bilinear", align_corners=True)[0, 0]
        arrays[f"{name}/final"] = (final.numpy() * 255).astype(np.uint8)[::4, ::4]
        print(name, arrays[f"{name}/statistics"].tolist(), flush=True)
    np.savez_compressed(parity.FOLDER / "inspyrenet.npz", **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
