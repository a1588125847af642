"""GIT: layouts, refusals, the exported search, and equality with transformers and Microsoft."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
import transformers
from PIL import Image

from tercet.errors import CheckpointError, ExportError
from tercet_export.export import export_network
from tercet_export.networks.captioner import Captioner
from tercet_export.networks.git import GIT, GIT_BASE, GIT_LARGE, UNUSED, GITConfig, hub_names
from tercet_export.networks.git import load as load_git
from tercet_export.registry import Options, network
from tercet_export.roles import ROLES
from tests.export import parity
from tests.tiny import GIT_SIZES, randomise

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def arch(tmp_path: Path) -> str:
    path = tmp_path / "git.json"
    path.write_text(json.dumps(asdict(GIT_SIZES)))
    return str(path)


@pytest.fixture
def official() -> Tensors:
    return randomise(GIT(GIT_SIZES), seed=5)


def in_hub_layout(official: Tensors) -> Tensors:
    return {
        hub: part.clone()
        for name, tensor in official.items()
        if name != UNUSED
        for hub, part in zip(hub_names(name), tensor.chunk(len(hub_names(name))), strict=True)
    }


def saved(tensors: object, folder: Path) -> Path:
    path = folder / "checkpoint.pth"
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize(("name", "config"), [("base", GIT_BASE), ("large", GIT_LARGE)])
def test_names_and_shapes_are_the_official_ones(name: str, config: GITConfig) -> None:
    with torch.device("meta"):
        own = GIT(config).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in own.items()} == parity.names_and_shapes(
        f"git_{name}_microsoft"
    )
    hub = {key: tuple(tensor.shape) for key, tensor in in_hub_layout(own).items()}
    assert hub == parity.names_and_shapes(f"git_{name}_coco_hf_hub_layout")


def test_every_layout_gives_the_same_network(official: Tensors, arch: str, tmp_path: Path) -> None:
    hub = in_hub_layout(official)
    positions = {"git.embeddings.position_ids": torch.arange(40)[None]}
    layouts = [
        {"model": official},
        {"model": {f"module.{name}": tensor for name, tensor in official.items()}},
        official,
        hub,
        hub | positions,
    ]
    pictures = torch.from_numpy(
        ROLES["captioner"].example_inputs({"V": GIT_SIZES.image_size}, {}, 2)["foreground"]
    )
    answers = []
    for tensors in layouts:
        graph = network("git-base").load(saved(tensors, tmp_path), Options(arch=arch)).graph
        assert isinstance(graph, Captioner)
        answers.append(graph(pictures))
    for token_ids, score in answers[1:]:
        assert torch.equal(token_ids, answers[0][0])
        assert torch.equal(score, answers[0][1])


def test_untied_output_is_kept(official: Tensors, arch: str, tmp_path: Path) -> None:
    output = official["textual.output.weight"].flip(0).clone()
    graph = load_git(saved(official | {"textual.output.weight": output}, tmp_path), Options(arch=arch)).graph
    kept = graph.network.textual
    assert torch.equal(kept.output.weight, output)
    assert torch.equal(kept.embedding["words"].weight, official["textual.embedding.words.weight"])


@pytest.mark.parametrize("layout", ["microsoft", "hub"])
@pytest.mark.parametrize("fault", ["missing", "unexpected", "wrong shapes"])
def test_refuses_what_does_not_fit_by_name(
    layout: str, fault: str, official: Tensors, arch: str, tmp_path: Path
) -> None:
    tensors = dict(official) if layout == "microsoft" else in_hub_layout(official)
    name = next(name for name in tensors if name.endswith("layer.1.attention.self.key.bias"))
    if fault == "missing":
        del tensors[name]
    elif fault == "unexpected":
        name = name.replace("key", "extra")
        tensors[name] = torch.zeros(3)
    else:
        tensors[name] = tensors[name][:-1]
    with pytest.raises(CheckpointError, match=f"{fault}.*{name}"):
        load_git(saved(tensors, tmp_path), Options(arch=arch))


def test_refuses_another_size(official: Tensors, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit.*wrong shapes.*768"):
        load_git(saved(official, tmp_path), Options())


def test_refuses_more_tokens_than_positions(official: Tensors, arch: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"41.*40 positions"):
        load_git(saved(official, tmp_path), Options(arch=arch, max_tokens=41))


def test_logits_train(official: Tensors) -> None:
    git = GIT(GIT_SIZES)
    pixels = torch.randn(2, 3, GIT_SIZES.image_size, GIT_SIZES.image_size)
    logits = git.logits(pixels, torch.tensor([[101, 104, 105], [101, 106, 107]]))
    assert logits.shape == (2, 3, GIT_SIZES.vocabulary)
    logits.square().mean().backward()
    without = {name for name, parameter in git.named_parameters() if parameter.grad is None}
    assert without == {UNUSED}


@pytest.mark.parametrize("beams", [1, 3])
def test_exported_graph_searches_as_torch_does(
    beams: int, official: Tensors, arch: str, tmp_path: Path
) -> None:
    official["textual.output.bias"][GIT_SIZES.end] = 0.5
    output = tmp_path / "model.onnx"
    # The export itself compares ids and scores with torch at batches 1, 2 and 5.
    export_network(network("git-base"), saved(official, tmp_path), output, Options(arch=arch, beams=beams))
    loops = [node for node in onnx.load(output).graph.node if node.op_type == "Loop"]
    assert len(loops) == 1
    assert loops[0].input[0] == ""  # no trip count: only the condition ends it
    session = onnxruntime.InferenceSession(output)
    pictures = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    token_ids, score = session.run(None, {"foreground": pictures})
    assert token_ids.shape == (7, GIT_SIZES.max_tokens)
    assert score.shape == (7, 1)
    assert np.isfinite(score).all()
    assert len({tuple(row) for row in token_ids}) > 1
    ended = np.cumsum(token_ids == GIT_SIZES.end, axis=1) > 0
    assert (token_ids[ended] == GIT_SIZES.end).all()


@pytest.mark.parametrize(
    ("precision", "used", "unused"), [("fp32", "ReduceMax", "TopK"), ("fp16", "TopK", "ReduceMax")]
)
def test_greedy_search_reduces_in_full_and_sorts_in_half(
    precision: str, used: str, unused: str, official: Tensors, arch: str, tmp_path: Path
) -> None:
    """Each is many times as fast as the other where it is used; see `SearchOptions.sort`."""
    official["textual.output.bias"] = torch.linspace(0, 8, GIT_SIZES.vocabulary)  # no near ties in fp16
    output = tmp_path / "model.onnx"
    options = Options(arch=arch, beams=1, precision=precision)
    export_network(network("git-base"), saved(official, tmp_path), output, options)
    over_words = {
        node.op_type
        for node in onnx_ir.load(output).graph.all_nodes()
        if node.inputs and node.inputs[0] is not None and node.inputs[0].shape
        if node.inputs[0].shape[-1] == GIT_SIZES.vocabulary
    }
    assert used in over_words
    assert unused not in over_words


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(GIT_SIZES, id="tiny"),
        pytest.param(GIT_LARGE, id="large", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_equals_transformers(config: GITConfig, tmp_path: Path) -> None:
    """Logits and greedy ids of GitForCausalLM, whose own checkpoint file is read."""
    theirs = in_transformers(config)
    randomise(theirs, seed=11)
    theirs.output.bias.data[config.end] = 1.0
    theirs.save_pretrained(tmp_path)
    (tmp_path / "git.json").write_text(json.dumps(asdict(config)))
    options = Options(arch=str(tmp_path / "git.json"), beams=1, max_tokens=12)
    graph = network("git-base").load(tmp_path / "model.safetensors", options).graph
    pictures = torch.from_numpy(
        ROLES["captioner"].example_inputs({"V": config.image_size}, {}, 3)["foreground"]
    )
    pixels = (pictures.permute(0, 3, 1, 2) / 255 - graph.mean) / graph.std
    ids = torch.randint(104, config.vocabulary, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = theirs(pixel_values=pixels, input_ids=ids).logits[:, -9:]
        torch.testing.assert_close(graph.network.logits(pixels, ids), wanted, atol=3e-5, rtol=1e-5)
        generated = theirs.generate(
            pixel_values=pixels, max_new_tokens=12, do_sample=False, pad_token_id=config.end
        )[:, 1:]
        token_ids, _ = graph(pictures)
    assert torch.equal(token_ids[:, : generated.shape[1]], generated)
    assert (token_ids[:, generated.shape[1] :] == config.end).all()


def in_transformers(config: GITConfig) -> torch.nn.Module:
    vision = transformers.GitVisionConfig(
        hidden_size=config.vision_width,
        intermediate_size=4 * config.vision_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
    )
    text = transformers.GitConfig(
        vision_config=vision.to_dict(),
        vocab_size=config.vocabulary,
        hidden_size=config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        intermediate_size=config.text_feedforward,
        max_position_embeddings=config.max_positions,
        bos_token_id=config.start,
        eos_token_id=config.end,
    )
    return transformers.GitForCausalLM(text).eval()


@pytest.fixture(scope="module")
def official_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("git") / "model.pt"
    torch.save({"model": parity.state_dict("git_base_microsoft", parity.git)}, path)
    return path


def official_view(image: np.ndarray, size: int) -> np.ndarray:
    """Torchvision's Resize(size, bicubic) and CenterCrop(size) of a Pillow picture."""
    picture = Image.fromarray(image)
    scale = size / min(picture.size)
    width, height = (size if side == min(picture.size) else int(side * scale) for side in picture.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("beams", "answer"), [(1, "greedy"), (4, "beam4_ms")])
def test_equals_microsoft(beams: int, answer: str, official_base: Path, tmp_path: Path) -> None:
    """From the picture to the ids; beam search's score too."""
    wanted = parity.expected("git_base")
    exported = export_network(
        network("git-base"), official_base, tmp_path / "model.onnx", Options(beams=beams, max_tokens=19)
    )
    session = onnxruntime.InferenceSession(exported.path)
    view = official_view(wanted["image"], GIT_BASE.image_size)
    token_ids, score = session.run(None, {"foreground": view[None]})
    assert token_ids.tolist() == wanted[answer][:, -19:].tolist()
    if beams > 1:
        np.testing.assert_allclose(score, wanted["beam4_ms_score"], rtol=1e-6)


@pytest.mark.slow
def test_logits_equal_microsoft(official_base: Path) -> None:
    wanted = parity.expected("git_base")
    graph = network("git-base").load(official_base).graph
    with torch.inference_mode():
        logits = graph.network.logits(torch.from_numpy(wanted["input"]), torch.from_numpy(wanted["ids"]))
    np.testing.assert_allclose(logits[:, :3].numpy(), wanted["output"], atol=3e-5)
    top = torch.from_numpy(wanted["logits_top50_ids"])
    np.testing.assert_allclose(logits.gather(2, top).numpy(), wanted["logits_top50"], atol=3e-5)


def test_official_recipe_is_the_default(official: Tensors, arch: str, tmp_path: Path) -> None:
    loaded = load_git(saved(official, tmp_path), Options(arch=arch))
    assert loaded.graph.options.beams == 4
    assert loaded.graph.options.length_penalty == 0.6
    assert loaded.details["max_tokens"] == GIT_SIZES.max_tokens
    assert loaded.preprocessing is not None
    assert (loaded.preprocessing.resize, loaded.preprocessing.kernel) == ("shortest", "bicubic")
