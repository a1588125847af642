"""OFA: layouts, refusals, and equality with the official code from an encoded picture to ids."""

import json
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tercet.errors import CheckpointError, ExportError
from tercet_export.export import export_network
from tercet_export.networks.captioner import Captioner
from tercet_export.networks.ofa import ARCHITECTURES, OFA, WORDS, OFAConfig, fairseq_name, load, unused
from tercet_export.networks.search import Now, row_positions
from tercet_export.registry import Options, manifest_preprocessing, network
from tests.export import parity
from tests.serving.python_models import python_model
from tests.tiny_ofa import OFA_SIZES, ofa_weights

Tensors = dict[str, torch.Tensor]
PREFIX = (0, 11, 7, 19, 5, 8)  # as in parity/make_ofa.py


@pytest.fixture
def arch(tmp_path: Path) -> str:
    path = tmp_path / "ofa.json"
    path.write_text(json.dumps(asdict(OFA_SIZES)))
    return str(path)


def saved(tensors: object, folder: Path) -> Path:
    path = folder / "checkpoint.pt"
    torch.save(tensors, path)
    return path


def in_fairseq_layout(hub: Tensors) -> Tensors:
    versions = {f"{part}.version": torch.tensor([3.0]) for part in ("encoder", "decoder")}
    return {fairseq_name(name): tensor for name, tensor in hub.items()} | versions


def fairseq_container(hub: Tensors) -> dict[str, object]:
    """As fairseq's trainer saves it: the configuration beside the weights is an object of a class."""
    return {
        "args": None,
        "cfg": {"model": Namespace(arch="ofa_base", encoder_layers=6), "task": {"_name": "caption"}},
        "model": in_fairseq_layout(hub),
        "optimizer_history": [{"num_updates": 3}],
        "extra_state": {"epoch": 2, "metrics": {"loss": np.float64(0.5)}},
    }


@pytest.mark.parametrize("size", ["base", "large"])
def test_names_and_shapes_are_the_official_ones(size: str) -> None:
    config = ARCHITECTURES[f"ofa-{size}"]
    with torch.device("meta"):
        own = OFA(config).state_dict() | unused(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    assert shapes | {"decoder.image_position_idx": (1025,)} == parity.names_and_shapes(f"ofa_{size}")


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_parameters_are_as_many_as_the_list_says(name: str) -> None:
    config = ARCHITECTURES[name]
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in OFA(config).parameters())
    others = sum(tensor.numel() for key, tensor in unused(config).items() if "rp_bucket" not in key)
    assert parameters + others == network(name).parameters


def test_names_in_fairseq_files() -> None:
    renamed = {
        "encoder.layers.0.self_attn_mid_layer_norm.weight": "encoder.layers.0.attn_ln.weight",
        "encoder.layers.0.ffn_layer_norm.bias": "encoder.layers.0.ffn_layernorm.bias",
        "encoder.layers.0.self_attn_layer_norm.bias": "encoder.layers.0.self_attn_layer_norm.bias",
        "decoder.layers.11.self_attn_mid_layer_norm.bias": "decoder.layers.11.self_attn_ln.bias",
        "decoder.layers.1.cross_attn_mid_layer_norm.weight": "decoder.layers.1.cross_attn_ln.weight",
        "decoder.layers.1.cross_attn_layer_norm.weight": "decoder.layers.1.encoder_attn_layer_norm.weight",
        "decoder.layers.1.cross_attn.c_attn": "decoder.layers.1.encoder_attn.c_attn",
        "decoder.layers.1.ffn_layer_norm.weight": "decoder.layers.1.ffn_layernorm.weight",
        "decoder.cross_pos_q_linear.weight": "decoder.cross_pos_q_linear.weight",
        "encoder.patch_layernorm_embedding.weight": "encoder.patch_layernorm_embedding.weight",
    }
    assert {name: fairseq_name(name) for name in renamed} == renamed


def test_every_layout_gives_the_same_network(arch: str, tmp_path: Path) -> None:
    hub = ofa_weights()
    once = {name: tensor for name, tensor in hub.items() if name not in WORDS[1:]}
    halves = {name: t.half() if t.is_floating_point() else t for name, t in hub.items()}
    layouts: list[tuple[object, Tensors]] = [
        (hub, hub),
        (once, hub),
        (hub | {WORDS[0]: torch.zeros_like(hub[WORDS[0]])}, hub),  # the last copy counts, as officially
        (fairseq_container(hub), hub),
        ({"model": in_fairseq_layout(halves)}, {name: t.float() for name, t in halves.items()}),
    ]
    for content, weights in layouts:
        graph = network("ofa-base").load(saved(content, tmp_path), Options(arch=arch)).graph
        assert isinstance(graph, Captioner)
        own = graph.network.state_dict()
        assert all(torch.equal(own[name], weights[name].to(own[name].dtype)) for name in own)
        assert graph.network.decoder.output_projection.weight is graph.network.encoder.embed_tokens.weight


@pytest.mark.parametrize("layout", ["hub", "fairseq"])
@pytest.mark.parametrize("fault", ["missing", "unexpected", "wrong shapes"])
@pytest.mark.parametrize(
    "part", ["encoder.layers.1.", "decoder.layers.0.", "decoder.image_rel_pos_table_list."]
)
def test_refuses_what_does_not_fit_by_name(
    layout: str, fault: str, part: str, arch: str, tmp_path: Path
) -> None:
    tensors = ofa_weights() if layout == "hub" else in_fairseq_layout(ofa_weights())
    name = next(name for name in tensors if name.startswith(part))
    if fault == "missing":
        del tensors[name]
    elif fault == "unexpected":
        name = f"{name}.extra"
        tensors[name] = torch.zeros(3)
    else:
        tensors[name] = tensors[name][:-1]
    with pytest.raises(CheckpointError, match=f"{fault}.*{name}"):
        load(saved({"model": tensors}, tmp_path), Options(arch=arch))


def test_refuses_another_size(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit.*wrong shapes.*768"):
        load(saved(ofa_weights(), tmp_path), Options())


def test_refuses_places_that_are_none(arch: str, tmp_path: Path) -> None:
    tensors = ofa_weights()
    tensors["encoder.image_rp_bucket"][3, 4] = 10**6
    with pytest.raises(CheckpointError, match=r"damaged: encoder\.image_rp_bucket"):
        load(saved(tensors, tmp_path), Options(arch=arch))


def test_official_recipe_is_the_default(arch: str, tmp_path: Path) -> None:
    loaded = load(saved(ofa_weights(), tmp_path), Options(arch=arch))
    options = loaded.graph.options
    assert (options.beams, options.length_penalty, options.no_repeat_ngram) == (5, 1.0, 3)
    assert (options.start, options.end, options.min_tokens, options.never) == (0, 2, 1, (1,))
    for config in ARCHITECTURES.values():
        assert (config.image_size, config.max_tokens) == (480, 16)
        assert config.prompt == (0, 99, 473, 5, 2274, 6190, 116, 2)
    preprocessing = loaded.preprocessing
    assert preprocessing is not None
    assert (preprocessing.resize, preprocessing.kernel, preprocessing.antialias) == (
        "stretch",
        "bicubic",
        True,
    )
    assert preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("size", "grid"), [(96, 6), (33, 3), (16, 1)])
def test_pictures_of_another_size(size: int, grid: int, arch: str, tmp_path: Path) -> None:
    """The places of the cells are those of a smaller square in the corner of the largest."""
    loaded = network("ofa-base").load(saved(ofa_weights(), tmp_path), Options(arch=arch, size=size))
    assert loaded.sizes["V"] == size
    encoder = loaded.graph.network.encoder
    with torch.no_grad():
        cells = encoder.embed_images(torch.zeros(1, 3, size, size))
        assert cells.shape[2:] == (grid, grid)
        assert encoder(torch.zeros(2, 3, size, size)).shape == (2, grid * grid + 5, OFA_SIZES.width)
    last = encoder.image_rp_bucket[1, (grid - 1) * OFA_SIZES.image_bucket + grid]
    assert encoder.relative[0, grid * grid - 1] == last


def test_refuses_pictures_with_more_cells_than_positions(arch: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"97 pixels are too large.*--size 96"):
        load(saved(ofa_weights(), tmp_path), Options(arch=arch, size=97))


def test_refuses_more_tokens_than_positions(arch: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"max_tokens 1024.*1024 positions.*at most 1023"):
        load(saved(ofa_weights(), tmp_path), Options(arch=arch, max_tokens=1024))


def decoded(graph: Captioner, foreground: torch.Tensor) -> torch.Tensor:
    """Logits (T, vocabulary) after each token of PREFIX, step by step through the cache."""
    step, caches = graph.decoder(foreground)
    rows = torch.arange(graph.options.cache_rows)
    logits, seen = [], torch.zeros_like(rows, dtype=torch.bool)
    for position, token in enumerate(PREFIX):
        row = position * graph.options.beams
        seen = seen | (rows == row)
        now = Now(torch.tensor(position), rows[row : row + 1], seen.expand(1, 1, -1))
        given, caches = step(torch.tensor([[token]]), now, caches)
        logits.append(given[0, 0])
    assert row_positions(graph.options)[-1] == graph.options.positions - 1
    return torch.stack(logits)


def views(wanted: dict[str, np.ndarray], preprocessing: dict[str, object]) -> np.ndarray:
    """The official script's files as the server brings them to the network's size."""
    files = [wanted[name].tobytes() for name in sorted(wanted) if name.startswith("picture_")]
    geometry = python_model("decode_image", "geometry")
    manifest = {"roles": {"captioner": {"preprocessing": preprocessing}}}
    return geometry.prepare(files, ("view",), geometry.read_geometries(manifest))["view"]


def equals_official(config: OFAConfig, checkpoint: Path, size: str, options: Options, folder: Path) -> None:
    """Encoder and logits in torch; from files to ids and scores in the exported graph, at two batches."""
    wanted = parity.expected(f"ofa_{size}")
    loaded = network("ofa-base").load(checkpoint, options)
    assert loaded.preprocessing is not None
    foreground = views(wanted, manifest_preprocessing(loaded.preprocessing))
    graph = loaded.graph
    one = torch.from_numpy(foreground[:1])
    with torch.inference_mode():
        pixels = (one.permute(0, 3, 1, 2) / 255 - graph.mean) / graph.std
        encoded = graph.network.encoder(pixels)[0, ::13, ::7]
        np.testing.assert_allclose(encoded.numpy(), wanted["encoded"], atol=2e-5)
        top = decoded(graph, one).gather(1, torch.from_numpy(wanted["logits_ids"]))
        np.testing.assert_allclose(top.numpy(), wanted["logits"], atol=1e-4)
    del loaded, graph
    output = folder / "model.onnx"
    export_network(network("ofa-base"), checkpoint, output, options)
    session = onnxruntime.InferenceSession(output)
    token_ids, score = session.run(None, {"foreground": foreground})
    np.testing.assert_array_equal(token_ids, wanted["ids"])
    np.testing.assert_allclose(score, wanted["score"], atol=1e-4)
    alone = session.run(["token_ids"], {"foreground": foreground[-1:]})[0]
    np.testing.assert_array_equal(alone, wanted["ids"][-1:])
    lengths = (token_ids != config.end).sum(axis=1)
    assert len({tuple(row) for row in token_ids}) > len(token_ids) // 2
    assert lengths.min() < config.max_tokens
    assert max(len(set(row)) for row in token_ids.tolist()) > 3


def test_equals_official(arch: str, tmp_path: Path) -> None:
    checkpoint = saved(fairseq_container(ofa_weights()), tmp_path)
    equals_official(OFA_SIZES, checkpoint, "tiny", Options(arch=arch), tmp_path)


def test_greedy_search_equals_official(arch: str, tmp_path: Path) -> None:
    wanted = parity.expected("ofa_tiny")
    loaded = network("ofa-tiny").load(saved(ofa_weights(), tmp_path), Options(arch=arch, beams=1))
    assert loaded.preprocessing is not None
    foreground = views(wanted, manifest_preprocessing(loaded.preprocessing))
    with torch.inference_mode():
        token_ids, _ = loaded.graph(torch.from_numpy(foreground))
    np.testing.assert_array_equal(token_ids.numpy(), wanted["greedy_ids"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", ["base", "large"])
def test_full_size_equals_official(size: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    tensors = parity.state_dict(f"ofa_{size}", parity.ofa)
    torch.save({"model": in_fairseq_layout(tensors)} if size == "large" else tensors, path)
    del tensors
    config = replace(ARCHITECTURES[f"ofa-{size}"])
    equals_official(config, path, size, Options(arch=f"ofa-{size}"), tmp_path)
