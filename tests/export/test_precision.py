"""fp16: what is converted and what is not, and a gate that refuses what fp16 breaks."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch
from onnx_ir import DataType
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from tercet.errors import ExportError, ValidationError
from tercet_export import export, gate, precision
from tercet_export.export import export_network, write_graph
from tercet_export.gate import rendered, validate_half
from tercet_export.registry import Loaded, Options, network
from tercet_export.roles import ROLES
from tercet_export.validate import open_graph, reference
from tests.export import parity
from tests.export.test_blip import full_size as blip_weights
from tests.export.test_registry import CASES, IN_THE_LINEUP, case, tiny  # noqa: F401
from tests.tiny_mplug import official_weights as mplug_weights

ROLE = ROLES["image_to_token"]
SIZES = {"D": 16, "W": 16}

# One of each family that the tiny lineup does not hold.
SIBLINGS = ("git-large", "blip-large", "mplug-large", "ofa-tiny", "ofa-medium", "ofa-large", "lincir")
OTHERS = [name for name in CASES if name not in (*IN_THE_LINEUP, *SIBLINGS)]


class Function(torch.nn.Module):
    """A graph for `image_to_token` from a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: Tensor) -> tuple[Tensor]:
        return (self.function(features),)


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[0] ** -0.5


W, V = weights(16, 16), weights(16, 16, seed=1)


def half_graph(function, path: Path) -> tuple[Loaded, onnx_ir.Model]:
    loaded = Loaded(Function(function), SIZES)
    write_graph(loaded, ROLE, path, "function", half=True)
    return loaded, onnx_ir.load(path)


def produced(model: onnx_ir.Model, operation: str) -> list[DataType | None]:
    """The type of each output of an operation."""
    return [node.outputs[0].dtype for node in model.graph.all_nodes() if node.op_type == operation]


def casts(model: onnx_ir.Model) -> Iterator[tuple[onnx_ir.Node, onnx_ir.Value]]:
    for node in model.graph.all_nodes():
        if node.op_type == "Cast" and node.inputs[0] is not None:
            yield node, node.inputs[0]


def check_economical(path: Path) -> None:
    """Weights in fp16, no value converted twice, none of the outside converted inside a loop, no detours."""
    model = onnx_ir.load(path)
    for value in model.graph.initializers.values():
        assert value.dtype != DataType.FLOAT or value.const_value.size <= 1024, value.name
    seen = set()
    for node, value in casts(model):
        to = node.attributes["to"].as_int()
        assert (value, to) not in seen, f"{value.name} is converted twice"
        seen.add((value, to))
        float_types = (DataType.FLOAT, DataType.FLOAT16)
        if value.dtype in float_types and to in float_types:
            assert value.producer() is None or value.producer().op_type != "Cast", value.name
            assert value.producer() is None or value.producer().graph is node.graph, value.name


@pytest.fixture(scope="module")
def half_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tercet_export.lineup import export_lineup
    from tests.tiny import write_tiny_lineup

    folder = tmp_path_factory.mktemp("half")
    lineup = write_tiny_lineup(folder)
    lineup.write_text(lineup.read_text().replace("\nnetwork = ", '\nprecision = "fp16"\nnetwork = '))
    export_lineup(lineup, folder / "model_repository")
    return folder / "model_repository"


@pytest.mark.parametrize("role", ROLES)
def test_lineup_in_half(role: str, half_repository: Path, tiny_repository: Path) -> None:
    """Every role passed the gate; its file shrinks by the weights, all of them."""
    half, whole = (folder / role / "1" / "model.onnx" for folder in (half_repository, tiny_repository))
    check_economical(half)
    weights = sum(value.const_value.nbytes for value in onnx_ir.load(whole).graph.initializers.values())
    assert half.stat().st_size < whole.stat().st_size - 0.4 * weights


def test_only_networks_with_attention_take_its_operator_set(half_repository: Path) -> None:
    """ONNX Runtime's CUDA provider has no kernel for that set's MaxPool."""
    for role in ROLES:
        model = onnx_ir.load(half_repository / role / "1" / "model.onnx")
        attends = "Attention" in {node.op_type for node in model.graph.all_nodes()}
        assert attends == (role in ("captioner", "clip_image", "clip_text"))
        assert (model.opset_imports[""] >= 23) == attends


def test_half_lineup_is_served(half_repository: Path) -> None:
    """On the embedded Triton, whose ONNX Runtime needs care with fp16 on a CPU."""
    import io

    from PIL import Image

    from tercet.client import Client
    from tercet.server import EmbeddedServer

    file = io.BytesIO()
    Image.fromarray(rendered(96, 1)).save(file, "PNG")
    with EmbeddedServer(half_repository) as server, Client(server.grpc_address) as client:
        assert client.caption(file.getvalue())
        for embedding in (client.embed_images([file.getvalue()])[0], client.embed_texts(["a red star"])[0]):
            assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_in_half(name: str, tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    checkpoint, options = case(name, tiny)
    exported = export_network(
        network(name), checkpoint, tmp_path / "model.onnx", replace(options, precision="fp16")
    )
    assert exported.differences
    check_economical(exported.path)


def test_public_types_stay(tmp_path: Path) -> None:
    loaded, _ = half_graph(lambda x: x @ W, tmp_path / "g.onnx")
    worst = validate_half(tmp_path / "g.onnx", loaded, ROLE)
    assert 0 < worst["pseudo_token"] < 1e-6


def test_overflow_is_refused(tmp_path: Path) -> None:
    """In fp16 the middle is infinite. ONNX Runtime on a CPU does not show it: rounding every result does."""
    loaded, _ = half_graph(
        lambda x: ((x @ (W * 1000)) * 1000).relu() * 1e-3 @ (V * 1e-3), tmp_path / "g.onnx"
    )
    inputs = ROLE.example_inputs(SIZES, {}, 4)
    found = open_graph(tmp_path / "g.onnx", loaded, ROLE, gate.LEVEL)(inputs)[0]
    assert np.abs(found - reference(loaded, ROLE, inputs)["pseudo_token"]).max() < 0.01
    with pytest.raises(ValidationError, match=r"not finite in fp16.*precision fp32"):
        validate_half(tmp_path / "g.onnx", loaded, ROLE)


def test_lost_digits_are_refused(tmp_path: Path) -> None:
    loaded, _ = half_graph(lambda x: (x @ W + 3000) - 3000, tmp_path / "g.onnx")
    with pytest.raises(ValidationError, match=r"1 - cosine .* precision fp32"):
        validate_half(tmp_path / "g.onnx", loaded, ROLE)


def test_refused_export_leaves_the_old_file(tmp_path: Path) -> None:
    from tercet_export.registry import Network

    def loader(checkpoint: Path, options: Options) -> Loaded:
        return Loaded(Function(lambda x: (x @ W + 3000) - 3000), SIZES)

    entry = Network("n", ROLE.name, "", "", "", "", None, (), loader)
    (tmp_path / "model.onnx").write_bytes(b"old")
    (tmp_path / "weights").write_bytes(b"weights")
    with pytest.raises(ValidationError):
        export_network(entry, tmp_path / "weights", tmp_path / "model.onnx", Options(precision="fp16"))
    assert (tmp_path / "model.onnx").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_sums_and_softmax_are_in_fp32(tmp_path: Path) -> None:
    def attend(x: Tensor) -> Tensor:
        x = x @ W
        scores = x[:, None, :] * x[:, :, None]
        x = (scores.softmax(dim=-1) @ x[:, :, None])[..., 0]
        return x / (1 + x.square().sum(dim=-1, keepdim=True))

    loaded, model = half_graph(attend, tmp_path / "g.onnx")
    assert produced(model, "Softmax") == [DataType.FLOAT]
    assert set(produced(model, "MatMul")) == {DataType.FLOAT16}
    assert set(produced(model, "Div")) == {DataType.FLOAT}
    validate_half(tmp_path / "g.onnx", loaded, ROLE)


def test_attention_is_one_operator_in_fp16_and_spelt_out_in_fp32(tmp_path: Path) -> None:
    def attend(x: Tensor) -> Tensor:
        tokens = (x @ W).view(-1, 2, 4, 2)  # (B, heads, tokens, d)
        return torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)

    loaded = Loaded(Function(attend), SIZES)
    write_graph(loaded, ROLE, tmp_path / "half.onnx", "function", half=True, fused=True)
    half = onnx_ir.load(tmp_path / "half.onnx")
    assert produced(half, "Attention") == [DataType.FLOAT16]
    assert not produced(half, "Softmax")
    validate_half(tmp_path / "half.onnx", loaded, ROLE)
    write_graph(loaded, ROLE, tmp_path / "full.onnx", "function")
    assert not produced(onnx_ir.load(tmp_path / "full.onnx"), "Attention")
    write_graph(loaded, ROLE, tmp_path / "unfused.onnx", "function", half=True, fused=False)
    assert produced(onnx_ir.load(tmp_path / "unfused.onnx"), "Softmax") == [DataType.FLOAT]


def test_a_norms_own_statistics_stay_in_fp32() -> None:
    rows, scale = onnx_ir.val("rows", DataType.FLOAT, [1, 16]), weights(16, 16)
    product = onnx_ir.node(
        "MatMul", [rows, onnx_ir.val("weights", const_value=onnx_ir.tensor(scale.repeat(2, 4)))]
    )
    norm = onnx_ir.node("LayerNormalization", [product.outputs[0], rows], num_outputs=3)
    planned = precision.Plan()
    for node in (product, norm):
        for value in node.outputs:
            value.dtype = DataType.FLOAT
    planned.graph(onnx_ir.Graph([rows], norm.outputs, nodes=[product, norm]))
    assert [planned.kinds[value] for value in norm.outputs] == [
        precision.Kind.HALF,
        precision.Kind.FULL,
        precision.Kind.FULL,
    ]


def test_masks_beyond_fp16(tmp_path: Path) -> None:
    """The smallest float fills a mask; a row that is all masked gives equal weights, and no NaN."""

    def attend(x: Tensor) -> Tensor:
        x = x @ W
        scores = (x[:, None, :] * x[:, :, None]).masked_fill(
            torch.arange(16)[:, None] < 8, torch.finfo(torch.float32).min
        )
        return (scores.softmax(dim=-1) @ x[:, :, None])[..., 0]

    loaded, _ = half_graph(attend, tmp_path / "g.onnx")
    validate_half(tmp_path / "g.onnx", loaded, ROLE)


def test_an_epsilon_that_fp16_has_not(tmp_path: Path) -> None:
    def standardise(x: Tensor) -> Tensor:
        x = (x @ W).relu() * 0
        return x / (x.amax(dim=-1, keepdim=True) + 2e-8) + 1

    loaded, _ = half_graph(standardise, tmp_path / "g.onnx")
    validate_half(tmp_path / "g.onnx", loaded, ROLE)


def test_loop_keeps_caches_in_fp16_and_totals_in_fp32(tmp_path: Path) -> None:
    """As in a captioner: what the loop reads from outside is converted once, outside."""

    def search(x: Tensor) -> Tensor:
        memory = (x @ W).softmax(dim=-1)  # fp32, needed in fp16 by the body

        def unfinished(step: Tensor, cache: Tensor, total: Tensor) -> Tensor:
            return step < 4

        def body(step: Tensor, cache: Tensor, total: Tensor) -> tuple[Tensor, ...]:
            new = (memory + cache) @ V
            return step + 1, cache + new, total + new.log_softmax(dim=-1)

        state = (torch.zeros((), dtype=torch.int64), torch.zeros_like(x), torch.zeros_like(x))
        if torch.compiler.is_compiling():
            return while_loop(unfinished, body, state)[2]
        while unfinished(*state):
            state = body(*state)
        return state[2]

    loaded, model = half_graph(search, tmp_path / "g.onnx")
    (loop,) = (node for node in model.graph if node.op_type == "Loop")
    assert sorted(str(value.dtype) for value in loop.outputs) == ["FLOAT", "FLOAT16", "INT64"]
    check_economical(tmp_path / "g.onnx")
    validate_half(tmp_path / "g.onnx", loaded, ROLE)


def test_a_constant_used_in_both_ways(tmp_path: Path) -> None:
    shared = weights(16)
    loaded, model = half_graph(lambda x: ((x * shared).softmax(dim=-1) @ W) + shared, tmp_path / "g.onnx")
    kept = [value.dtype for value in model.graph.initializers.values() if value.shape == (16,)]
    assert sorted(map(str, kept)) == ["FLOAT", "FLOAT16"]
    validate_half(tmp_path / "g.onnx", loaded, ROLE)


def test_weights_below_fp16_keep_their_product_in_fp32(tmp_path: Path) -> None:
    """Of numbers near 1e-6, fp16 keeps a digit or two."""
    loaded, model = half_graph(lambda x: (x @ (W * 1e-6) * 1e6) @ V, tmp_path / "g.onnx")
    assert produced(model, "MatMul") == [DataType.FLOAT, DataType.FLOAT16]
    assert validate_half(tmp_path / "g.onnx", loaded, ROLE)["pseudo_token"] < 1e-6


def test_a_weight_shared_by_an_embedding_and_a_product(tmp_path: Path) -> None:
    """Too large for the exporter to transpose beforehand: it stays one copy, in fp16."""
    words = weights(20_000, 16) * 100

    def speak(x: Tensor) -> Tensor:
        return torch.nn.functional.embedding((x @ words.T).argmax(dim=-1), words)

    loaded, model = half_graph(speak, tmp_path / "g.onnx")
    assert produced(model, "Transpose") == [DataType.FLOAT16]
    assert (tmp_path / "g.onnx").stat().st_size < 2.1 * words.numel()
    validate_half(tmp_path / "g.onnx", loaded, ROLE)


def test_weights_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "LARGEST_FILE", 200)
    loaded, _ = half_graph(lambda x: x @ W, tmp_path / "g.onnx")
    assert (tmp_path / "g.onnx.data").stat().st_size == 16 * 16 * 2
    validate_half(tmp_path / "g.onnx", loaded, ROLE)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["g.onnx", "g.onnx.data"]


def test_operation_without_a_rule() -> None:
    body = onnx_ir.Graph([], [], nodes=[], name="body")
    node = onnx_ir.node("Scan", [], {"body": body, "num_scan_inputs": 0})
    model = onnx_ir.Model(
        onnx_ir.Graph([], [], nodes=[node], opset_imports={"": 20}, name="g"), ir_version=10
    )
    with pytest.raises(ExportError, match="Scan in fp16"):
        precision.to_half(model)


def test_rendered_scenes_are_pictures() -> None:
    scene = rendered(64, 0)
    assert (scene == rendered(64, 0)).all()
    assert (scene != rendered(64, 2)).any()
    assert scene.dtype == np.uint8
    assert scene.std() > 10
    assert np.abs(np.diff(scene.astype(int), axis=1)).mean() < 12  # smooth, as noise is not


# Full-size networks with deterministic weights: the parity layout, the rule of its values, the key of its
# container, the options.
FULL_SIZE = {
    "isnet": ("isnet", parity.by_shape, None, Options()),
    "clip-image": ("clip_b32", parity.clip, None, Options(arch="ViT-B-32-quickgelu")),
    "clip-text": ("clip_b32", parity.clip, None, Options(arch="ViT-B-32-quickgelu")),
    "git-base": ("git_base_microsoft", parity.git, "model", Options()),
    "inspyrenet": ("inspyrenet_swinb", parity.inspyrenet, None, Options(size=384)),
    "ofa-base": ("ofa_base", parity.ofa, None, Options()),
    "mplug-base": ("mplug_base", mplug_weights, "model", Options()),
    "blip-base": ("hf_blip_base_caption", blip_weights, None, Options()),
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_network_in_half(name: str, tmp_path: Path) -> None:
    """It passes the gate at half the size."""
    layout, rule, key, options = FULL_SIZE[name]
    state = parity.state_dict(layout, rule)
    torch.save({key: state} if key else state, tmp_path / "weights.pth")
    exported = export_network(
        network(name), tmp_path / "weights.pth", tmp_path / "model.onnx", replace(options, precision="fp16")
    )
    print(name, f"{exported.bytes / 1e6:.0f} MB", exported.differences)
    sizes = dict.fromkeys(DataType, 0)
    for value in onnx_ir.load(exported.path).graph.initializers.values():
        sizes[value.dtype] += value.const_value.nbytes
    assert sizes[DataType.FLOAT] < 0.02 * sizes[DataType.FLOAT16]
    assert exported.differences.keys() == {tensor.name for tensor in ROLES[network(name).role].outputs}


def test_masks_that_differ_are_refused() -> None:
    mask = next(tensor for tensor in ROLES["background_remover"].outputs if tensor.name == "mask")
    wanted = {"mask": np.random.default_rng(0).random((8, 16, 16), np.float32)}
    for wrong, passes in ((0.004, True), (0.006, False)):
        found = {"mask": wanted["mask"] + np.float32(wrong)}
        if passes:
            assert gate.distance(mask, found, wanted) == pytest.approx(wrong, rel=1e-3)
        else:
            with pytest.raises(ValidationError, match=r"mask.* mean difference 0\.006"):
                gate.distance(mask, found, wanted)
