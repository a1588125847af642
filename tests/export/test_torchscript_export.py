"""TorchScript: equal to the network at batches not traced, on no fixed device, and as Triton reads it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from tritonclient.utils import np_to_triton_dtype
from typer.testing import CliRunner

from tercet.errors import ExportError, LineupError, ServerStartError, ValidationError
from tercet.server import EmbeddedServer
from tercet_export.cli import app
from tercet_export.export import TRACED_BATCH, export_network
from tercet_export.lineup import export_lineup
from tercet_export.registry import Loaded, Options, network
from tercet_export.repository import HAND_WRITTEN, read_manifest
from tercet_export.roles import ROLES
from tercet_export.torchscript_export import open_torchscript, write_torchscript
from tercet_export.validate import BATCHES, compare_with_network
from tests.export.test_registry import CASES, case, tiny  # noqa: F401
from tests.tiny import write_tiny_lineup

ARCHIVES = [name for name in CASES if network(name).role != "captioner"]
CAPTIONERS = [name for name in CASES if network(name).role == "captioner"]
SERVED = [role for role in ROLES if role != "captioner"]

MAPPER = ROLES["image_to_token"]
SIZES = {"D": 4, "W": 4}


def parse(file: Path) -> ModelConfig:
    return text_format.Parse(file.read_text(), ModelConfig())


def fixed_devices(archive: torch.jit.ScriptModule) -> list[str]:
    graph = archive.inlined_graph
    constants = graph.findAllNodes("prim::Constant")
    return [str(node) for node in constants if node.output().type().kind() == "DeviceObjType"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchscript")
    lineup = write_tiny_lineup(folder)
    sections = lineup.read_text().split("\n\n")
    chosen = "\n\n".join(section for section in sections if "[captioner]" not in section)
    lineup.write_text(chosen.replace("\nnetwork = ", '\nformat = "torchscript"\nnetwork = '))
    export_lineup(lineup, folder / "model_repository")
    return folder / "model_repository"


@pytest.mark.parametrize("name", ARCHIVES)
def test_network_in_torchscript(name: str, tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    """`export_network` compares batches 1, 2 and 5 with the network; here the archive stands alone."""
    assert TRACED_BATCH not in BATCHES
    checkpoint, options = case(name, tiny)
    exported = export_network(
        network(name), checkpoint, tmp_path / "model.pt", replace(options, format="torchscript")
    )
    role = ROLES[network(name).role]
    archive = torch.jit.load(str(exported.path))
    assert not fixed_devices(archive)
    inputs = role.example_inputs(exported.loaded.sizes, exported.loaded.details or {}, 4)
    outputs = archive(*(torch.from_numpy(inputs[tensor.name]) for tensor in role.inputs))
    sizes = {**exported.loaded.sizes, "B": 4}
    assert [tuple(output.shape) for output in outputs] == [tensor.shape(sizes) for tensor in role.outputs]


@pytest.mark.parametrize("name", CAPTIONERS)
def test_captioners_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"searches in a loop.*export it as onnx"):
        export_network(network(name), tmp_path / "none", tmp_path / "model.pt", Options(format="torchscript"))


def test_wrong_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="onnx or torchscript"):
        export_network(network("isnet"), tmp_path / "none", tmp_path / "m", Options(format="tensorrt"))
    options = Options(format="torchscript", precision="fp16")
    with pytest.raises(ExportError, match="fp16 is made from the ONNX graph"):
        export_network(network("isnet"), tmp_path / "none", tmp_path / "m", options)


def test_cli(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    checkpoint = str(tiny / "pic2word.safetensors")
    arguments = ["network", "pic2word", "--checkpoint", checkpoint, "--format", "torchscript", "--output"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "model.pt")])
    assert result.exit_code == 0, result.output
    assert torch.jit.load(str(tmp_path / "model.pt"))(torch.zeros(2, 32))[0].shape == (2, 32)


class FixedBatch(torch.nn.Module):
    """As code that asks for sizes in Python: the batch of the trace is in the archive."""

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor]:
        return (features.reshape(int(features.shape[0]), 2, 2).flatten(1) * 2,)


class OtherNames(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x,)


class MakesTensors(torch.nn.Module):
    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor]:
        return (features + torch.arange(features.shape[1], device=features.device),)


@pytest.mark.parametrize(
    ("kind", "fault"), [(FixedBatch, "fails at batch 1"), (OtherNames, r"inputs are \['x'\]")]
)
def test_wrong_archives_are_refused(kind: type, fault: str, tmp_path: Path) -> None:
    loaded = Loaded(kind(), SIZES)
    write_torchscript(loaded, MAPPER, tmp_path / "model.pt", "wrong", TRACED_BATCH)
    with pytest.raises(ValidationError, match=fault):
        compare_with_network(lambda: open_torchscript(tmp_path / "model.pt", MAPPER), loaded, MAPPER)


def test_tensors_are_made_where_the_input_is(tmp_path: Path) -> None:
    write_torchscript(Loaded(MakesTensors(), SIZES), MAPPER, tmp_path / "model.pt", "n", TRACED_BATCH)
    archive = torch.jit.load(str(tmp_path / "model.pt"))
    assert archive(torch.zeros(2, 4, device="meta"))[0].device.type == "meta"


@pytest.mark.parametrize("role", SERVED)
def test_configuration_is_the_archives(role: str, repository: Path) -> None:
    """By the backend's rules: inputs are forward's arguments, outputs the tuple's, all written out."""
    config = parse(repository / role / "configs" / "torchscript.pbtxt")
    assert (config.backend, config.default_model_filename) == ("pytorch", "model.pt")
    assert not (repository / role / "1" / "model.onnx").exists()
    archive = torch.jit.load(str(repository / role / "1" / config.default_model_filename))
    arguments = [argument.name for argument in archive.forward.schema.arguments[1:]]
    assert [tensor.name for tensor in config.input] == arguments
    assert not any("__" in tensor.name for tensor in config.output)  # else an index would be looked for
    for declared, tensors in ((config.input, ROLES[role].inputs), (config.output, ROLES[role].outputs)):
        assert [tensor.name for tensor in declared] == [tensor.name for tensor in tensors]
        for given, tensor in zip(declared, tensors, strict=True):
            assert DataType.Name(given.data_type).removeprefix("TYPE_") == np_to_triton_dtype(
                np.dtype(tensor.dtype)
            )
            wanted = [-1 if isinstance(dim, str) else dim for dim in tensor.dims[1:]]
            assert list(given.dims) == wanted


@pytest.mark.parametrize("model", ["captioner", "decode_image"])
def test_other_models_keep_their_gpu_variant(model: str) -> None:
    """One name of configurations is for the whole server: what stays ONNX or Python is as beside GPUs."""
    ours, gpu = (parse(HAND_WRITTEN / model / "configs" / f"{name}.pbtxt") for name in ("torchscript", "gpu"))
    for config in (ours, gpu):
        config.ClearField("instance_group")
    assert ours == gpu


def test_lineup_names_its_format(repository: Path) -> None:
    roles = read_manifest(repository)["roles"]
    assert {entry["format"] for entry in roles.values()} == {"torchscript"}


def test_lineup_of_one_format(tmp_path: Path) -> None:
    lineup = write_tiny_lineup(tmp_path)
    lineup.write_text(lineup.read_text().replace('"isnet"\n', '"isnet"\nformat = "torchscript"\n', 1))
    with pytest.raises(LineupError, match="mixes formats"):
        export_lineup(lineup, tmp_path / "model_repository")


@pytest.mark.parametrize("variant", [None, "torchscript"])
def test_embedded_server_says_that_it_cannot(variant: str | None, repository: Path) -> None:
    with pytest.raises(ServerStartError, match="no libtorch backend"):
        EmbeddedServer(repository, models=("image_to_token",), model_config_name=variant).start()
