"""Validation finds what is wrong with a graph: batches, names, types, shapes, values, rows that mix."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tercet.errors import ExportError, ValidationError
from tercet_export import export
from tercet_export.export import export_network, write_graph
from tercet_export.registry import Loaded, Network, Options, network
from tercet_export.roles import ROLES, Tensor
from tercet_export.validate import compare, validate

ROLE = ROLES["image_to_token"]
SIZES = {"D": 4, "W": 4}


class Double(torch.nn.Module):
    """What the graphs below should compute."""

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor]:
        return (features * 2,)


LOADED = Loaded(Double(), SIZES)


def graph(
    path: Path,
    nodes: list[onnx.NodeProto] | None = None,
    names: tuple[str, str] = ("features", "pseudo_token"),
    shape: tuple[str | int, ...] = ("B", 4),
    dtype: int = TensorProto.FLOAT,
) -> Path:
    given, result = names
    nodes = nodes or [helper.make_node("Add", [given, given], [result])]
    tensors = [helper.make_tensor_value_info(name, dtype, shape) for name in names]
    model = helper.make_model(
        helper.make_graph(nodes, "g", tensors[:1], tensors[1:]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    onnx.save(model, path)
    return path


def test_right_graph_passes(tmp_path: Path) -> None:
    assert validate(graph(tmp_path / "g.onnx"), LOADED, ROLE) == {"pseudo_token": 0.0}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"names": ("features", "token")}, r"outputs are \['token'\]"),
        ({"names": ("feature", "pseudo_token")}, r"inputs are \['feature'\]"),
        ({"shape": ("B", 5)}, "shape"),
        ({"shape": (3, 4)}, "shape"),
        ({"shape": ("B", 2, 2)}, "shape"),
        ({"dtype": TensorProto.DOUBLE}, "double"),
        ({"nodes": [helper.make_node("Identity", ["features"], ["pseudo_token"])]}, "differs"),
    ],
)
def test_wrong_graph_is_refused(change: dict, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=fault):
        validate(graph(tmp_path / "g.onnx", **change), LOADED, ROLE)


class Coarse(torch.nn.Module):
    """Doubles, and loses more digits on the way than the role accepts."""

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor]:
        return ((features * 2 + 1e4) - 1e4,)


def test_a_graph_may_differ_by_what_the_network_itself_rounds(tmp_path: Path) -> None:
    coarse = Loaded(Coarse(), SIZES)
    assert 1e-4 < validate(graph(tmp_path / "g.onnx"), coarse, ROLE)["pseudo_token"] < 1e-3
    wrong = graph(tmp_path / "wrong.onnx", [helper.make_node("Identity", ["features"], ["pseudo_token"])])
    with pytest.raises(ValidationError, match="differs"):
        validate(wrong, coarse, ROLE)


def test_graph_that_is_right_at_the_traced_batch_only(tmp_path: Path) -> None:
    """As InSPyReNet's window_reverse is when exported as it stands: the batch of the trace is baked in."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [3, 4])
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("Add", ["features", "features"], ["sum"]),
        helper.make_node("Expand", ["sum", "shape"], ["pseudo_token"]),
    ]
    with pytest.raises(ValidationError, match="shape"):
        validate(graph(tmp_path / "g.onnx", nodes), LOADED, ROLE)


def test_rows_that_influence_each_other_are_found(tmp_path: Path) -> None:
    class Centred(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor]:
            return (features - features.mean(dim=0, keepdim=True),)

    loaded = Loaded(Centred(), SIZES)
    write_graph(loaded, ROLE, tmp_path / "g.onnx", "centred")
    with pytest.raises(ValidationError, match=r"differs from the network .* at batch 2"):
        validate(tmp_path / "g.onnx", loaded, ROLE)


def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"no graph")
    with pytest.raises(ValidationError, match="cannot be loaded"):
        validate(tmp_path / "g.onnx", LOADED, ROLE)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.1])
def test_values_that_differ(value: float) -> None:
    tensor = Tensor("x", "float32", ("B", 1), tolerance=0.01)
    expected = np.array([[1.0], [1.0]], np.float32)
    assert compare(tensor, expected + np.float32(0.005), expected, 2) == pytest.approx(0.005, rel=1e-3)
    with pytest.raises(ValidationError, match="row 1"):
        compare(tensor, np.array([[1.0], [value]], np.float32), expected, 2)


def wrong(checkpoint: Path, options: Options) -> Loaded:
    """A network whose torch graph answers otherwise when it is traced."""

    class Shifty(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor]:
            return (features + (1.0 if torch.compiler.is_compiling() else 0.0),)

    return Loaded(Shifty(), SIZES)


def untraceable(checkpoint: Path, options: Options) -> Loaded:
    """A network that torch.export cannot trace."""

    class Branching(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor]:
            return (features if float(features.sum()) > 0 else features * 2,)

    return Loaded(Branching(), SIZES)


@pytest.mark.parametrize("loader", [wrong, untraceable])
def test_failed_export_leaves_the_old_file(loader: object, tmp_path: Path) -> None:
    entry = Network("n", "image_to_token", "", "", "", "", None, (), loader)  # type: ignore[arg-type]
    (tmp_path / "model.onnx").write_bytes(b"old")
    (tmp_path / "weights").write_bytes(b"weights")
    with pytest.raises(ExportError):
        export_network(entry, tmp_path / "weights", tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "weights"]


def test_large_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny import write_tiny_lineup

    monkeypatch.setattr(export, "LARGEST_FILE", 1000)
    checkpoint = write_tiny_lineup(tmp_path).parent / "pic2word.safetensors"
    exported = export_network(network("pic2word"), checkpoint, tmp_path / "out" / "model.onnx")
    files = {file.name: file.stat().st_size for file in (tmp_path / "out").iterdir()}
    assert files.keys() == {"model.onnx", "model.onnx.data"}
    assert exported.bytes == sum(files.values())
    assert files["model.onnx.data"] > files["model.onnx"]


def test_nothing_of_the_machine_is_in_the_file(tiny_repository: Path) -> None:
    for file in tiny_repository.glob("*/1/model.onnx"):
        content = file.read_bytes()
        assert b"site-packages" not in content
        assert str(Path(export.__file__).parent).encode() not in content
