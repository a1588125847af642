"""IS-Net against the official implementation's results, and the mask sampled at the view."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tercet_export.export import export_network
from tercet_export.networks.background_remover import Remover, sample_view
from tercet_export.networks.isnet import ISNet, ISNetConfig
from tercet_export.registry import Options, network
from tests.export import parity
from tests.serving.python_models import python_model
from tests.tiny import ISNET, randomise

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("isnet") / "isnet-general-use.pth"
    torch.save(parity.state_dict("isnet", parity.by_shape), path)
    return path


def official_scene(image: np.ndarray) -> np.ndarray:
    """The picture as `decode_image` gives it to this network."""
    geometry = python_model("decode_image", "geometry")
    return np.asarray(geometry.interpolate(Image.fromarray(image), 1024))[None]


def official_mask(mask: torch.Tensor, height: int, width: int) -> np.ndarray:
    """The official post-processing: to the picture's size, then stretched to 0..1."""
    mask = F.interpolate(mask[:, None], size=(height, width), mode="bilinear", align_corners=False)[0]
    return ((mask - mask.min()) / (mask.max() - mask.min())).numpy()


def test_names_and_shapes_are_the_official_ones() -> None:
    with torch.device("meta"):
        own = ISNet(ISNetConfig()).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in own.items()} == parity.names_and_shapes("isnet")


def test_equals_the_official_network(official: Path) -> None:
    wanted = parity.expected("isnet")
    loaded = network("isnet").load(official)
    with torch.inference_mode():
        masks = loaded.graph.network(torch.from_numpy(wanted["input"]))
    np.testing.assert_allclose(masks[0].numpy(), wanted["output"], atol=1e-4)


def test_scene_is_the_official_input() -> None:
    wanted = parity.expected("isnet")
    crop = official_scene(wanted["image"])[0, 500:532, 500:532].transpose(2, 0, 1)
    np.testing.assert_allclose(crop / 255 - 0.5, wanted["pre_crop"], atol=1 / 255 + 1e-6)


@pytest.mark.slow
def test_exported_graph_gives_the_official_mask_of_a_picture(official: Path, tmp_path: Path) -> None:
    wanted = parity.expected("isnet")
    exported = export_network(network("isnet"), official, tmp_path / "model.onnx")
    scene = official_scene(wanted["image"])
    session = onnxruntime.InferenceSession(exported.path)
    foreground, mask = session.run(None, {"scene": scene, "view": scene, "view_box": WHOLE.numpy()})
    with torch.inference_mode():
        network_mask = exported.loaded.graph.network(torch.from_numpy(scene).permute(0, 3, 1, 2) / 255 - 0.5)[
            0
        ]
    np.testing.assert_allclose(mask, network_mask[:, 0].numpy(), atol=1e-4)
    height, width = wanted["image"].shape[:2]
    error = np.abs(official_mask(torch.from_numpy(mask), height, width) - wanted["mask_float"]).mean()
    assert error < 0.01
    assert foreground.shape == scene.shape


@given(st.sampled_from([16, 64, 100, 224]))
def test_sampling_the_whole_scene_at_its_own_size_changes_nothing(size: int) -> None:
    mask = torch.rand(2, 1, size, size)
    view = torch.zeros(2, size, size, 3)
    assert torch.equal(sample_view(mask, WHOLE.repeat(2, 1), view), mask[:, 0])


@given(
    st.integers(8, 80),
    st.tuples(st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.2, 0.5), st.floats(0.2, 0.5)),
)
def test_sampling_follows_the_box(side: int, place: tuple[float, float, float, float]) -> None:
    """A mask that is a ramp across and another down comes out as the ramps at the view's pixels."""
    size = 64
    left, top, width, height = place
    box = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float64)
    ramp = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    mask = (3 * ramp[None, :] + ramp[:, None])[None, None]
    sampled = sample_view(mask, box, torch.zeros(1, side, side, 3))[0]
    steps = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    expected = 3 * (left + width * steps)[None, :] + (top + height * steps)[:, None]
    inside = (expected >= 0) & ((left + width * steps) > 0.1) & ((left + width * steps) < 0.9)[None, :]
    inside &= (((top + height * steps) > 0.1) & ((top + height * steps) < 0.9))[:, None]
    assert torch.allclose(sampled[inside], expected[inside], atol=0.02)


def test_a_coarser_view_averages_as_antialiasing_does() -> None:
    mask = torch.rand(1, 1, 64, 64)
    sampled = sample_view(mask, WHOLE, torch.zeros(1, 16, 16, 3))
    expected = F.interpolate(mask, size=(16, 16), mode="bilinear", antialias=True, align_corners=False)[:, 0]
    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 255), (1.0, 40), (0.5, 148)])
def test_foreground_is_the_view_over_white(alpha: float, expected: int) -> None:
    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [torch.full((len(x), 1, *x.shape[2:]), alpha)]

    remover = Remover(Constant(), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    picture = torch.full((1, 8, 8, 3), 40, dtype=torch.uint8)
    foreground, mask = remover(picture, picture, WHOLE)
    assert foreground.unique().tolist() == [expected]
    assert mask.unique().tolist() == [alpha]


def test_size_is_an_option(tmp_path: Path) -> None:
    torch.save(randomise(ISNet(ISNetConfig()), 0), tmp_path / "isnet.pth")
    loaded = network("isnet").load(tmp_path / "isnet.pth", Options(size=96))
    assert loaded.sizes == {"S": 96, "V": 96}
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.size == 96
    assert not loaded.preprocessing.antialias


def test_gradients_reach_every_parameter() -> None:
    """The demo trains this module: nothing in it may stop learning."""
    net = ISNet(ISNET)
    sum(mask.mean() for mask in net(torch.rand(2, 3, 64, 64))).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
