"""Reads checkpoints of every official container without running any code that they carry.

safetensors, torch's zip and legacy files (`weights_only=True`), OpenAI's TorchScript archives
(`torchscript.py`) and `hf://organisation/repository[/file]`. Whatever is wrong is a CheckpointError that
names the tensor or the cause.
"""

import contextlib
import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import huggingface_hub
import numpy as np
import safetensors
import safetensors.torch
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from tercet.errors import CheckpointError
from tercet_export import torchscript
from tercet_export.downloads import download
from tercet_export.stand_ins import stand_ins

# Looked for in a hub repository when no file is named: safetensors first.
HUB_FILES = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
SHARD_INDEX = ".safetensors.index.json"

# What lies beside weights in a hub repository and says what they are; fetched with them.
HUB_COMPANIONS = {
    "open_clip_model.safetensors": "open_clip_config.json",
    "open_clip_pytorch_model.bin": "open_clip_config.json",
}

# A tensor that only one family has, most particular first.
SIGNATURES = (
    ("visual.trunk.pos_embed", "a SigLIP model"),
    ("visual_encoder.visual.conv1.weight", "mPLUG"),
    ("text_decoder.bert.embeddings.word_embeddings.weight", "BLIP"),
    ("encoder.embed_images.conv1.weight", "OFA"),
    ("textual.embedding.words.weight", "GIT in Microsoft's layout"),
    ("git.embeddings.word_embeddings.weight", "GIT in the hub's layout"),
    ("conv_in.conv.weight", "IS-Net's ground-truth encoder, which only training uses"),
    ("stage1d.rebnconvin.conv_s1.weight", "IS-Net"),
    ("outconv.weight", "U2-Net"),
    ("context1.branch0.conv.weight", "InSPyReNet"),
    ("bb.patch_embed.proj.weight", "BiRefNet"),
    ("vision_model.embeddings.class_embedding", "CLIP as transformers stores it; open_clip's is needed"),
    ("text_projection", "CLIP"),
    ("text.text_projection", "CLIP with a custom text tower"),
    ("fc_out.weight", "Pic2Word's mapping network"),
    ("layers.6.weight", "SEARLE's and LinCIR's mapping network"),
)

# Training loops leave NumPy scalars (losses, epochs) in their checkpoints: these build numbers only.
_SCALAR = np.core.multiarray.scalar  # type: ignore[attr-defined]
NUMPY_SCALARS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float16", "float32", "float64")),
]


@dataclass(frozen=True)
class Checkpoint:
    """A file as read; `container` is "safetensors", "torch" or "torchscript"."""

    path: Path
    container: str
    content: Mapping[str, Any]

    def tensors(self, *under: str) -> dict[str, torch.Tensor]:
        """The state dict: `content[name]` for the first name in `under` that is there, else `content` itself.

        A `module.` before every name (left by data-parallel training) is removed. CheckpointError where
        there is no state dict of tensors.
        """
        found: Any = next((self.content[name] for name in under if name in self.content), self.content)
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            raise CheckpointError(f"{self.path} holds no state dict: {_describe(self.content)}")
        strangers = [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
        if strangers or not found:
            wanted = f" under {' or '.join(map(repr, under))}" if under else ""
            raise CheckpointError(
                f"{self.path} holds no state dict of tensors{wanted}: {_describe(self.content)}. "
                "Save the network's state_dict() and export that"
            )
        prefix = "module."
        if all(name.startswith(prefix) for name in found):
            return {name.removeprefix(prefix): tensor for name, tensor in found.items()}
        return dict(found)


def resolve(source: str, base: Path = Path()) -> Path:
    """The local file that `source` names: a path relative to `base`, `hf://organisation/repository[/file]`,
    or `https://host/path/file`.

    Files of the hub come through huggingface_hub: its cache, its token, and its HF_HUB_OFFLINE.
    """
    if source.startswith("https://"):
        return download(source)
    if source.startswith("hf://"):
        repository, _, file = source.removeprefix("hf://").partition("/")[2].partition("/")
        organisation = source.removeprefix("hf://").partition("/")[0]
        if not organisation or not repository:
            raise CheckpointError(
                f"{source!r} names no repository: write hf://organisation/repository[/file]"
            )
        return hub_file(f"{organisation}/{repository}", *([file] if file else HUB_FILES))
    path = base / Path(source).expanduser()
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    return path


def hub_file(repository: str, *files: str) -> Path:
    """The first of `files` that the hub's repository has, downloaded or from the local cache."""
    uncached = False
    for file in files:
        try:
            path = Path(huggingface_hub.hf_hub_download(repository, file))
        except LocalEntryNotFoundError:
            uncached = True
        except EntryNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(f"hf://{repository}/{file} cannot be downloaded: {error}") from error
        except ValueError as error:
            raise CheckpointError(f"hf://{repository} is no repository's name: {error}") from error
        else:
            _fetch_companions(repository, file, path)
            return path
    if uncached:
        raise CheckpointError(
            f"hf://{repository} is not in the local cache and the hub is out of reach: connect or give a file"
        )
    raise CheckpointError(
        f"hf://{repository} has none of {', '.join(files)}: name a file, hf://{repository}/FILE"
    )


def _fetch_companions(repository: str, file: str, path: Path) -> None:
    """Fetch what belongs beside a file of the hub: its configuration if it has one, an index's files."""
    if file in HUB_COMPANIONS:
        with contextlib.suppress(OSError, EntryNotFoundError):  # absent, or offline and not in the cache
            huggingface_hub.hf_hub_download(repository, HUB_COMPANIONS[file])
    if file.endswith(SHARD_INDEX):
        folder = file.rpartition("/")[0]
        for part in shards(path):
            hub_file(repository, f"{folder}/{part}".lstrip("/"))


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal; of an index of several files, that of their SHA-256s in order."""
    if path.name.endswith(SHARD_INDEX):
        parts = [sha256(path.parent / name) for name in sorted(shards(path))]
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> Checkpoint:
    """Read a checkpoint whatever its container, judged by its first bytes, never by its name.

    The one exception is `*.safetensors.index.json`, the hub's index of a checkpoint in several files.
    """
    if path.name.endswith(SHARD_INDEX):
        return _read_shards(path)
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    if not head:
        raise CheckpointError(f"checkpoint {path} is empty: download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull`")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is a web page, not a checkpoint: download the file itself")
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith(".npy") for name in archive.namelist()):
                    raise CheckpointError(
                        f"{path} holds NumPy arrays, as big_vision publishes SigLIP: take open_clip's copy "
                        "of it, such as hf://timm/ViT-B-16-SigLIP"
                    )
                scripted = torchscript.is_torchscript(archive)
                damaged = archive.testzip()  # torch itself does not check
        except zipfile.BadZipFile as error:
            raise CheckpointError(_damaged(path, error)) from error
        if damaged:
            raise CheckpointError(f"checkpoint {path} is damaged in its record {damaged}: download it again")
        if scripted:
            return Checkpoint(path, "torchscript", torchscript.read_tensors(path))
    return _read_torch(path)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        return Checkpoint(path, "safetensors", safetensors.torch.load_file(path))
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"checkpoint {path} is truncated or damaged safetensors ({error}): download it again"
        ) from error


def shards(index: Path) -> dict[str, list[str]]:
    """The files beside a `*.safetensors.index.json` that hold the checkpoint, and each one's tensors."""
    try:
        places = json.loads(index.read_text())["weight_map"]
        files: dict[str, list[str]] = {}
        for tensor, file in places.items():
            if Path(file).name != file:
                raise ValueError(f"{file!r} is not a file beside it")
            files.setdefault(file, []).append(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of safetensors files ({error})") from error
    return files


def _read_shards(index: Path) -> Checkpoint:
    content: dict[str, torch.Tensor] = {}
    for file, names in shards(index).items():
        path = index.parent / file
        if not path.is_file():
            raise CheckpointError(f"{index} names {file}, which is not beside it: download it too")
        part = _read_safetensors(path).content
        missing = [name for name in names if name not in part]
        if missing:
            raise CheckpointError(
                f"{path} lacks {_some(missing)}, which {index.name} places there: download it again"
            )
        content |= {name: part[name] for name in names}
    return Checkpoint(index, "safetensors", content)


def _read_torch(path: Path) -> Checkpoint:
    try:
        # What is mapped needs no memory until it is read; torch maps zip files only.
        mapped = zipfile.is_zipfile(path)
        inert = stand_ins(path) if mapped else []
        with torch.serialization.safe_globals([*NUMPY_SCALARS, *inert]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        stranger = re.search(r"(?:GLOBAL|class|function|callable) ([\w.]+\.\w+)", str(error))
        if stranger is None:
            cause = str(error).rpartition("WeightsUnpickler error: ")[2].partition("\n")[0]
            raise CheckpointError(
                f"{path} is no checkpoint, or a damaged one ({cause}): nothing was executed"
            ) from error
        raise CheckpointError(
            f"{path} asks for {stranger[1]} while it is read and could run code: nothing was executed. "
            "Ask its author for safetensors, or for a file with nothing but the state dict"
        ) from error
    except (
        safetensors.SafetensorError,  # torch reads a file that is called so by safetensors
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        OSError,
    ) as error:
        raise CheckpointError(_damaged(path, error)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return Checkpoint(path, "torch", content)


def recognise(names: Mapping[str, Any]) -> str | None:
    """Which family's checkpoint has tensors of these names; None where it is none we know."""
    return next((family for signature, family in SIGNATURES if signature in names), None)


def fill(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], path: Path, what: str) -> None:
    """Copy `tensors` into `module`, which must have exactly these names and shapes (see `check`)."""
    check(module.state_dict(), tensors, path, what)
    module.load_state_dict(dict(tensors))


def check(
    expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], path: Path, what: str
) -> None:
    """CheckpointError unless `tensors` has exactly the names and shapes of `expected`, and finite values.

    The message names the first missing, unexpected or misshapen tensors, or the network that the file is of
    where it is another; `what` names the network that was wanted.
    """
    family = recognise(tensors)
    if family and family != recognise(expected):
        raise CheckpointError(f"{path} looks like a checkpoint of {family}, not of {what}")
    problems = {
        "missing tensors": [name for name in expected if name not in tensors],
        "unexpected tensors": [name for name in tensors if name not in expected],
        "wrong shapes": [
            f"{name} is {_shape(tensors[name])} and should be {_shape(tensor)}"
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }
    found = [f"{problem}: {_some(names)}" for problem, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"{path} does not fit {what}. {'; '.join(found)}. Check the network and its --arch"
        )
    broken = [
        name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())
    ]
    if broken:
        raise CheckpointError(
            f"{path} has values that are not finite numbers in {_some(broken)}: it is damaged"
        )


def _some(names: list[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _damaged(path: Path, error: BaseException) -> str:
    return f"checkpoint {path} is truncated or damaged ({_first_line(error)}): download it again"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _describe(content: Mapping[str, Any]) -> str:
    held = [f"{name!r} ({type(value).__name__})" for name, value in list(content.items())[:5]]
    return f"it holds {', '.join(held) or 'nothing'}"
