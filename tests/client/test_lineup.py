"""Reading the server's manifest."""

import copy
import json
from typing import Any

import pytest

from tercet.errors import LineupError
from tercet.lineup import parse_lineup
from tercet.testing import MANIFEST


def manifest(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(MANIFEST) | changes


def test_what_every_manifest_has_is_read() -> None:
    lineup = parse_lineup(json.dumps(manifest(versions={"torch": "2.15", "commit": None})))
    assert (lineup.name, lineup.fingerprint, lineup.encoder_fingerprint) == ("fake", "f" * 64, "e" * 64)
    assert lineup.versions["commit"] is None
    assert lineup.roles["captioner"].details["max_tokens"] == 20
    assert lineup.roles["captioner"].checkpoint.sha256 == "0" * 64
    assert lineup.context_length == 77
    assert lineup.embedding_dimension == 16


def test_a_lineup_cannot_be_changed() -> None:
    lineup = parse_lineup(json.dumps(manifest()))
    with pytest.raises(TypeError):
        lineup.roles["captioner"] = lineup.roles["clip_text"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("not json", "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        ("[]", "format None"),
        (json.dumps(manifest(format=2)), "format 2 and this client reads 1; update the older"),
        (json.dumps({"format": 1, "name": "x"}), "lacks 'fingerprint'"),
        (json.dumps(manifest(roles={"captioner": {"network": "git-base"}})), "lacks 'checkpoint'"),
        (json.dumps(manifest(roles=[])), "malformed"),
        (json.dumps(manifest(roles={"captioner": 3})), "malformed"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_fault(text: str | bytes, complaint: str) -> None:
    with pytest.raises(LineupError, match=complaint):
        parse_lineup(text)


def test_a_lineup_without_a_text_encoder_says_so() -> None:
    lineup = parse_lineup(json.dumps(manifest(roles={})))
    with pytest.raises(LineupError, match="has no clip_text"):
        _ = lineup.context_length
    with pytest.raises(LineupError, match="has no clip_image"):
        _ = lineup.embedding_dimension
