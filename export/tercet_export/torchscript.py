"""Reads the tensors of a TorchScript archive, OpenAI's container for CLIP, as data: its code is never loaded.

Such an archive is a zip with a pickle of the module tree (`data.pkl`), raw storages (`data/0`, ...) and
source code. `torch.load(weights_only=True)` refuses it and `torch.jit.load` compiles the code, so the
pickle is read here by the standard library's documented means for untrusted input: an unpickler whose
`find_class` knows only the few inert names below. Every class of the archive itself becomes an empty
attribute bag.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from tercet.errors import CheckpointError

STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Bag:
    """Stands for any module of the archive: keeps its attributes and does nothing."""


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Whether a zip file is TorchScript rather than what `torch.save` writes."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor attribute of the archive's modules by its dotted name, as `state_dict` would name it.

    Raises CheckpointError for a damaged archive and for a pickle that asks for anything but tensors and
    modules.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _Reader(archive, path).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"TorchScript archive {path} is damaged ({error}): download it again"
        ) from error
    except (AttributeError, IndexError, RuntimeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"TorchScript archive {path} cannot be understood: {error}") from error
    tensors: dict[str, torch.Tensor] = {}
    _collect(root, "", tensors, depth=0)
    return tensors


def _collect(value: object, name: str, found: dict[str, torch.Tensor], depth: int) -> None:
    if depth > 64:
        raise CheckpointError(f"the TorchScript archive's modules are nested too deeply at {name}")
    for key, child in vars(value).items() if isinstance(value, Bag) else ():
        path = f"{name}.{key}" if name else key
        if isinstance(child, torch.Tensor):
            found[path] = child
        else:
            _collect(child, path, found, depth + 1)


def _rebuild_tensor(
    storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: object
) -> torch.Tensor:
    """What `torch._utils._rebuild_tensor_v2` does, on a flat tensor: torch refuses views past its end."""
    return torch.as_strided(storage, size, stride, offset)


def _keep(value: object, *_rest: object) -> object:
    """Typed lists and tags of TorchScript are their value."""
    return value


ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch.jit._pickle", f"build_{kind}list"): _keep for kind in ("int", "double", "bool", "tensor")},
    ("torch.jit._pickle", "restore_type_tag"): _keep,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class _Reader(pickle.Unpickler):
    """Unpickles `data.pkl` of an open archive with nothing but the names in ALLOWED."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.archive, self.path = archive, path
        names = archive.namelist()
        self.folder = next(name for name in names if name.endswith("/constants.pkl")).rpartition("/")[0]
        order = f"{self.folder}/byteorder"
        if order in names and archive.read(order) != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine: convert it to safetensors")
        self.storages: dict[str, torch.Tensor] = {}
        super().__init__(archive.open(f"{self.folder}/data.pkl"))

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return type(name, (Bag,), {})
        if (module, name) not in ALLOWED:
            raise CheckpointError(
                f"{self.path} asks for {module}.{name} while it is read and could run code: nothing "
                "was executed. Ask its author for safetensors"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> torch.Tensor:
        _kind, dtype, key, _device, _count = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}/data/{key}"))
            self.storages[key] = (
                torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        return self.storages[key]
