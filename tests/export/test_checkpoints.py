"""Every container is read, and everything that is wrong with one is said without running its code."""

import io
import json
import os
import pickle
import sys
import types
import zipfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, List  # noqa: UP035

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from tercet.errors import CheckpointError
from tercet_export import checkpoints
from tercet_export.networks.isnet import ISNet
from tercet_export.registry import Options, network
from tercet_export.stand_ins import StandIn
from tests.export import parity
from tests.tiny import ISNET, git_weights, randomise

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tensors() -> Tensors:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c.0": torch.ones(2).half()}


def same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


WRITERS: dict[str, Callable[[Tensors, Path], None]] = {
    "safetensors": safetensors.torch.save_file,
    "state dict": torch.save,
    "legacy file": lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
    "nested": lambda tensors, path: torch.save({"epoch": 1, "model": tensors}, path),
    "data-parallel": lambda tensors, path: torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path
    ),
    "with NumPy scalars": lambda tensors, path: torch.save(
        {"loss": np.float64(0.25), "step": np.int64(3), "state_dict": tensors}, path
    ),
}


@pytest.mark.parametrize("container", WRITERS)
def test_containers(container: str, tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.any"
    WRITERS[container](tensors, path)
    assert same(checkpoints.read(path).tensors("model", "state_dict"), tensors)


class Tree(torch.nn.Module):
    """Modules named as the tensors' dotted names say."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            if rest:
                inner = {n.partition(".")[2]: t for n, t in tensors.items() if n.partition(".")[0] == head}
                self.add_module(head, Tree(inner))
            else:
                self.register_buffer(head, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def torchscript(tensors: Tensors, path: Path) -> None:
    torch.jit.save(torch.jit.trace(Tree(tensors), torch.zeros(1)), path)


def test_torchscript_archive_is_read_as_data(tensors: Tensors, tmp_path: Path) -> None:
    strided = tensors | {"d.e.f": torch.arange(12.0).reshape(3, 4).t(), "empty": torch.zeros(0)}
    torchscript(strided, tmp_path / "archive.pt")
    checkpoint = checkpoints.read(tmp_path / "archive.pt")
    assert checkpoint.container == "torchscript"
    assert same(checkpoint.tensors("state_dict"), strided)


class Evil:
    """Unpickling this runs a command."""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, ("touch executed",)


def evil_torch(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": Evil()}, path)


def evil_legacy(path: Path) -> None:
    torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=False)


def evil_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": Evil()}))


def evil_torchscript(path: Path) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(Tree({"a": torch.ones(2)}), torch.zeros(1)), buffer)
    with zipfile.ZipFile(buffer) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, pickle.dumps(Evil()) if name.endswith("/data.pkl") else good.read(name))


def evil_configuration(path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}, "args": Namespace(seed=1, data=Evil())}, path)


@pytest.mark.parametrize(
    "write", [evil_torch, evil_legacy, evil_pickle, evil_torchscript, evil_configuration]
)
def test_code_in_a_checkpoint_is_never_run(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="nothing was executed"):
        checkpoints.read(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


class Pretended:
    """Pickled under any name, as an object with a state or as a call of a class with arguments."""

    def __init__(self, name: str, *arguments: object, **state: object) -> None:
        self.name, self.arguments, self.state = name, arguments, state

    def __reduce__(self) -> tuple[object, ...]:
        module, _, name = self.name.rpartition(".")
        made = type(name, (), {"__module__": module})
        sys.modules.setdefault(module, types.ModuleType(module))
        setattr(sys.modules[module], name, made)
        return made, self.arguments, self.state or None


def test_configurations_beside_weights_are_looked_at_only(
    tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fairseq saves: Namespace, OmegaConf's containers with types in them, its own enumerations."""
    modules = ("omegaconf.dictconfig", "fairseq.dataclass.constants", "tasks.mm_tasks.caption", "fairseq.os")
    pretended = {parent for module in modules for parent in accumulate(module.split("."), "{}.{}".format)}
    for module in pretended:  # restored when the test is over
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    container = Pretended(
        "omegaconf.dictconfig.DictConfig",
        _content={"seed": 7},
        _types=(dict, str, Any, List[int]),  # noqa: UP006
        _cache=defaultdict(dict, {"a": {"b": 1}}),
    )
    task = Pretended("tasks.mm_tasks.caption.CaptionConfig", bpe_dir="utils/BPE")
    content = {
        "args": Namespace(arch="ofa_base", save_dir=Path("out")),
        "cfg": {
            "common": container,
            "task": task,
            "backend": Pretended("fairseq.dataclass.constants.C", "c10d"),
        },
        "model": tensors,
        "extra_state": Pretended("fairseq.os.system", "touch executed"),
    }
    torch.save(content, tmp_path / "fairseq.pt")
    for module in pretended:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.chdir(tmp_path)
    read = checkpoints.read(tmp_path / "fairseq.pt")
    assert same(read.tensors("model"), tensors)
    assert read.content["args"].arch == "ofa_base"
    assert read.content["cfg"]["common"]._content == {"seed": 7}
    assert read.content["cfg"]["common"]._cache == {"a": {"b": 1}}
    assert read.content["cfg"]["backend"].arguments == ("c10d",)
    assert {type(read.content[name]) for name in ("args", "extra_state")} == {StandIn}
    assert not {module.partition(".")[0] for module in sys.modules} & {"fairseq", "tasks"}
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "argparse.FileType", "omegaconfig.X", "_operator.attrgetter"]
)
def test_other_names_stay_forbidden(name: str, tmp_path: Path) -> None:
    module, _, function = name.rpartition(".")
    code = b"c" + module.encode() + b"\n" + function.encode() + b"\n(S'1'\ntR."
    torch.save({"a": torch.ones(1)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for record in good.namelist():
            bad.writestr(record, code if record.endswith("/data.pkl") else good.read(record))
    with pytest.raises(CheckpointError, match="nothing was executed"):
        checkpoints.read(tmp_path / "bad.pt")


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
@pytest.mark.parametrize("container", ["safetensors", "state dict", "legacy file", "torchscript"])
def test_truncated_file(container: str, share: float, tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(64, 64), "b": torch.randn(8)}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    (torchscript if container == "torchscript" else WRITERS[container])(tensors, whole)
    content = whole.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"cut.*(truncated|damaged|empty)"):
        checkpoints.read(cut)


def test_flipped_bit_in_a_zip_container(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"a": torch.zeros(4096)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.read(path)


@pytest.mark.parametrize(
    ("content", "cure"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"hello", "damaged"),
        (b"PK\x03\x04 and no more", "damaged"),
        (os.urandom(4096), "damaged"),
    ],
)
def test_what_is_no_checkpoint(content: bytes, cure: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=cure):
        checkpoints.read(tmp_path / "file")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"a": "text"}}, {}])
def test_checkpoint_without_state_dict(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"state.dict"):
        checkpoints.read(tmp_path / "file").tensors("state_dict")


def load_isnet(tensors: Tensors, folder: Path) -> None:
    torch.save(tensors, folder / "isnet.pth")
    network("isnet").load(folder / "isnet.pth", Options(arch=str(folder / "isnet.json")))


@pytest.fixture
def isnet(tmp_path: Path) -> Tensors:
    import json
    from dataclasses import asdict

    (tmp_path / "isnet.json").write_text(json.dumps(asdict(ISNET)))
    return randomise(ISNet(ISNET), 0)


def test_missing_tensor_is_named(isnet: Tensors, tmp_path: Path) -> None:
    del isnet["side1.bias"]
    with pytest.raises(CheckpointError, match=r"missing tensors: side1\.bias"):
        load_isnet(isnet, tmp_path)


def test_extra_tensor_is_named(isnet: Tensors, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"unexpected tensors: side7\.bias"):
        load_isnet(isnet | {"side7.bias": torch.ones(1)}, tmp_path)


def test_misshapen_tensor_is_named(isnet: Tensors, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"side1\.bias is 2 and should be 1"):
        load_isnet(isnet | {"side1.bias": torch.ones(2)}, tmp_path)


def test_values_that_are_not_finite(isnet: Tensors, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"finite numbers in side1\.bias"):
        load_isnet(isnet | {"side1.bias": torch.tensor([float("nan")])}, tmp_path)


def test_checkpoint_of_another_network_is_recognised(isnet: Tensors, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"GIT in Microsoft's layout, not of IS-Net"):
        load_isnet(git_weights(), tmp_path)
    torch.save(isnet, tmp_path / "isnet.pth")
    with pytest.raises(CheckpointError, match=r"IS-Net, not of open_clip's ViT-B-32-quickgelu"):
        network("clip-text").load(tmp_path / "isnet.pth", Options(arch="ViT-B-32-quickgelu"))
    with pytest.raises(CheckpointError, match="IS-Net"):
        network("pic2word").load(tmp_path / "isnet.pth")
    with pytest.raises(CheckpointError, match="IS-Net"):
        network("git-base").load(tmp_path / "isnet.pth")


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        ("isnet", "IS-Net"),
        ("clip_b32", "CLIP"),
        ("git_base_microsoft", "GIT in Microsoft's layout"),
        ("git_large_coco_hf_hub_layout", "GIT in the hub's layout"),
        ("pic2word_im2text", "Pic2Word's mapping network"),
    ],
)
def test_official_checkpoints_are_recognised(keys: str, family: str) -> None:
    assert checkpoints.recognise(parity.names_and_shapes(keys)) == family


def test_half_precision_weights_become_single(isnet: Tensors, tmp_path: Path) -> None:
    halves = {name: t.half() if t.is_floating_point() else t for name, t in isnet.items()}
    torch.save(halves, tmp_path / "isnet.pth")
    loaded = network("isnet").load(tmp_path / "isnet.pth", Options(arch=str(tmp_path / "isnet.json")))
    assert {parameter.dtype for parameter in loaded.graph.parameters()} == {torch.float32}


def test_paths_are_relative_to_the_lineup(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"x")
    assert checkpoints.resolve("weights.pt", tmp_path) == tmp_path / "weights.pt"
    with pytest.raises(CheckpointError, match=r"no checkpoint .*other\.pt"):
        checkpoints.resolve("other.pt", tmp_path)


def hub(monkeypatch: pytest.MonkeyPatch, files: dict[str, Path], missing: type[Exception]) -> None:
    def download(repository: str, file: str) -> str:
        if f"{repository}/{file}" not in files:
            raise missing(f"{file} is not there")
        return str(files[f"{repository}/{file}"])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


def test_hub_names_are_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = tmp_path / "w"
    hub(monkeypatch, {"org/net/pytorch_model.bin": weights, "org/net/a/b.pt": weights}, EntryNotFoundError)
    assert checkpoints.resolve("hf://org/net") == weights
    assert checkpoints.resolve("hf://org/net/a/b.pt") == weights
    with pytest.raises(CheckpointError, match=r"has none of c\.pt"):
        checkpoints.resolve("hf://org/net/c.pt")
    for bad in ("hf://", "hf://org", "hf://org/"):
        with pytest.raises(CheckpointError, match="hf://organisation/repository"):
            checkpoints.resolve(bad)


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {}, LocalEntryNotFoundError)
    with pytest.raises(CheckpointError, match="out of reach"):
        checkpoints.resolve("hf://org/net")


def test_hub_cache_is_used_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The layout of huggingface_hub's own cache, with the network forbidden."""
    snapshot = tmp_path / "models--org--net" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "models--org--net" / "refs").mkdir()
    (tmp_path / "models--org--net" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert checkpoints.resolve("hf://org/net").read_bytes() == b"weights"


def write_shards(folder: Path, tensors: Tensors) -> Path:
    """A checkpoint in two files with the hub's index."""
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        safetensors.torch.save_file({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def test_a_checkpoint_in_several_files_is_read_by_its_index(isnet: Tensors, tmp_path: Path) -> None:
    index = write_shards(tmp_path, isnet)
    read = checkpoints.read(index).tensors()
    assert read.keys() == isnet.keys()
    assert all(torch.equal(read[name], isnet[name]) for name in isnet)
    before = checkpoints.sha256(index)
    other = isnet | {min(isnet): isnet[min(isnet)] + 1}
    assert checkpoints.sha256(write_shards(tmp_path, other)) != before
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"names model-00002-of-00002\.safetensors, which is not beside it"
    ):
        checkpoints.read(index)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {"a": "../b.safetensors"}}'])
def test_an_index_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="no index of safetensors files"):
        checkpoints.read(tmp_path / "model.safetensors.index.json")


def test_an_index_without_its_tensor_is_refused(isnet: Tensors, tmp_path: Path) -> None:
    index = write_shards(tmp_path, isnet)
    index.write_text(index.read_text().replace(f'"{min(isnet)}"', '"invented"'))
    with pytest.raises(
        CheckpointError, match=r"lacks invented, which model\.safetensors\.index\.json places there"
    ):
        checkpoints.read(index)


def test_the_hubs_index_and_configuration_bring_their_files(
    isnet: Tensors, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = write_shards(tmp_path, isnet)
    fetched: list[str] = []

    def download(repository: str, file: str) -> str:
        fetched.append(file)
        if not (tmp_path / file).is_file():
            raise EntryNotFoundError(file)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert checkpoints.resolve("hf://org/net") == index
    assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} <= set(fetched)
    (tmp_path / "open_clip_model.safetensors").touch()
    (tmp_path / "open_clip_config.json").touch()
    fetched.clear()
    assert checkpoints.resolve("hf://org/net") == tmp_path / "open_clip_model.safetensors"
    assert fetched == ["open_clip_model.safetensors", "open_clip_config.json"]


@pytest.mark.parametrize("container", ["weights.safetensors", "weights.pt"])
def test_weights_stay_in_the_file_until_they_are_read(container: str, tmp_path: Path) -> None:
    """Hundreds of megabytes read cost no memory of that size."""
    tensors = {"a": torch.zeros(100_000_000)}
    if container.endswith("pt"):
        torch.save(tensors, tmp_path / container)
    else:
        safetensors.torch.save_file(tensors, tmp_path / container)
    del tensors

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    before = anonymous()
    content = checkpoints.read(tmp_path / container)
    assert content.tensors()["a"].sum() == 0
    assert anonymous() - before < 100_000  # kB of 400,000
