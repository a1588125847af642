"""Ceilings: how they combine, the file they are in, and the script that measures them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tercet.bench.ceilings import Ceiling, ceiling_of, read_ceilings, write_ceilings
from tercet.bench.server import Step
from tercet.errors import InputError

ROWS = [
    Ceiling("decode_image", "Pillow", 100.0, outputs=("pixels",)),
    Ceiling("decode_image", "Pillow", 50.0, outputs=("scene", "view", "view_box")),
    Ceiling("clip_image", "slow", 30.0, 4),
    Ceiling("clip_image", "quick", 100.0, 8),
    Ceiling("search", "NumPy", 1000.0, size=10_000),
]
DECODE = Step("decode_image", frozenset({"pixels"}), network=False)
CLIP = Step("clip_image", frozenset({"embedding"}), network=True)
TOKENS = Step("tokenize_text", frozenset({"token_ids"}), network=False)


def test_steps_share_the_processors_one_after_another() -> None:
    assert ceiling_of([CLIP], ROWS) == 100
    assert ceiling_of([DECODE, CLIP], ROWS) == pytest.approx(50)
    assert ceiling_of([TOKENS, CLIP], ROWS) == 100, "tokens are not counted"


def test_a_search_takes_time_in_proportion_to_the_gallery() -> None:
    assert ceiling_of([CLIP], ROWS, gallery=10_000) == pytest.approx(1 / (1 / 100 + 1 / 1000))
    assert ceiling_of([CLIP], ROWS, gallery=100_000) == pytest.approx(1 / (1 / 100 + 1 / 100))


def test_without_a_row_there_is_no_ceiling() -> None:
    assert ceiling_of([DECODE, Step("captioner", frozenset(), network=True)], ROWS) is None
    assert ceiling_of([Step("decode_image", frozenset({"view"}), network=False)], ROWS) is None
    assert ceiling_of([TOKENS], ROWS) is None


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    write_ceilings(tmp_path / "ceilings.json", ROWS, {"threads": 2}, "f" * 64)
    assert read_ceilings(tmp_path / "ceilings.json") == (ROWS, "f" * 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "is not what benchmarks/ceilings.py writes"),
        ('{"format": 1, "rows": [{"a": 1}]}', "is not what benchmarks/ceilings.py writes"),
        ('{"format": 2}', "has format 2, not 1"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "file.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_ceilings(tmp_path / "file.json")


def test_every_step_of_a_repository_is_measured(tiny_repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "ceilings.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.ceilings",
        str(tiny_repository),
        str(file),
        "--seconds",
        "0.02",
    ]
    root = Path(__file__).parents[2]
    subprocess.run(command, check=True, cwd=root, capture_output=True, timeout=120)
    rows, fingerprint = read_ceilings(file)
    manifest = json.loads((tiny_repository / "decode_image" / "1" / "lineup.json").read_text())
    assert fingerprint == manifest["fingerprint"]
    assert {row.step for row in rows} == {*manifest["roles"], "decode_image", "search"}
    assert {row.outputs for row in rows if row.outputs} == {
        ("pixels",),
        ("scene", "view", "view_box"),
        ("view",),
    }
    assert all(row.per_second > 0 for row in rows)
