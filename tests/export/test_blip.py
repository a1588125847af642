"""BLIP: layouts, refusals, and equality with transformers from an encoded picture to ids."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from PIL import Image
from torchvision import transforms

from tercet.errors import CheckpointError, ExportError
from tercet_export.export import export_network
from tercet_export.networks.blip import BLIP, BLIP_BASE, BLIP_LARGE, BLIPConfig, load, salesforce_name
from tercet_export.networks.captioner import CLIP_MEAN, CLIP_STD, Captioner
from tercet_export.registry import Options, network
from tests.export import parity
from tests.tiny import SIZE
from tests.tiny_blip import BLIP_SIZES, blip_weights

Tensors = dict[str, torch.Tensor]
WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
OUTPUT = "text_decoder.cls.predictions.decoder"


@pytest.fixture
def arch(tmp_path: Path) -> str:
    return written(BLIP_SIZES, tmp_path)


def written(config: BLIPConfig, folder: Path) -> str:
    path = folder / "blip.json"
    path.write_text(json.dumps(asdict(config)))
    return str(path)


def saved(tensors: object, folder: Path) -> Path:
    path = folder / "checkpoint.pth"
    torch.save(tensors, path)
    return path


def in_salesforce_layout(hub: Tensors) -> Tensors:
    tensors = {salesforce_name(name): tensor for name, tensor in hub.items()}
    positions = {"text_decoder.bert.embeddings.position_ids": torch.arange(40)[None]}
    return tensors | positions | {"text_decoder.cls.predictions.bias": hub[f"{OUTPUT}.bias"]}


def pictures(count: int, size: int) -> list[bytes]:
    """Encoded pictures of other sides than the network's."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((size + 40 + 9 * number, size + 17), Image.Resampling.BICUBIC).save(file, "JPEG")
        files.append(file.getvalue())
    return files


def squashed(file: bytes, size: int) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def officially_preprocessed(files: list[bytes], size: int) -> torch.Tensor:
    """As `load_demo_image` of salesforce/BLIP."""
    bicubic = transforms.InterpolationMode.BICUBIC
    transform = transforms.Compose(
        [
            transforms.Resize((size, size), interpolation=bicubic),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    return torch.stack([transform(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def in_transformers(config: BLIPConfig) -> torch.nn.Module:
    text = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.text_width,
        "encoder_hidden_size": config.vision_width,
        "intermediate_size": config.text_feedforward,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_heads,
        "max_position_embeddings": config.max_positions,
        "bos_token_id": config.start,
        "sep_token_id": config.end,
    }
    vision = {
        "hidden_size": config.vision_width,
        "intermediate_size": 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
    }
    whole = transformers.BlipConfig(text_config=text, vision_config=vision)
    return transformers.BlipForConditionalGeneration(whole).eval()


def generated(
    theirs: torch.nn.Module, pixels: torch.Tensor, config: BLIPConfig, beams: int, max_tokens: int
) -> np.ndarray:
    """Ids [B, L] after the prompt, filled with the end: start and prompt count in transformers' lengths."""
    led = 1 + len(config.prompt)
    prompt = torch.tensor([[101, *config.prompt, config.end]]).repeat(len(pixels), 1)
    ids = theirs.generate(
        pixel_values=pixels,
        input_ids=prompt,
        num_beams=beams,
        max_length=led + max_tokens,
        min_length=led + config.min_tokens,
        do_sample=False,
    )
    assert (ids[:, 1:led] == torch.tensor(config.prompt)).all()
    ids = ids[:, led:]
    ended = (ids == config.end).cumsum(dim=1) > 0
    filled = np.full((len(ids), max_tokens), config.end)
    filled[:, : ids.shape[1]] = ids.masked_fill(ended, config.end)
    return filled


@pytest.mark.parametrize("config", [BLIP_BASE, BLIP_LARGE], ids=["base", "large"])
def test_names_and_shapes_are_the_official_ones(config: BLIPConfig) -> None:
    with torch.device("meta"):
        own = {name: tuple(tensor.shape) for name, tensor in BLIP(config).state_dict().items()}
        theirs = {name: tuple(tensor.shape) for name, tensor in in_transformers(config).state_dict().items()}
    theirs.pop("text_decoder.cls.predictions.bias")  # the output's bias under another name
    assert own == theirs


def test_names_and_shapes_are_those_of_the_released_file() -> None:
    released = parity.names_and_shapes("hf_blip_base_caption")
    released.pop("text_decoder.cls.predictions.bias")
    with torch.device("meta"):
        own = BLIP(BLIP_BASE).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in own.items()} == released


def test_every_layout_gives_the_same_network(arch: str, tmp_path: Path) -> None:
    hub = blip_weights()
    positions = {"text_decoder.bert.embeddings.position_ids": torch.arange(40)[None]}
    doubled = {"text_decoder.cls.predictions.bias": hub[f"{OUTPUT}.bias"]}
    without = {name: tensor for name, tensor in hub.items() if not name.startswith(OUTPUT)}
    layouts = [
        hub,
        hub | positions | doubled,
        without | doubled,
        {"model": in_salesforce_layout(hub), "epoch": 4},
        {"model": {f"module.{name}": tensor for name, tensor in in_salesforce_layout(hub).items()}},
    ]
    for tensors in layouts:
        graph = network("blip-base").load(saved(tensors, tmp_path), Options(arch=arch)).graph
        assert isinstance(graph, Captioner)
        own = graph.network.state_dict()
        assert own.keys() == hub.keys()
        assert all(torch.equal(own[name], hub[name]) for name in hub)
        assert graph.network.text_decoder.output.weight is graph.network.text_decoder.words.weight


def test_each_release_has_its_own_epsilon(arch: str, tmp_path: Path) -> None:
    hub = blip_weights()
    for tensors, epsilon in ((hub, 1e-5), ({"model": in_salesforce_layout(hub)}, 1e-6)):
        graph = load(saved(tensors, tmp_path), Options(arch=arch)).graph
        assert graph.network.vision_model["post_layernorm"].eps == epsilon


def test_untied_output_is_kept(arch: str, tmp_path: Path) -> None:
    hub = blip_weights()
    hub[f"{OUTPUT}.weight"] = hub[f"{OUTPUT}.weight"].flip(0).clone()
    graph = load(saved(hub, tmp_path), Options(arch=arch)).graph
    assert torch.equal(graph.network.text_decoder.output.weight, hub[f"{OUTPUT}.weight"])
    assert torch.equal(graph.network.text_decoder.words.weight, hub[WORDS])


@pytest.mark.parametrize("layout", ["hub", "salesforce"])
@pytest.mark.parametrize("fault", ["missing", "unexpected", "wrong shapes"])
@pytest.mark.parametrize("part", ["1.crossattention.self.key.bias", "norm2.weight"])
def test_refuses_what_does_not_fit_by_name(
    layout: str, fault: str, part: str, arch: str, tmp_path: Path
) -> None:
    tensors = blip_weights() if layout == "hub" else in_salesforce_layout(blip_weights())
    name = next(name for name in tensors if name.endswith(part))
    if fault == "missing":
        del tensors[name]
    elif fault == "unexpected":
        name = f"{name}.extra"
        tensors[name] = torch.zeros(3)
    else:
        tensors[name] = tensors[name][:-1]
    with pytest.raises(CheckpointError, match=f"{fault}.*{name}"):
        load(saved(tensors, tmp_path), Options(arch=arch))


def test_refuses_more_tokens_than_positions(arch: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"max_tokens 38.*40 positions.*at most 37"):
        load(saved(blip_weights(), tmp_path), Options(arch=arch, max_tokens=38))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("config", [BLIP_BASE, BLIP_LARGE], ids=["base", "large"])
def test_equals_transformers_in_full_size(config: BLIPConfig, tmp_path: Path) -> None:
    """The official recipe on their checkpoint file: encoded pictures to ids, exported, at batches 3 and 1."""
    name = "blip-base" if config is BLIP_BASE else "blip-large"
    theirs = in_transformers(config)
    weights = {key: full_size(key, tuple(tensor.shape)) for key, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(weights)
    theirs.save_pretrained(tmp_path)
    del weights
    files = pictures(3, config.image_size)
    pixels = officially_preprocessed(files, config.image_size)
    expected = {beams: generated(theirs, pixels, config, beams, config.max_tokens) for beams in (1, 3)}
    del theirs
    foreground = np.stack([np.asarray(squashed(file, config.image_size)) for file in files])
    checkpoint = tmp_path / "model.safetensors"
    greedy = network(name).load(checkpoint, Options(beams=1)).graph
    with torch.inference_mode():
        np.testing.assert_array_equal(greedy(torch.from_numpy(foreground))[0], expected[1])
    del greedy
    exported = export_network(network(name), checkpoint, tmp_path / "model.onnx", Options())
    session = onnxruntime.InferenceSession(exported.path)
    token_ids, _ = session.run(None, {"foreground": foreground})
    np.testing.assert_array_equal(token_ids, expected[3])
    np.testing.assert_array_equal(
        session.run(["token_ids"], {"foreground": foreground[1:2]})[0], expected[3][1:2]
    )
    assert len({tuple(row) for row in token_ids}) == 3
    assert (expected[1] != expected[3]).any()
    assert len(set(token_ids.flat)) > 6
    lengths = [(ids != config.end).sum(axis=1) for ids in expected.values()]
    assert min(map(min, lengths)) < config.max_tokens


def full_size(name: str, shape: parity.Shape) -> torch.Tensor:
    """The rule for BLIP: captions vary from picture to picture, and end now and then."""
    if name in (WORDS, f"{OUTPUT}.weight"):
        return 0.06 * parity.normal(WORDS, shape)
    if name in (f"{OUTPUT}.bias", "text_decoder.cls.predictions.bias"):
        bias = 0.02 * parity.normal(f"{OUTPUT}.bias", shape)
        bias[102] = 6.0
        return bias
    scales = {
        "embeddings.class_embedding": 0.5,
        "embeddings.position_embedding": 0.3,
        "position_embeddings.weight": 0.2,
        "crossattention.output.dense.weight": 0.25 * (1.4 / shape[-1]) ** 0.5,
        "attention.output.dense.weight": 0.35 * (1.4 / shape[-1]) ** 0.5,
        "layer.11.output.dense.weight": 6.0 * (1.4 / shape[-1]) ** 0.5,
    }
    scale = next((scale for end, scale in scales.items() if name.endswith(end)), None)
    return parity.by_shape(name, shape) if scale is None else scale * parity.normal(name, shape)


@pytest.mark.parametrize("beams", [1, 3])
def test_equals_transformers(beams: int, arch: str, tmp_path: Path) -> None:
    """Their own checkpoint file against `generate`: encoded pictures to ids, at batches not traced."""
    theirs = in_transformers(BLIP_SIZES)
    theirs.load_state_dict(blip_weights(), strict=False)
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path)
    output = tmp_path / "model.onnx"
    export_network(
        network("blip-base"), tmp_path / "model.safetensors", output, Options(arch=arch, beams=beams)
    )
    session = onnxruntime.InferenceSession(output)
    files = pictures(7, SIZE)
    expected = generated(theirs, officially_preprocessed(files, SIZE), BLIP_SIZES, beams, 8)
    foreground = np.stack([np.asarray(squashed(file, SIZE)) for file in files])
    token_ids, score = session.run(None, {"foreground": foreground})
    np.testing.assert_array_equal(token_ids, expected)
    assert np.isfinite(score).all()
    for row in range(2):
        np.testing.assert_array_equal(
            session.run(["token_ids"], {"foreground": foreground[row : row + 1]})[0], expected[row : row + 1]
        )
    lengths = (token_ids != BLIP_SIZES.end).sum(axis=1)
    assert len({tuple(row) for row in token_ids}) > 2
    assert lengths.min() < lengths.max()
