"""mPLUG: containers, refusals, and equality with ModelScope's from an encoded picture to ids."""

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tercet.errors import CheckpointError, ExportError
from tercet_export.export import export_network
from tercet_export.networks.mplug import (
    MPLUG,
    MPLUG_BASE,
    MPLUG_LARGE,
    OTHER_PARTS,
    POSITIONS,
    MPLUGConfig,
    fit_positions,
    load,
    trained_size,
)
from tercet_export.networks.search import Now
from tercet_export.registry import Loaded, Options, manifest_preprocessing, network
from tests.export import parity
from tests.serving.python_models import python_model
from tests.tiny_mplug import MPLUG_SIZES, mplug_weights, official_weights

Tensors = dict[str, torch.Tensor]

OUTPUT = "text_decoder.cls.predictions"
OTHER_TASKS = {
    "text_encoder.embeddings.word_embeddings.weight": torch.zeros(3, 3),
    "text_encoder.bert.encoder.layer.0.output.dense.bias": torch.zeros(3),
    "fusion_encoder.fusion.encoder.layer.0.output.dense.bias": torch.zeros(3),
    "visual_encoder.transformer.resblocks.0.ln_1.weight": torch.zeros(3),
    "visual_encoder.positional_embedding": torch.zeros(77, 3),
    "visual_encoder.logit_scale": torch.tensor(4.6),
    "visual_encoder_m.visual.conv1.weight": torch.zeros(3),
    "text_decoder_m.cls.predictions.bias": torch.zeros(3),
    "visn_fc_m.weight": torch.zeros(3),
    "itm_head.weight": torch.zeros(2, 3),
    "image_queue": torch.full((3, 3), torch.nan),
    "queue_ptr": torch.zeros(1, dtype=torch.int64),
    "temp": torch.tensor(0.07),
}


@pytest.fixture
def arch(tmp_path: Path) -> str:
    return written(MPLUG_SIZES, tmp_path)


def written(config: MPLUGConfig, folder: Path) -> str:
    path = folder / "mplug.json"
    path.write_text(json.dumps(asdict(config)))
    return str(path)


def saved(tensors: object, folder: Path) -> Path:
    path = folder / "checkpoint.pth"
    torch.save(tensors, path)
    return path


def decoded(expected: dict[str, np.ndarray], loaded: Loaded) -> np.ndarray:
    """The encoded pictures as `decode_image` gives them to the network, u8 [B, V, V, 3]."""
    geometry = python_model("decode_image", "geometry")
    assert loaded.preprocessing is not None
    manifest = {"roles": {"captioner": {"preprocessing": manifest_preprocessing(loaded.preprocessing)}}}
    names = sorted(name for name in expected if name.startswith("picture_"))
    files = [expected[name].tobytes() for name in names]
    return geometry.prepare(files, ["view"], geometry.read_geometries(manifest))["view"]


@pytest.mark.parametrize(("name", "config"), [("base", MPLUG_BASE), ("large", MPLUG_LARGE)])
def test_names_and_shapes_are_the_official_ones(name: str, config: MPLUGConfig) -> None:
    released = parity.names_and_shapes(f"mplug_{name}")
    doubled = {"text_decoder.bert.embeddings.position_ids", f"{OUTPUT}.bias"}
    needed = {key: shape for key, shape in released.items() if not OTHER_PARTS.match(key)}
    with torch.device("meta"):
        own = MPLUG(config).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in own.items()} == {
        key: shape for key, shape in needed.items() if key not in doubled
    }
    assert len(released) - len(needed) > 500


def test_every_container_gives_the_same_network(arch: str, tmp_path: Path) -> None:
    weights = mplug_weights()
    ids = {"text_decoder.bert.embeddings.position_ids": torch.arange(40)[None]}
    bias = weights[f"{OUTPUT}.decoder.bias"]
    alone = {name: tensor for name, tensor in weights.items() if not name.startswith(f"{OUTPUT}.decoder")}
    beside = {"epoch": 3, "config": {"image_res": 64, "optimizer": {"lr1": 1e-5}}, "lr_scheduler": None}
    deepspeed = {"ds_version": "0.5", "csr_tensor_module_names": {"a"}, "args": Namespace(lr=1e-5)}
    layouts = [
        weights,
        weights | ids | {f"{OUTPUT}.bias": bias} | OTHER_TASKS,
        alone | {f"{OUTPUT}.bias": bias},
        {"model": weights | OTHER_TASKS, **beside},
        {"module": weights, **deepspeed},
        {"model": {f"module.{name}": tensor for name, tensor in weights.items()}},
        {"module": {f"model.{name}": tensor for name, tensor in weights.items()}},
    ]
    for tensors in layouts:
        graph = network("mplug-base").load(saved(tensors, tmp_path), Options(arch=arch)).graph
        own = graph.network.state_dict()
        assert own.keys() == weights.keys()
        assert all(torch.equal(own[name], weights[name]) for name in weights)
        assert graph.network.text_decoder.output.weight is graph.network.text_decoder.words.weight


@pytest.mark.parametrize("fault", ["missing", "unexpected", "wrong shapes"])
@pytest.mark.parametrize(
    "name",
    [
        "visual_encoder.visual.transformer.resblocks.1.attn.in_proj_weight",
        POSITIONS,
        "visn_fc.weight",
        "text_decoder.bert.encoder.layer.1.crossattention.self.key.bias",
    ],
)
def test_refuses_what_does_not_fit_by_name(fault: str, name: str, arch: str, tmp_path: Path) -> None:
    tensors = mplug_weights() | OTHER_TASKS
    if fault == "missing":
        del tensors[name]
    elif fault == "unexpected":
        name = f"{name}.extra"
        tensors[name] = torch.zeros(3)
    else:
        tensors[name] = tensors[name][:-1]
    with pytest.raises(CheckpointError, match=f"{fault}.*{name}"):
        load(saved({"model": tensors}, tmp_path), Options(arch=arch))


def test_refuses_a_file_without_a_decoder(arch: str, tmp_path: Path) -> None:
    """As mPLUG's files for retrieval are."""
    tensors = {name: t for name, t in mplug_weights().items() if not name.startswith("text_decoder")}
    with pytest.raises(CheckpointError, match=r"missing tensors: text_decoder\."):
        load(saved({"model": tensors | OTHER_TASKS}, tmp_path), Options(arch=arch))


def test_refuses_more_tokens_than_positions(arch: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"max_tokens 41.*40 positions.*at most 40"):
        load(saved(mplug_weights(), tmp_path), Options(arch=arch, max_tokens=41))


def test_positions_are_resized_as_officially() -> None:
    expected = parity.expected("mplug_tiny")
    before, after = torch.from_numpy(expected["positions_96"]), expected["positions_64"]
    assert before.shape != after.shape
    np.testing.assert_allclose(fit_positions(before, MPLUG_SIZES, 96), after, atol=1e-6)


@pytest.mark.parametrize(
    ("patch", "side"), [(16, 256), (16, 384), (14, 224), (14, 336), (14, 384), (14, 504)]
)
def test_positions_tell_the_size_they_were_trained_at(patch: int, side: int) -> None:
    """By ModelScope's count of them, which leaves some over where patches do not fill the picture."""
    positions = torch.zeros(1 + int(side * side / (patch * patch)), 768)
    assert trained_size({POSITIONS: positions}, patch) == side
    kept = fit_positions(positions, replace(MPLUG_BASE, image_size=side, patch_size=patch), side)
    assert len(kept) == 1 + (side // patch) ** 2
    assert trained_size({POSITIONS: positions[:-1]}, patch) == 0


def test_size_is_the_checkpoints_own_or_the_official_one(arch: str, tmp_path: Path) -> None:
    config = replace(MPLUG_SIZES, image_size=96)
    larger = saved(mplug_weights(config), tmp_path)
    assert load(larger, Options(arch=arch)).sizes["V"] == 96
    assert load(larger, Options(arch=arch, size=64)).sizes["V"] == 64
    pretrained = saved(mplug_weights(replace(MPLUG_SIZES, image_size=32)), tmp_path)
    assert load(pretrained, Options(arch=arch)).sizes["V"] == 64
    with pytest.raises(ExportError, match=r"size 8 .*give 16 or more"):
        load(pretrained, Options(arch=arch, size=8))


def test_official_recipe_is_the_default(arch: str, tmp_path: Path) -> None:
    checkpoint = saved(mplug_weights(), tmp_path)
    loaded = load(
        checkpoint, Options(arch=written(replace(MPLUG_SIZES, max_tokens=25, min_tokens=8), tmp_path))
    )
    options = loaded.graph.options
    assert (options.beams, options.min_tokens, options.max_tokens) == (5, 8, 25)
    assert (MPLUG_BASE.min_tokens, MPLUG_BASE.max_tokens, MPLUG_BASE.image_size) == (8, 25, 384)
    assert (MPLUG_LARGE.min_tokens, MPLUG_LARGE.max_tokens, MPLUG_LARGE.image_size) == (8, 25, 336)
    assert loaded.preprocessing is not None
    assert (loaded.preprocessing.resize, loaded.preprocessing.kernel) == ("stretch", "bicubic")


def agrees(name: str, loaded: Loaded) -> None:
    """What the picture becomes, and the logits along the official caption, equal ModelScope's."""
    expected = parity.expected(f"mplug_{name}")
    captioner = loaded.graph
    with torch.inference_mode():
        pixels = torch.from_numpy(decoded(expected, loaded)).permute(0, 3, 1, 2) / 255
        tokens = captioner.network.tokens((pixels - captioner.mean) / captioner.std)
        np.testing.assert_allclose(tokens[:, [0, 1, -1], :24], expected["tokens"], atol=2e-4)
        step, caches = captioner.decoder(torch.from_numpy(decoded(expected, loaded)))
        prefix = torch.from_numpy(expected["prefix"])
        places = torch.arange(prefix.shape[1])
        visible = (torch.arange(captioner.options.cache_rows) <= places[:, None]).expand(len(prefix), -1, -1)
        logits, _ = step(prefix, Now(places, places, visible), caches)
    top = logits.gather(2, torch.from_numpy(expected["logits_top_ids"]).long())
    np.testing.assert_allclose(top, expected["logits_top"], atol=2e-4)


def captions_agree(name: str, onnx: Path, loaded: Loaded) -> None:
    """The exported graph gives ModelScope's ids and scores: at batch 1 and at one that was not traced."""
    expected = parity.expected(f"mplug_{name}")
    session = onnxruntime.InferenceSession(onnx)
    foreground = decoded(expected, loaded)
    token_ids, score = session.run(None, {"foreground": foreground})
    assert token_ids.tolist() == expected["token_ids"].tolist()
    np.testing.assert_allclose(score, expected["score"], atol=1e-4)
    alone = session.run(["token_ids"], {"foreground": foreground[1:2]})[0]
    assert alone.tolist() == expected["token_ids"][1:2].tolist()
    lengths = (token_ids != 102).sum(axis=1)
    assert lengths.min() < lengths.max()
    assert len({tuple(row) for row in token_ids}) == len(token_ids)


def test_tiny_equals_modelscope(arch: str, tmp_path: Path) -> None:
    checkpoint = saved({"model": mplug_weights() | OTHER_TASKS}, tmp_path)
    loaded = network("mplug-large").load(checkpoint, Options(arch=arch))
    agrees("tiny", loaded)
    exported = export_network(network("mplug-large"), checkpoint, tmp_path / "model.onnx", Options(arch=arch))
    captions_agree("tiny", exported.path, loaded)


def test_tiny_greedy_equals_modelscope_with_one_beam(arch: str, tmp_path: Path) -> None:
    expected = parity.expected("mplug_tiny")
    loaded = network("mplug-base").load(saved(mplug_weights(), tmp_path), Options(arch=arch, beams=1))
    with torch.inference_mode():
        token_ids, _ = loaded.graph(torch.from_numpy(decoded(expected, loaded)))
    assert token_ids.tolist() == expected["greedy"].tolist()


@pytest.fixture(scope="module", params=["base", "large"])
def official(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """A whole official file: 2 or 3 GB, removed at once."""
    path = tmp_path_factory.mktemp("mplug") / "checkpoint.pth"
    weights = parity.state_dict(f"mplug_{request.param}", official_weights)
    torch.save({"model": weights, "epoch": 3}, path)
    del weights
    yield request.param, path
    path.unlink()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_equals_modelscope(official: tuple[str, Path], tmp_path: Path) -> None:
    """From the encoded pictures to the ids, at full size."""
    name, checkpoint = official
    exported = export_network(network(f"mplug-{name}"), checkpoint, tmp_path / "model.onnx")
    agrees(name, exported.loaded)
    captions_agree(name, exported.path, exported.loaded)
    exported.path.unlink()
