"""Puts a staged lineup into a model repository in one go, beside the hand-written configurations that
Triton reads.

The repository's folders are: a model's `config.pbtxt` (by hand), `1/model.onnx` for a role (exported),
`1/model.py` for a Python model (by hand) with `1/lineup.json` and `1/tokenizer.json` (exported).
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tercet.errors import LineupError
from tercet_export.registry import FORMATS
from tercet_export.roles import ROLES

MANIFEST = "lineup.json"

# The Python models that read the manifest.
MANIFEST_READERS = ("decode_image", "tokenize_text", "detokenize_caption", "describe_lineup")

# The hand-written repository of the checkout that this package runs from.
HAND_WRITTEN = Path(__file__).parents[2] / "model_repository"


def read_manifest(target: Path) -> dict[str, Any]:
    """The manifest of the lineup in a repository; empty where there is none that can be read."""
    try:
        manifest = json.loads((target / MANIFEST_READERS[-1] / "1" / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def new_staging(target: Path) -> Path:
    """A new folder on the repository's file system, outside of it: Triton takes every folder for a model."""
    target = target.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-staging-"))
    except OSError as error:
        raise LineupError(f"nothing can be written beside {target}: {error}") from error


def install(staging: Path, target: Path, manifest: Mapping[str, Any]) -> None:
    """Move what `staging` holds into `target`, all or nothing: a failure on the way puts everything back.

    Roles that the lineup does not fill lose their weights and tokenizers; configurations that `target` lacks
    are copied from the checkout.
    """
    copy_hand_written(staging, target)
    for model in MANIFEST_READERS:
        folder = staging / model / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    moves = [
        (file, target / file.relative_to(staging))
        for file in sorted(staging.rglob("*"))
        if file.is_file() and file.relative_to(staging).parts[0] != "replaced"
    ]
    wanted = {destination for _, destination in moves}
    patterns = [f"{role}/1/{file}*" for role in ROLES for file in FORMATS.values()]
    there = [file for pattern in patterns for file in sorted(target.glob(pattern))]
    there += sorted(target.glob("*/1/tokenizer.json"))
    undo: list[tuple[Path, Path]] = []
    try:
        for file in set(there) - wanted:
            _move(file, staging / "replaced" / file.relative_to(target), undo)
        for file, destination in moves:
            if destination.exists():
                _move(destination, staging / "replaced" / destination.relative_to(target), undo)
            _move(file, destination, undo)
        for configuration in target.glob("*/config.pbtxt"):
            # Triton wants a version folder in every model, even where nothing goes into it.
            (configuration.parent / "1").mkdir(exist_ok=True)
    except BaseException as error:
        for source, destination in reversed(undo):
            os.replace(destination, source)
        if isinstance(error, OSError):
            raise LineupError(f"{target} could not be filled and is as it was: {error}") from error
        raise


def _move(source: Path, destination: Path, undo: list[tuple[Path, Path]]) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, destination)
    undo.append((source, destination))


def copy_hand_written(staging: Path, target: Path) -> None:
    """Stage a copy of every model of the checkout that `target` has no configuration for."""
    if target.resolve() == HAND_WRITTEN.resolve():
        return
    if not HAND_WRITTEN.is_dir():
        raise LineupError(
            f"no hand-written configurations at {HAND_WRITTEN}: run from a clone, with pip install -e"
        )
    exported = shutil.ignore_patterns("*.onnx", "*.data", "*.pt", "*.json", "__pycache__", ".*")
    for model in sorted(HAND_WRITTEN.iterdir()):
        if (model / "config.pbtxt").is_file() and not (target / model.name / "config.pbtxt").exists():
            shutil.copytree(model, staging / model.name, ignore=exported, dirs_exist_ok=True)


def commit() -> str | None:
    """The checkout's commit, marked where files differ from it; None outside of a checkout."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(describe, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
