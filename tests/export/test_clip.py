"""CLIP: parity with open_clip, the pseudo-token, architectures, containers and the right activation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tercet.errors import CheckpointError, ExportError
from tercet_export.export import export_network
from tercet_export.networks.clip import Architecture, TextTower, build
from tercet_export.registry import Options, network
from tests.export import parity
from tests.tiny import CLIP, randomise

ARCH = "ViT-B-32-quickgelu"
NAMES = ("token_ids", "pseudo_token", "pseudo_index")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "ViT-B-32.pt"
    torch.save(parity.state_dict("clip_b32", parity.clip), path)
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, torch.Tensor]:
    (tmp_path / "tiny.json").write_text(json.dumps(CLIP))
    return randomise(build(Architecture("tiny", CLIP, {})), 5)


def official_pixels(image: np.ndarray) -> np.ndarray:
    """The picture and its mirror, resized and cropped as open_clip does."""
    resize = v2.Compose([v2.Resize(224, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    return np.stack([np.asarray(resize(Image.fromarray(array))) for array in (image, image[:, ::-1])])


def text_inputs(ids: np.ndarray, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = len(ids)
    return torch.from_numpy(ids.astype(np.int32)), torch.zeros(rows, width), torch.full((rows, 1), -1).int()


def test_image_tower_equals_open_clip(official: Path) -> None:
    wanted = parity.expected("clip_b32")
    graph = network("clip-image").load(official, Options(arch=ARCH)).graph
    with torch.inference_mode():
        embedding, features = graph(torch.from_numpy(official_pixels(wanted["image"])))
    np.testing.assert_allclose(embedding, wanted["image_norm"], atol=1e-5)
    np.testing.assert_allclose(features, wanted["output"], atol=1e-4)


def test_text_tower_equals_open_clip(official: Path) -> None:
    wanted = parity.expected("clip_b32")
    graph = network("clip-text").load(official, Options(arch=ARCH)).graph
    with torch.inference_mode():
        (embedding,) = graph(*text_inputs(wanted["ids"], 512))
    np.testing.assert_allclose(embedding, wanted["text_norm"], atol=1e-5)


@pytest.mark.slow
def test_exported_graphs_equal_open_clip(official: Path, tmp_path: Path) -> None:
    wanted = parity.expected("clip_b32")
    image = export_network(network("clip-image"), official, tmp_path / "image.onnx", Options(arch=ARCH))
    text = export_network(network("clip-text"), official, tmp_path / "text.onnx", Options(arch=ARCH))
    embedding, _ = onnxruntime.InferenceSession(image.path).run(
        None, {"pixels": official_pixels(wanted["image"])}
    )
    np.testing.assert_allclose(embedding, wanted["image_norm"], atol=1e-5)
    ids, pseudo_token, pseudo_index = (tensor.numpy() for tensor in text_inputs(wanted["ids"], 512))
    (embedding,) = onnxruntime.InferenceSession(text.path).run(
        None, {"token_ids": ids, "pseudo_token": pseudo_token, "pseudo_index": pseudo_index}
    )
    np.testing.assert_allclose(embedding, wanted["text_norm"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_pseudo_words_equal_pic2word(tmp_path: Path) -> None:
    """Pic2Word's whole checkpoint: CLIP ViT-L/14 and the mapping network, both behind `module.`."""
    wanted = parity.expected("pic2word")
    checkpoint = tmp_path / "pic2word.pt"
    torch.save(parity.pic2word(), checkpoint)
    mapper = network("pic2word").load(checkpoint).graph
    with torch.inference_mode():
        (words,) = mapper(torch.from_numpy(wanted["input"]))
    np.testing.assert_allclose(words, wanted["output"], atol=1e-5)
    tower = network("clip-text").load(checkpoint, Options(arch="ViT-L-14-quickgelu")).graph
    ids = wanted["text"].astype(np.int32)
    index = (ids == 265).argmax(axis=1)[:, None].astype(np.int32)
    with torch.inference_mode():
        (embedding,) = tower(torch.from_numpy(ids), words, torch.from_numpy(index))
    np.testing.assert_allclose(embedding, wanted["composed_norm"], atol=1e-5)


def test_pseudo_token_stands_where_the_index_says(tiny: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Feeding a word's own embedding at a place is the same as writing that word there."""
    torch.save(tiny, tmp_path / "tiny.pt")
    loaded = network("clip-text").load(tmp_path / "tiny.pt", Options(arch=str(tmp_path / "tiny.json")))
    end = loaded.details["tokenizer"]["end"]
    ids = torch.zeros(3, 77, dtype=torch.int32)
    ids[:, :5] = torch.tensor([end - 1, 7, 11, 13, end])
    written = ids.clone()
    written[0, 1] = written[2, 3] = 400
    word = tiny["token_embedding.weight"][400].repeat(3, 1)
    with torch.inference_mode():
        (expected,) = loaded.graph(written, torch.zeros(3, 32), torch.full((3, 1), -1).int())
        (given,) = loaded.graph(ids, word, torch.tensor([[1], [-1], [3]], dtype=torch.int32))
    torch.testing.assert_close(given, expected)
    assert not torch.allclose(given[0], given[1])


def test_text_is_pooled_where_the_architecture_says(tiny: dict[str, torch.Tensor]) -> None:
    """By the highest id, or by the end token's: they differ where another id is higher."""
    clip = build(Architecture("tiny", CLIP, {}))
    clip.load_state_dict(tiny)
    ids = torch.zeros(1, 77, dtype=torch.int32)
    ids[0, :4] = torch.tensor([900, 5, 800, 910])
    nothing = (torch.zeros(1, 32), torch.tensor([[-1]], dtype=torch.int32))
    pooled = {}
    with torch.inference_mode():
        for pool, end in (("argmax", 0), ("eos", 800)):
            clip.text_pool_type, clip.text_eos_id = pool, end
            (pooled[pool],) = TextTower(clip, pool, end)(ids, *nothing)
            torch.testing.assert_close(pooled[pool], clip.encode_text(ids, normalize=True))
    assert not torch.allclose(pooled["argmax"], pooled["eos"])


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_what_follows_the_texts_is_not_computed_and_not_missed(
    format: str, tiny: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """A batch is cut where its longest text ends: every length, alone and beside others, as in open_clip."""
    torch.save(tiny, tmp_path / "tiny.pt")
    options = Options(arch=str(tmp_path / "tiny.json"), format=format)
    path = export_network(network("clip-text"), tmp_path / "tiny.pt", tmp_path / "text", options).path
    clip = build(Architecture("tiny", CLIP, {}))
    clip.load_state_dict(tiny)
    rng = np.random.default_rng(0)
    ids = np.zeros((76, 77), np.int32)
    for row in range(76):  # the end token at every place but the first
        ids[row, : row + 1] = rng.integers(1, 900, row + 1)
        ids[row, row + 1] = 913
    with torch.inference_mode():
        expected = clip.eval().encode_text(torch.from_numpy(ids), normalize=True).numpy()
    run: Callable[..., Any]
    if format == "onnx":
        session = onnxruntime.InferenceSession(path)
        run = lambda *given: session.run(None, dict(zip(NAMES, given, strict=True)))  # noqa: E731
    else:
        module = torch.jit.load(path)
        run = lambda *given: [module(*map(torch.from_numpy, given))[0].detach().numpy()]  # noqa: E731
    for rows in (*([row] for row in range(76)), [0, 75], [3, 1, 2], list(range(0, 76, 5))):
        nothing = np.zeros((len(rows), 32), np.float32), np.full((len(rows), 1), -1, np.int32)
        (embedding,) = run(ids[rows], *nothing)
        np.testing.assert_allclose(embedding, expected[rows], atol=1e-5)


VARIANTS: dict[str, dict[str, Any]] = {
    "resnet": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}},
    "gelu": {"quick_gelu": False},
    "custom text tower": {"custom_text": True},
    "larger patches": {"vision_cfg": {**CLIP["vision_cfg"], "patch_size": 32}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_architecture_equals_open_clip(variant: str, tmp_path: Path) -> None:
    config = {**CLIP, **VARIANTS[variant]}
    (tmp_path / "arch.json").write_text(json.dumps(config))
    theirs = build(Architecture("arch", config, {})).eval()
    torch.save({"epoch": 3, "name": "run", "state_dict": randomise(theirs, 9)}, tmp_path / "epoch_3.pt")
    options = Options(arch=str(tmp_path / "arch.json"))
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    ids = torch.zeros(2, 77, dtype=torch.int32)
    ids[:, :3] = torch.tensor([912, 5, 913])
    normalise = v2.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    with torch.inference_mode():
        embedding, features = network("clip-image").load(tmp_path / "epoch_3.pt", options).graph(pixels)
        expected = theirs.encode_image(normalise(pixels.permute(0, 3, 1, 2) / 255))
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(2))
        text = network("clip-text").load(tmp_path / "epoch_3.pt", options).graph
        (embedding,) = text(ids, torch.zeros(2, 32), torch.full((2, 1), -1).int())
        torch.testing.assert_close(embedding, theirs.encode_text(ids, normalize=True), atol=1e-5, rtol=1e-4)


def test_hub_configuration_beside_the_weights_is_used(tiny: dict[str, torch.Tensor], tmp_path: Path) -> None:
    hub = {
        "model_cfg": CLIP,
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "interpolation": "bilinear",
            "resize_mode": "squash",
        },
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(hub))
    torch.save(tiny, tmp_path / "open_clip_pytorch_model.bin")
    preprocessing = network("clip-image").load(tmp_path / "open_clip_pytorch_model.bin").preprocessing
    assert preprocessing is not None
    assert (preprocessing.mean, preprocessing.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert (preprocessing.resize, preprocessing.kernel) == ("stretch", "bilinear")


def test_architecture_must_be_known(tiny: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(tiny, tmp_path / "tiny.pt")
    with pytest.raises(ExportError, match="--arch"):
        network("clip-image").load(tmp_path / "tiny.pt")
    with pytest.raises(ExportError, match="such as ViT-B-32,"):
        network("clip-image").load(tmp_path / "tiny.pt", Options(arch="ViT-B-31"))
    (tmp_path / "bad.json").write_text('{"embed_dim": 3}')
    with pytest.raises(ExportError, match="vision_cfg"):
        network("clip-image").load(tmp_path / "tiny.pt", Options(arch=str(tmp_path / "bad.json")))


def test_openai_weights_need_quickgelu(official: Path, tmp_path: Path) -> None:
    notes = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    weights = torch.load(official, weights_only=True, mmap=True)
    torch.save(weights | {name: torch.tensor(value) for name, value in notes.items()}, tmp_path / "openai.pt")
    with pytest.raises(CheckpointError, match="use --arch ViT-B-32-quickgelu"):
        network("clip-text").load(tmp_path / "openai.pt", Options(arch="ViT-B-32"))
    assert network("clip-text").load(tmp_path / "openai.pt", Options(arch=ARCH)).sizes["W"] == 512


@pytest.mark.parametrize("trained_with", [True, False])
def test_activation_of_the_hub_configuration_counts(
    trained_with: bool, tiny: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(tiny, tmp_path / "weights.bin")
    trained = {**CLIP, "quick_gelu": trained_with}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": trained}))
    (tmp_path / "other.json").write_text(json.dumps({**CLIP, "quick_gelu": not trained_with}))
    with pytest.raises(CheckpointError, match=f'"quick_gelu": {str(trained_with).lower()}'):
        network("clip-text").load(tmp_path / "weights.bin", Options(arch=str(tmp_path / "other.json")))
