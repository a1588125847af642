"""Lineups: one choice of network and checkpoint for every role, exported together into a model repository.

Everything is made in a staging folder beside the repository and moved in at the end (`repository.py`): an
export that fails leaves the repository as it was. A role whose checkpoint, options and exporter are those
of the file already there is not exported again.
"""

import hashlib
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import pydantic

from tercet.errors import CheckpointError, LineupError
from tercet_export import checkpoints, registry, repository, vocabulary
from tercet_export.export import Exported, export_network
from tercet_export.registry import EVERYWHERE, FORMATS, Network, Options
from tercet_export.roles import ROLES

FORMAT = 1
LINEUPS = Path(__file__).parent / "lineups"

# The Python model that reads each role's tokenizer.
TOKENIZER_READERS = {"clip_text": "tokenize_text", "captioner": "detokenize_caption"}

# What may differ between two exports whose embeddings can still be compared.
NOT_THE_ENCODER = ("onnx_sha256", "format", "exporter", "versions", "clip_digest")


class Choice(pydantic.BaseModel):
    """A role's section of the file. Paths are relative to the file; `sha256` pins the checkpoint.

    `home` tells where people get a checkpoint that no program may fetch.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    network: str
    checkpoint: str
    home: str | None = None
    sha256: str | None = None
    tokenizer: str | None = None
    arch: str | None = None
    size: int | None = None
    beams: int | None = None
    max_tokens: int | None = None
    precision: str = "fp32"
    format: str = "onnx"


class Lineup(pydantic.BaseModel):
    """The file as read: a name and a choice for each role that is to be served."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    background_remover: Choice | None = None
    captioner: Choice | None = None
    clip_image: Choice | None = None
    clip_text: Choice | None = None
    image_to_token: Choice | None = None

    def choices(self) -> dict[str, Choice]:
        """The sections that are there, by role."""
        return {role: choice for role in ROLES if (choice := getattr(self, role)) is not None}


@dataclass(frozen=True)
class Progress:
    """Told to the caller after each role: `exported` is None where the file already there was kept."""

    role: str
    network: str
    exported: Exported | None


def available() -> list[str]:
    """The lineups that come with the package."""
    return sorted(path.stem for path in LINEUPS.glob("*.toml"))


def read_lineup(name_or_file: str | Path) -> tuple[Lineup, Path]:
    """A lineup and the folder its paths are relative to; LineupError names the field that is wrong."""
    path = LINEUPS / f"{name_or_file}.toml"
    if not path.is_file():
        path = Path(name_or_file)
    if not path.is_file():
        raise LineupError(
            f"there is no lineup {name_or_file!r}: give one of {', '.join(available())}, or a .toml file"
        )
    try:
        lineup = Lineup.model_validate(_read_sections(path))
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())
        raise LineupError(f"lineup {path} is wrong: {faults}") from error
    choices = lineup.choices()
    if not choices:
        raise LineupError(f"lineup {path} fills no role: add a section for {', '.join(ROLES)}")
    for role, choice in choices.items():
        fills = registry.network(choice.network).role
        if fills != role:
            raise LineupError(f"lineup {path}: network {choice.network!r} fills {fills}, not {role}")
    formats = {choice.format for role, choice in choices.items() if role != "captioner"}
    if "torchscript" in formats and len(formats) > 1:
        raise LineupError(
            f"lineup {path} mixes formats: Triton takes the configurations of one name for all models, "
            'so write format = "torchscript" in every section but that of the captioner, or in none'
        )
    return lineup, path.parent


def _read_sections(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's content, on top of that of the lineup which it `extends`: whole sections are replaced."""
    if path.resolve() in extended_by:
        raise LineupError(f"lineup {path} extends itself, by way of {', '.join(p.name for p in extended_by)}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LineupError(f"lineup {path} is not TOML: {error}") from error
    if (extends := content.pop("extends", None)) is None:
        return content
    below = LINEUPS / f"{extends}.toml"
    if not below.is_file():
        below = path.parent / f"{extends}"
    if not below.is_file():
        raise LineupError(
            f"lineup {path} extends {extends!r}, which is neither one of {', '.join(available())} nor a file"
        )
    inherited = _read_sections(below, (*extended_by, path.resolve()))
    inherited.pop("name", None)
    for section in inherited.values():
        if isinstance(section, dict) and below.parent != path.parent:
            section |= {
                key: str((below.parent / section[key]).resolve())
                for key in ("checkpoint", "tokenizer", "arch")
                if isinstance(section.get(key), str) and (below.parent / section[key]).is_file()
            }
    return inherited | content


def _find(choice: Choice, base: Path) -> Path:
    """The checkpoint's file; a CheckpointError also says where its home is."""
    try:
        return checkpoints.resolve(choice.checkpoint, base)
    except CheckpointError as error:
        if choice.home is None:
            raise
        raise CheckpointError(f"{error}. Get it from {choice.home}") from error


def export_lineup(
    name_or_file: str | Path,
    target: Path,
    *,
    before: Callable[[str, Choice], None] = lambda role, choice: None,
    after: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Fill the model repository `target` with a lineup and return its manifest.

    `before` and `after` are called around each role. Raises ExportError and its kinds; `target` is then
    unchanged.
    """
    lineup, base = read_lineup(name_or_file)
    present = repository.read_manifest(target).get("roles", {})
    staging = repository.new_staging(target)
    try:
        files = {role: _find(choice, base) for role, choice in lineup.choices().items()}
        roles: dict[str, dict[str, Any]] = {}
        for role, choice in lineup.choices().items():
            before(role, choice)
            roles[role], exported = _export_role(
                role, choice, files[role], base, present.get(role), target, staging
            )
            after(Progress(role, choice.network, exported))
        check_consistent(roles)
        manifest = {
            "format": FORMAT,
            "name": lineup.name,
            "fingerprint": digest(roles),
            "encoder_fingerprint": encoder_fingerprint(roles),
            "versions": {**versions(), "commit": repository.commit()},
            "roles": roles,
        }
        repository.install(staging, target, manifest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _export_role(
    role: str,
    choice: Choice,
    checkpoint: Path,
    base: Path,
    present: Mapping[str, Any] | None,
    target: Path,
    staging: Path,
) -> tuple[dict[str, Any], Exported | None]:
    """Stage a role's files: its entry of the manifest, and what was exported unless it was there."""
    network = registry.network(choice.network)
    options = _options(choice, base)
    sha256 = checkpoints.sha256(checkpoint)
    if choice.sha256 and choice.sha256.lower() != sha256:
        raise LineupError(f"{choice.checkpoint} has SHA-256 {sha256}, the lineup asks for {choice.sha256}")
    folder = staging / role / "1"
    folder.mkdir(parents=True)
    entry: dict[str, Any] = {
        "network": network.name,
        "checkpoint": {"source": choice.checkpoint, "sha256": sha256},
        "options": _described(network, options),
        "precision": options.precision,
        "format": options.format,
        "exporter": exporter(),
        "versions": versions(),
    }
    exported = None
    if present is not None and _same(entry, present) and _keep(target / role / "1", folder, present):
        entry = {**present, "checkpoint": entry["checkpoint"]}
    else:
        exported = export_network(network, checkpoint, folder / FORMATS[options.format], options)
        entry |= {"onnx_sha256": exported.onnx_sha256, "parameters": exported.parameters}
        if exported.loaded.preprocessing is not None:
            entry["preprocessing"] = asdict(exported.loaded.preprocessing)
        entry |= exported.loaded.details or {}
    if role in TOKENIZER_READERS:
        details = entry["tokenizer"]
        source = choice.tokenizer or vocabulary.default_source(details, choice.checkpoint, checkpoint)
        tokenizer = vocabulary.build(details, source, base)
        file = staging / TOKENIZER_READERS[role] / "1" / "tokenizer.json"
        file.parent.mkdir(parents=True)
        tokenizer.save(str(file), pretty=False)
        entry["tokenizer"] = {
            **entry["tokenizer"],
            "file": file.name,
            "vocabulary_sha256": digest(tokenizer.get_vocab()),
        }
    return entry, exported


def _options(choice: Choice, base: Path) -> Options:
    arch = choice.arch
    if arch is not None and arch.endswith(".json"):
        arch = str(base / arch)
    return Options(arch, choice.size, choice.beams, choice.max_tokens, choice.precision, choice.format)


def _described(network: Network, options: Options) -> dict[str, Any]:
    """The options for the manifest: only those set, a file by its name and content."""
    described = {name: value for name, value in asdict(network.resolve(options)).items() if value is not None}
    for name in EVERYWHERE:
        del described[name]
    arch = described.get("arch", "")
    if arch.endswith(".json"):
        described |= {"arch": Path(arch).name, "arch_sha256": checkpoints.sha256(Path(arch))}
    return described


def _same(entry: Mapping[str, Any], present: Mapping[str, Any]) -> bool:
    """Whether exporting again would give what is there: all but where the checkpoint lies is equal."""
    return all(present.get(name) == value for name, value in entry.items() if name != "checkpoint") and entry[
        "checkpoint"
    ]["sha256"] == present.get("checkpoint", {}).get("sha256")


def _keep(there: Path, folder: Path, present: Mapping[str, Any]) -> bool:
    """Link the graph that is there into `folder`, if it is the one that the manifest describes."""
    graph = there / FORMATS.get(present.get("format", "onnx"), "")
    if not graph.is_file() or checkpoints.sha256(graph) != present.get("onnx_sha256"):
        return False
    for file in there.glob(f"{graph.name}*"):
        try:
            os.link(file, folder / file.name)
        except OSError:
            shutil.copy2(file, folder / file.name)
    return True


def check_consistent(roles: Mapping[str, Mapping[str, Any]]) -> None:
    """LineupError where roles that work together do not fit: CLIP's two encoders, the mapping network."""
    image, text, mapper = (roles.get(role) for role in ("clip_image", "clip_text", "image_to_token"))
    if image and text and image["checkpoint"]["sha256"] != text["checkpoint"]["sha256"]:
        raise LineupError(
            "clip_image and clip_text come from different checkpoints: their embeddings cannot be compared. "
            "Give both sections the same checkpoint"
        )
    if mapper and image and mapper["feature_width"] != image["embedding_dimension"]:
        raise LineupError(
            f"image_to_token maps {mapper['feature_width']} features, "
            f"clip_image gives {image['embedding_dimension']}: take the CLIP that it was trained with"
        )
    if mapper and text and text.get("tokenizer", {}).get("placeholder", "*") is None:
        raise LineupError(
            f"clip_text takes no pseudo-words ({text.get('arch')} is no CLIP), image_to_token makes them: "
            "leave that section out, or take the CLIP that it was trained with"
        )
    if mapper and text and mapper["token_width"] != text["token_width"]:
        raise LineupError(
            f"image_to_token makes pseudo-words {mapper['token_width']} wide, clip_text takes "
            f"{text['token_width']}: take the CLIP that it was trained with"
        )
    trained_for = mapper.get("clip_digest") if mapper else None
    if trained_for and image and image.get("clip_digest", trained_for) != trained_for:
        raise LineupError(
            "image_to_token was trained for other weights of CLIP than clip_image has, though of the same "
            "size: take the CLIP that it was trained with. The checkpoint of Pic2Word's training holds it: "
            "it can be that of clip_image and clip_text too"
        )


def digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def encoder_fingerprint(roles: Mapping[str, Mapping[str, Any]]) -> str:
    """Names what makes embeddings comparable: weights, options, preprocessing and tokenizer of the two
    encoders.

    Where the checkpoint came from and which versions exported it do not count.
    """
    encoders = {}
    for role in ("clip_image", "clip_text"):
        entry = {name: value for name, value in roles.get(role, {}).items() if name not in NOT_THE_ENCODER}
        encoders[role] = entry | {"checkpoint": entry.get("checkpoint", {}).get("sha256")}
    return digest(encoders)


def versions() -> dict[str, str]:
    """The versions of what makes an export."""
    packages = {name: version(name) for name in ("tercet", "torch", "onnx", "onnxscript")}
    # Of the module: it may come from another wheel, onnxruntime-gpu for one.
    return packages | {"onnxruntime": onnxruntime.__version__}


@cache
def exporter() -> str:
    """SHA-256 of this package's own code: another exporter may make another graph."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()
