"""InSPyReNet against the official implementation's masks, from the encoded picture on."""

import io
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tercet.errors import CheckpointError, ExportError
from tercet_export.export import export_network
from tercet_export.networks.background_remover import sample_view
from tercet_export.networks.inspyrenet import ARCHITECTURES, InSPyReNet
from tercet_export.networks.swin import Windows
from tercet_export.registry import Loaded, Options, manifest_preprocessing, network
from tests.export import parity
from tests.serving.python_models import python_model
from tests.tiny_inspyrenet import RES2NET, SWIN, write_inspyrenet

WHOLE = np.array([[0, 0, 1, 1]], np.float32)
TINY = {"swin_96": SWIN, "res2net_96": RES2NET}
FULL = {
    "swinb_384": ("swinb", Options(size=384)),
    "swinb_1024": ("swinb", Options()),
    "res2net50_384": ("res2net50", Options(arch="res2net50")),
}


def files() -> list[bytes]:
    """The two encoded pictures that the official network was given."""
    wanted = parity.expected("inspyrenet")
    return [wanted[f"file_{number}"].tobytes() for number in range(2)]


def scenes(loaded: Loaded) -> np.ndarray:
    """The pictures as `decode_image` gives them, by what the manifest says: u8 (2, S, S, 3)."""
    assert loaded.preprocessing is not None
    geometry = python_model("decode_image", "geometry")
    entry = {"preprocessing": manifest_preprocessing(loaded.preprocessing)}
    geometries = geometry.read_geometries({"roles": {"background_remover": entry}})
    return geometry.prepare(files(), ["scene"], geometries)["scene"]


def masks(loaded: Loaded, scene: np.ndarray) -> np.ndarray:
    """The torch graph's masks (B, S, S), with a view as large as the scene."""
    with torch.inference_mode():
        rows = torch.from_numpy(scene)
        return loaded.graph(rows, rows, torch.from_numpy(WHOLE).repeat(len(scene), 1))[1].numpy()


def assert_official(name: str, found: np.ndarray, tolerance: float) -> None:
    """Masks (2, S, S) equal the official ones of `name` wherever these are stored.

    Single pixels may differ by `tolerance`, all of them by 1e-5 on average.
    """
    wanted = parity.expected("inspyrenet")
    size, crop = found.shape[-1], wanted[f"{name}/crop"].shape[-1]
    step, low = size // 48, (size - crop) // 2
    middle = found[:, low : low + crop, low : low + crop]
    for part, official in ((found[:, ::step, ::step], "mask"), (middle, "crop")):
        np.testing.assert_allclose(part, wanted[f"{name}/{official}"], atol=tolerance, rtol=0)
        assert np.abs(part - wanted[f"{name}/{official}"]).mean() < 1e-5
    statistics = np.stack((found.mean((1, 2)), found.std((1, 2), ddof=1)), axis=1)
    np.testing.assert_allclose(statistics, wanted[f"{name}/statistics"], atol=1e-5, rtol=0)


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Loaded]:
    checkpoint, arch = write_inspyrenet(tmp_path, TINY[request.param])
    return request.param, network("inspyrenet").load(checkpoint, Options(arch=str(arch)))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_names_and_shapes_are_the_official_ones(arch: str) -> None:
    with torch.device("meta"):
        own = InSPyReNet(ARCHITECTURES[arch]).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    assert shapes == parity.names_and_shapes(f"inspyrenet_{arch}")


def test_equals_the_official_network(tiny: tuple[str, Loaded]) -> None:
    """From the file to the mask. The pictures share a batch, over which the official code would normalise."""
    name, loaded = tiny
    assert_official(name, masks(loaded, scenes(loaded)), 1e-5)


def test_a_row_does_not_depend_on_its_neighbours(tiny: tuple[str, Loaded]) -> None:
    """The dim picture's mask would never reach 1 if its neighbour's maximum were the batch's."""
    _, loaded = tiny
    scene = scenes(loaded)
    dark = np.concatenate((scene, scene[:1] // 16))
    together = masks(loaded, dark)
    alone = np.concatenate([masks(loaded, dark[row : row + 1]) for row in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    np.testing.assert_allclose(together.max((1, 2)), 1, atol=1e-5)
    np.testing.assert_array_equal(together.min((1, 2)), 0)


def test_scene_is_the_official_input(tiny: tuple[str, Loaded]) -> None:
    """Pillow's bilinear resizing, antialiased, to a square: to the bit."""
    scene = scenes(tiny[1])
    for file, pixels in zip(files(), scene, strict=True):
        with Image.open(io.BytesIO(file)) as image:
            resized = image.convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(pixels, np.asarray(resized))


@pytest.mark.parametrize(
    ("side", "window", "shift"), [(24, 4, 2), (6, 4, 2), (3, 4, 2), (12, 12, 6), (6, 4, 0)]
)
def test_windows_hold_each_token_once(side: int, window: int, shift: int) -> None:
    windows = Windows(side, window, shift)
    tokens = torch.cat((torch.arange(side * side), torch.tensor([-1])))
    cut = tokens[windows.places]
    assert torch.equal(cut[windows.back], torch.arange(side * side))
    padded = -(-side // window) * window
    assert len(cut) == padded * padded
    first = cut.view(-1, window * window)[0]
    assert int(first[0]) == (shift * side + shift if shift < side else -1)
    apart = windows.mask()[:, 0] < 0
    assert bool(apart.any()) == (shift > 0)
    assert torch.equal(apart, apart.transpose(1, 2))


def test_sampled_mask_is_the_official_one_at_the_pictures_size(tiny: tuple[str, Loaded]) -> None:
    """The official post-processing aligns corners, which moves a mask by half a scene pixel at the most."""
    mask = torch.from_numpy(masks(tiny[1], scenes(tiny[1])))[:1, None]
    smooth = F.interpolate(F.avg_pool2d(mask, 8), size=mask.shape[2:], mode="bilinear")
    official = F.interpolate(smooth, size=(96, 200), mode="bilinear", align_corners=True)
    view = F.interpolate(official, size=(64, 64), mode="bilinear", antialias=True)
    sampled = sample_view(smooth, torch.from_numpy(WHOLE), torch.zeros(1, 64, 64, 3))
    steepest = max(float(smooth.diff(dim=axis).abs().max()) for axis in (2, 3))
    assert float((sampled - view[:, 0]).abs().max()) < steepest


def test_size_is_a_multiple_of_the_stride(tmp_path: Path) -> None:
    checkpoint, arch = write_inspyrenet(tmp_path)
    loaded = network("inspyrenet").load(checkpoint, Options(arch=str(arch), size=64))
    assert loaded.sizes == {"S": 64, "V": 64}
    with pytest.raises(ExportError, match="multiple of 32, not 100"):
        network("inspyrenet").load(checkpoint, Options(arch=str(arch), size=100))


def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    checkpoint, arch = write_inspyrenet(tmp_path, RES2NET)
    with pytest.raises(CheckpointError, match="Check the network and its --arch"):
        network("inspyrenet").load(checkpoint)
    with pytest.raises(CheckpointError, match="looks like a checkpoint of InSPyReNet, not of IS-Net"):
        network("isnet").load(checkpoint)
    arch.write_text('{"backbone": "vgg"}')
    with pytest.raises(ExportError, match="no backbone 'vgg': choose swin or res2net"):
        network("inspyrenet").load(checkpoint, Options(arch=str(arch)))


@pytest.mark.slow
@pytest.mark.timeout(3600)  # at 1024 minutes, on a busy machine many
@pytest.mark.parametrize("name", FULL)
def test_exported_full_size_network_gives_the_official_masks(name: str, tmp_path: Path) -> None:
    """Both pictures in one batch through ONNX Runtime; the first also after the official post-processing."""
    arch, options = FULL[name]
    checkpoint = tmp_path / "latest.pth"
    torch.save(parity.state_dict(f"inspyrenet_{arch}", parity.inspyrenet), checkpoint)
    exported = export_network(network("inspyrenet"), checkpoint, tmp_path / "model.onnx", options)
    scene = scenes(exported.loaded)
    session = onnxruntime.InferenceSession(exported.path)
    inputs = {"scene": scene, "view": scene, "view_box": WHOLE.repeat(2, axis=0)}
    foreground, found = session.run(None, inputs)
    assert foreground.shape == scene.shape
    assert_official(name, found, 1e-3)  # at 1024 torch in f32 is 2e-4 from torch in f64 at the worst pixel
    wanted = parity.expected("inspyrenet")
    with Image.open(io.BytesIO(files()[0])) as image:
        width, height = image.size
    mask = torch.from_numpy(found[:1, None])
    final = F.interpolate(mask, (height, width), mode="bilinear", align_corners=True)[0, 0].numpy()
    difference = (final * 255).astype(np.uint8)[::4, ::4].astype(int) - wanted[f"{name}/final"]
    assert np.abs(difference).max() <= 1
