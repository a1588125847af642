"""The registry is complete and consistent: a network without a case here fails the collection."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tercet.errors import ExportError
from tercet_export import registry
from tercet_export.export import export_network
from tercet_export.networks.git import GITConfig
from tercet_export.registry import Options, architecture, network, networks
from tercet_export.roles import ROLES
from tercet_export.validate import validate
from tests.tiny import write_tiny_lineup
from tests.tiny_blip import write_blip
from tests.tiny_inspyrenet import write_inspyrenet
from tests.tiny_mplug import write_mplug
from tests.tiny_ofa import write_ofa
from tests.tiny_pic2word import write_phi

# The tiny checkpoint of each network and its architecture.
CASES: Mapping[str, tuple[str, str | None]] = {
    "blip-base": ("blip.safetensors", "blip.json"),
    "blip-large": ("blip.safetensors", "blip.json"),
    "clip-image": ("clip.safetensors", "clip.json"),
    "clip-text": ("clip.safetensors", "clip.json"),
    "git-base": ("git.safetensors", "git.json"),
    "git-large": ("git.safetensors", "git.json"),
    "inspyrenet": ("inspyrenet.safetensors", "inspyrenet.json"),
    "isnet": ("isnet.safetensors", "isnet.json"),
    "lincir": ("phi.pt", None),
    "mplug-base": ("mplug.safetensors", "mplug.json"),
    "mplug-large": ("mplug.safetensors", "mplug.json"),
    "ofa-base": ("ofa.safetensors", "ofa.json"),
    "ofa-large": ("ofa.safetensors", "ofa.json"),
    "ofa-medium": ("ofa.safetensors", "ofa.json"),
    "ofa-tiny": ("ofa.safetensors", "ofa.json"),
    "pic2word": ("pic2word.safetensors", None),
    "searle": ("phi.pt", None),
}

# Those that the tiny lineup exports; the others are exported here.
IN_THE_LINEUP = ("clip-image", "clip-text", "git-base", "isnet", "pic2word")

if set(CASES) != set(networks()):
    raise AssertionError(f"networks and cases differ: {set(CASES) ^ set(networks())}")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_lineup(tmp_path_factory.mktemp("tiny")).parent
    write_inspyrenet(folder)
    write_phi(folder / "phi.pt")
    write_blip(folder)
    write_ofa(folder)
    write_mplug(folder)
    return folder


def case(name: str, folder: Path) -> tuple[Path, Options]:
    checkpoint, arch = CASES[name]
    return folder / checkpoint, Options(arch=str(folder / arch) if arch else None)


@pytest.mark.parametrize("name", CASES)
def test_network_answers_in_its_roles_terms(name: str, tiny: Path) -> None:
    """Names, types and shapes of the torch graph's outputs, from example inputs alone."""
    from tercet_export.validate import reference

    entry = network(name)
    role = ROLES[entry.role]
    loaded = entry.load(*case(name, tiny))
    inputs = role.example_inputs(loaded.sizes, loaded.details or {}, 2)
    outputs = reference(loaded, role, inputs)
    sizes = {**loaded.sizes, "B": 2}
    for tensor in role.inputs:
        assert (inputs[tensor.name].dtype, inputs[tensor.name].shape) == (tensor.dtype, tensor.shape(sizes))
    for tensor in role.outputs:
        assert (outputs[tensor.name].dtype, outputs[tensor.name].shape) == (tensor.dtype, tensor.shape(sizes))


@pytest.mark.parametrize("name", IN_THE_LINEUP)
def test_exported_file_computes_what_the_network_does(name: str, tiny: Path, tiny_repository: Path) -> None:
    entry = network(name)
    checkpoint, options = case(name, tiny)
    if entry.role == "captioner":
        options = Options(arch=options.arch, beams=2)
    loaded = entry.load(checkpoint, options)
    differences = validate(tiny_repository / entry.role / "1" / "model.onnx", loaded, ROLES[entry.role])
    assert differences.keys() == {tensor.name for tensor in ROLES[entry.role].outputs}


@pytest.mark.parametrize("name", sorted(set(CASES) - set(IN_THE_LINEUP)))
def test_other_networks_export(name: str, tiny: Path, tmp_path: Path) -> None:
    checkpoint, options = case(name, tiny)
    if network(name).role == "captioner":
        options = Options(arch=options.arch, beams=1)
    assert export_network(network(name), checkpoint, tmp_path / "model.onnx", options).parameters > 0


def test_unknown_network_lists_the_known() -> None:
    with pytest.raises(ExportError, match=r"'isnett'.*clip-image, .*isnet"):
        network("isnett")


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (Options(beams=4), "no option 'beams': it takes arch, size, precision"),
        (Options(precision="int3"), "choose fp32"),
        (Options(size=0), "at least 1"),
        (Options(arch="isnet-huge"), "isnet, or a .json file"),
        (Options(arch="absent.json"), "absent.json"),
    ],
)
def test_wrong_options_are_refused(options: Options, cure: str, tiny: Path) -> None:
    with pytest.raises(ExportError, match=cure):
        network("isnet").load(tiny / "isnet.safetensors", options)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ExportError, match="two networks are called 'isnet'"):
        registry.register(
            name="isnet",
            role="captioner",
            title="",
            source="",
            code_licence="",
            weights_licence="",
            arch=None,
        )(lambda checkpoint, options: pytest.fail("never loaded"))


@pytest.mark.parametrize("content", ["{", "[]", '{"image_sise": 3}', '{"image_size": 3, "end": '])
def test_architecture_file_must_fit(content: str, tmp_path: Path) -> None:
    (tmp_path / "arch.json").write_text(content)
    with pytest.raises(ExportError, match=r"arch\.json cannot be used"):
        architecture(str(tmp_path / "arch.json"), {}, GITConfig)
