"""What the server is made of: the manifest that `tercet-export lineup` writes into the model repository."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tercet.errors import LineupError

__all__ = ["MANIFEST_FORMAT", "Checkpoint", "Lineup", "Role", "parse_lineup"]

MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Where a network's weights came from (`hf://org/repo/file` or a file's name), and the file's SHA-256."""

    source: str
    sha256: str


@dataclass(frozen=True)
class Role:
    """The network that fills one role, as it was exported.

    `details` holds what only some roles have: preprocessing, tokenizer, context length, embedding dimension.
    """

    network: str
    checkpoint: Checkpoint
    precision: str
    onnx_sha256: str
    parameters: int
    options: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lineup:
    """One choice of network and checkpoint for every role.

    `fingerprint` names all of it; `encoder_fingerprint` only what makes embeddings comparable: an index can
    be searched by any lineup with the same one.

    `engines` says what runs the networks, by role, where the server chose (`tercet serve --engine`): it is no
    part of the fingerprints, because an engine is only chosen if its embeddings are those of the others to a
    thousandth (1 - cosine). Empty: onnxruntime, or a server that does not tell.
    """

    name: str
    fingerprint: str
    encoder_fingerprint: str
    roles: Mapping[str, Role]
    versions: Mapping[str, str | None]
    engines: Mapping[str, str] = field(default_factory=dict)

    @property
    def context_length(self) -> int:
        """Tokens that the text encoder reads, start and end included; LineupError without a text encoder."""
        return self._detail("clip_text", "context_length")

    @property
    def embedding_dimension(self) -> int:
        """Numbers in an embedding; LineupError without an image encoder."""
        return self._detail("clip_image", "embedding_dimension")

    def _detail(self, role: str, key: str) -> int:
        if role not in self.roles:
            raise LineupError(f"lineup {self.name!r} has no {role}; serve one that has, such as demo")
        value = self.roles[role].details.get(key)
        if not isinstance(value, int):
            raise LineupError(f"lineup {self.name!r} does not say the {key} of its {role}; {_EXPORT_AGAIN}")
        return value


_EXPORT_AGAIN = "export the lineup again with the tercet-export that belongs to this client"


def parse_lineup(text: str | bytes) -> Lineup:
    """Read a manifest (`lineup.json`).

    Raises:
        LineupError: not JSON, of another format version, or without a field that every manifest has.
    """
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise LineupError(f"the server's lineup.json is not JSON ({error}); {_EXPORT_AGAIN}") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != MANIFEST_FORMAT:
        raise LineupError(
            f"the server's lineup.json has format {version!r} and this client reads {MANIFEST_FORMAT}; "
            "update the older of the two, client or exported lineup"
        )
    try:
        return Lineup(
            name=manifest["name"],
            fingerprint=manifest["fingerprint"],
            encoder_fingerprint=manifest["encoder_fingerprint"],
            roles=MappingProxyType({name: _role(entry) for name, entry in manifest["roles"].items()}),
            versions=MappingProxyType(dict(manifest["versions"])),
            engines=MappingProxyType(dict(manifest.get("engines", {}))),
        )
    except KeyError as error:
        raise LineupError(f"the server's lineup.json lacks {error.args[0]!r}; {_EXPORT_AGAIN}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise LineupError(f"the server's lineup.json is malformed ({error}); {_EXPORT_AGAIN}") from error


def _role(entry: Mapping[str, Any]) -> Role:
    common = {"network", "checkpoint", "precision", "onnx_sha256", "parameters", "options"}
    return Role(
        network=entry["network"],
        checkpoint=Checkpoint(entry["checkpoint"]["source"], entry["checkpoint"]["sha256"]),
        precision=entry["precision"],
        onnx_sha256=entry["onnx_sha256"],
        parameters=entry["parameters"],
        options=MappingProxyType(dict(entry["options"])),
        details=MappingProxyType({key: value for key, value in entry.items() if key not in common}),
    )
