"""SigLIP and SigLIP 2: parity with open_clip from an encoded picture and from ids, preprocessing, scale."""

import io
import json
from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
import pytest
import safetensors.torch
import torch
from open_clip.model import CustomTextCLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from tercet.errors import CheckpointError, ExportError
from tercet_export.export import export_network
from tercet_export.networks.clip import Architecture, build
from tercet_export.networks.clip_architecture import find_architecture, find_preprocess
from tercet_export.registry import Options, Preprocessing, network
from tests.export import parity
from tests.serving.python_models import python_model
from tests.tiny_siglip import PREPROCESS, siglip, write_siglip
from tests.tiny_siglip import network as tiny_network

geometry = python_model("decode_image", "geometry")


def encoded_picture() -> bytes:
    """A PNG file of coarse blocks under fine noise, neither square nor of a network's size."""
    rng = np.random.default_rng(5)
    blocks = np.kron(rng.integers(0, 256, (6, 9, 3)), np.ones((70, 50, 1), int))
    picture = np.clip(blocks + rng.integers(-30, 31, blocks.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def served_pixels(preprocessing: Preprocessing, files: list[bytes]) -> np.ndarray:
    """What `decode_image` makes of the files for a network."""
    wanted = {
        name: getattr(preprocessing, name) for name in ("tensor", "size", "resize", "kernel", "antialias")
    }
    geometries = geometry.read_geometries({"roles": {"clip_image": {"preprocessing": wanted}}})
    return geometry.prepare(files, ["pixels"], geometries)["pixels"]


def texts(vocabulary: int, length: int, end: int, pad: int) -> np.ndarray:
    """Token ids of a short text, a longer one and one that fills the context."""
    rng = np.random.default_rng(7)
    ids = np.full((3, length), pad, np.int32)
    for row, words in enumerate((3, length // 2, length - 1)):
        ids[row, : words + 1] = [*rng.integers(3, vocabulary, words), end]
    return ids


def check_parity(theirs: CustomTextCLIP, preprocess: dict, checkpoint: Path, options: Options) -> dict:
    """Both towers, exported, against open_clip from an encoded picture and from ids; the text's details."""
    folder = checkpoint.parent
    image = export_network(network("clip-image"), checkpoint, folder / "image.onnx", options)
    assert image.loaded.preprocessing is not None
    picture = encoded_picture()
    files = [picture] * 2
    transform = image_transform_v2(
        PreprocessCfg(size=image.loaded.preprocessing.size, **preprocess), is_train=False
    )
    session = onnxruntime.InferenceSession(image.path)
    embedding, features = session.run(None, {"pixels": served_pixels(image.loaded.preprocessing, files)})
    with torch.inference_mode():
        expected = theirs.encode_image(transform(Image.open(io.BytesIO(picture)))[None])[0]
    assert expected.std() > 1e-2
    for row in range(2):
        np.testing.assert_allclose(features[row], expected, atol=1e-4 * float(expected.abs().max()))
        np.testing.assert_allclose(embedding[row], expected / expected.norm(), atol=1e-5)
    del session, image

    text = export_network(network("clip-text"), checkpoint, folder / "text.onnx", options)
    details = dict(text.loaded.details or {})
    tokenizer = details["tokenizer"]
    ids = texts(tokenizer["vocabulary"], details["context_length"], tokenizer["end"], tokenizer["pad"])
    if tokenizer["start"] is not None:
        ids[:, 0] = tokenizer["start"]
    nothing = {
        "pseudo_token": np.zeros((3, details["token_width"]), np.float32),
        "pseudo_index": np.full((3, 1), -1, np.int32),
    }
    with torch.inference_mode():
        expected = theirs.encode_text(torch.from_numpy(ids).long(), normalize=True)
    session = onnxruntime.InferenceSession(text.path)
    (embedding,) = session.run(None, {"token_ids": ids, **nothing})
    np.testing.assert_allclose(embedding, expected, atol=1e-5)
    (alone,) = session.run(None, {"token_ids": ids[:1], **{name: a[:1] for name, a in nothing.items()}})
    np.testing.assert_allclose(alone, expected[:1], atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    return details


@pytest.mark.parametrize("family", ["SigLIP", "SigLIP2"])
def test_tiny_siglip_equals_open_clip(family: str, tmp_path: Path) -> None:
    write_siglip(tmp_path, family)
    checkpoint = tmp_path / "open_clip_model.safetensors"
    details = check_parity(tiny_network(family), PREPROCESS, checkpoint, Options())
    assert details["context_length"] == 64
    assert (details["logit_scale"], details["logit_bias"]) == (109.9472, -12.5)
    assert details["tokenizer"]["clean"] == "canonicalize"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("arch", "tag", "end", "pad"),
    [
        ("ViT-B-16-SigLIP", "webli", 1, 1),
        ("ViT-B-16-SigLIP2-256", "webli", 1, 0),
        ("ViT-H-14", None, 49407, 0),
    ],
)
def test_full_size_equals_open_clip(arch: str, tag: str | None, end: int, pad: int, tmp_path: Path) -> None:
    """From a local file that says nothing of itself; ViT-H/14's towers leave one file of 2 GB."""
    checkpoint = tmp_path / "weights.safetensors"
    model = open_clip.get_model_config(arch)
    with torch.device("meta"):
        shapes = {
            name: tuple(t.shape) for name, t in build(Architecture(arch, model, {})).state_dict().items()
        }
    safetensors.torch.save_file({name: full_size(name, shape) for name, shape in shapes.items()}, checkpoint)
    theirs = open_clip.create_model(arch).eval()
    theirs.load_state_dict(safetensors.torch.load_file(checkpoint), assign=True)
    preprocess = open_clip.get_pretrained_cfg(arch, tag or "laion2b_s32b_b79k")
    preprocess = {name: preprocess[name] for name in ("mean", "std", "interpolation", "resize_mode")}
    details = check_parity(theirs, preprocess, checkpoint, Options(arch=arch))
    assert (details["tokenizer"]["end"], details["tokenizer"]["pad"]) == (end, pad)
    assert details["logit_scale"] == pytest.approx(100, abs=0.01)
    if arch == "ViT-H-14":
        assert (tmp_path / "image.onnx.data").stat().st_size > 2.4e9


def full_size(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The rule of `parity.clip` for SigLIP's names too."""
    if name.endswith(("pos_embed", "attn_pool.latent")):
        return 0.3 * parity.normal(name, shape)
    if name.endswith("token_embedding.weight"):
        return 0.5 * parity.normal(name, shape)
    return parity.clip(name, shape)


SIGLIPS = [name for name in open_clip.list_models() if "SigLIP" in name]


@pytest.mark.parametrize("arch", SIGLIPS)
def test_a_local_file_of_siglip_gets_siglips_preprocessing(arch: str, tmp_path: Path) -> None:
    preprocess = find_preprocess(find_architecture(arch, tmp_path / "w.pt"), tmp_path / "w.pt")
    assert dict(preprocess) == {
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }


def test_the_tag_decides_where_published_weights_differ(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"

    def mean(arch: str) -> float:
        return find_preprocess(find_architecture(arch, weights), weights)["mean"][0]

    assert mean("ViT-L-14:laion2b_s32b_b82k") == 0.5
    assert mean("ViT-L-14:datacomp_xl_s13b_b90k") == open_clip.OPENAI_DATASET_MEAN[0]
    assert mean("ViT-H-14") == mean("ViT-bigG-14") == open_clip.OPENAI_DATASET_MEAN[0]
    with pytest.raises(ExportError, match=r"different preprocessing .*give the tag too.*ViT-L-14:laion400m"):
        mean("ViT-L-14")
    with pytest.raises(ExportError, match="no weights 'webli' of ViT-L-14: its tags are openai"):
        mean("ViT-L-14:webli")
    with pytest.raises(
        CheckpointError, match=r"ViT-L-14:openai was trained with QuickGELU.*--arch ViT-L-14-quick"
    ):
        mean("ViT-L-14:openai")
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps(
            {"model_cfg": open_clip.get_model_config("ViT-L-14"), "preprocess_cfg": {"mean": [0.1] * 3}}
        )
    )
    assert mean("ViT-L-14") == 0.1


def test_an_architecture_of_ones_own_must_say_siglips_preprocessing(tmp_path: Path) -> None:
    (tmp_path / "arch.json").write_text(json.dumps(siglip()))
    architecture = find_architecture(str(tmp_path / "arch.json"), tmp_path / "w.pt")
    with pytest.raises(ExportError, match=r"arch\.json does not say how pictures are prepared.*squash"):
        find_preprocess(architecture, tmp_path / "w.pt")


@pytest.mark.parametrize("arch", ["ViT-H-14-CLIPA", "ViT-L-14-worldwide-quickgelu"])
def test_other_tokenizers_are_refused(arch: str) -> None:
    from tercet_export.networks.clip_architecture import tokenizer_details

    with pytest.raises(ExportError, match="tokens"):
        tokenizer_details(find_architecture(arch, Path("w.pt")), 1000)


def test_vectors_of_one_are_scalars(tmp_path: Path) -> None:
    """As some trainings store the scale and the bias; a half-precision file is the same network."""
    write_siglip(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "open_clip_model.safetensors")
    halves = {name: tensor.half() for name, tensor in weights.items()}
    halves |= {name: halves[name].reshape(1) for name in ("logit_scale", "logit_bias")}
    torch.save({"state_dict": halves}, tmp_path / "epoch_1.pt")
    loaded = network("clip-image").load(tmp_path / "epoch_1.pt")
    assert {parameter.dtype for parameter in loaded.graph.parameters()} == {torch.float32}
    assert dict(loaded.details or {})["logit_bias"] == -12.5


def save(arch: str, file: Path) -> Path:
    """A checkpoint with an architecture's tensors, all zero and stored in no space."""
    with torch.device("meta"):
        state = build(Architecture(arch, open_clip.get_model_config(arch), {})).state_dict()
    zero = torch.zeros(())
    torch.save({name: zero.expand(tensor.shape) for name, tensor in state.items()}, file)
    return file


@pytest.mark.parametrize(
    ("given", "stored", "found"),
    [
        (
            "ViT-B-32",
            "ViT-B-16-SigLIP",
            "looks like a checkpoint of a SigLIP model, not of open_clip's ViT-B-32",
        ),
        (
            "ViT-B-16-SigLIP",
            "ViT-B-32",
            "looks like a checkpoint of CLIP, not of open_clip's ViT-B-16-SigLIP",
        ),
        ("ViT-B-16-SigLIP-384", "ViT-B-16-SigLIP", "pos_embed is 1x196x768 and should be 1x576x768"),
    ],
)
def test_weights_of_another_architecture_name_theirs(
    given: str, stored: str, found: str, tmp_path: Path
) -> None:
    weights = save(stored, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError) as caught:
        network("clip-text").load(weights, Options(arch=given))
    assert found in str(caught.value)
    assert f"These weights are of --arch {stored}" in str(caught.value)


def test_big_visions_own_container_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "webli_en_b16_224_63724782.npz", **{"params/b": np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError, match=r"big_vision publishes SigLIP.*hf://timm/ViT-B-16-SigLIP"):
        network("clip-image").load(
            tmp_path / "webli_en_b16_224_63724782.npz", Options(arch="ViT-B-16-SigLIP")
        )
