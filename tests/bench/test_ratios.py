"""Ratios out of what the scripts write, the bars they are held against, and what counts as a regression."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import pages, ratios
from benchmarks.__main__ import LONGER, PARTS
from benchmarks.peers.rounds import Round
from benchmarks.ratios import Ratio, collect, regressions
from benchmarks.rows import write_rows

ROOT = Path(__file__).parents[2]


def measured(middle: float, reach: float = 0.05, higher: bool = True) -> Ratio:
    return Ratio("a ratio", middle, middle * (1 - reach), middle * (1 + reach), None, higher)


@pytest.mark.parametrize(
    ("now", "kept", "worse"),
    [
        (measured(2.0), measured(2.0), False),
        (measured(3.0), measured(2.0), False),
        (measured(1.5), measured(2.0), True),
        (measured(1.5, 0.4), measured(2.0), False),  # the ranges meet
        (measured(1.7, 0.0), measured(2.0, 0.0), False),  # less than a fifth
        (measured(2.5, higher=False), measured(2.0, higher=False), True),
        (measured(1.5, higher=False), measured(2.0, higher=False), False),
        (measured(0.03, 0.0, False), measured(0.02, 0.0, False), False),  # of a share near zero
    ],
)
def test_a_regression_is_worse_by_a_fifth_and_out_of_range(now: Ratio, kept: Ratio, worse: bool) -> None:
    assert bool(regressions([now], [kept])) is worse


def test_what_is_new_is_no_regression() -> None:
    assert not regressions([measured(1.0)], [])


def test_a_bar_is_reached_from_the_right_side() -> None:
    assert Ratio("a", 2, 2, 2, 1.5).reached
    assert not Ratio("a", 2, 2, 2, 1.5, higher_is_better=False).reached
    assert Ratio("a", 2, 2, 2).reached is None


def a_round(system: str, number: int, throughput: float) -> Round:
    return Round(
        "ViT-B/32", "embed_image", 16, system, number, throughput, 1, 2, 3, 0, 1.5, 100, 1.0, 0.1, 0.0
    )


def test_only_the_best_peer_has_the_bar(tmp_path: Path) -> None:
    rounds = [
        a_round(system, number, rate)
        for system, rate in (("tercet", 60.0), ("slow", 15.0), ("quick", 50.0))
        for number in range(3)
    ]
    write_rows(tmp_path / "peers.csv", rounds)
    found = {ratio.name.rpartition("by ")[2]: ratio for ratio in collect(tmp_path)}
    assert found["slow's throughput"].median == pytest.approx(4)
    assert found["slow's throughput"].bar is None
    assert found["quick's throughput"].bar == 4
    assert not found["quick's throughput"].reached


def test_the_command_keeps_and_compares(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    command = [sys.executable, "-m", "benchmarks.ratios", str(tmp_path), "--kept", str(kept)]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=60)

    write_rows(tmp_path / "peers.csv", [a_round("tercet", 1, 60.0), a_round("other", 1, 20.0)])
    assert run("--keep").returncode == 0
    assert [entry["median"] for entry in json.loads(kept.read_text())] == [3.0]
    assert run().returncode == 0
    write_rows(tmp_path / "peers.csv", [a_round("tercet", 1, 40.0), a_round("other", 1, 20.0)])
    worse = run()
    assert worse.returncode == 1
    assert "WORSE: embed_image, ViT-B/32, 16 clients: by other's throughput: 2, was 3" in worse.stderr
    # Another run of the same code: from now on so little is no regression, less is.
    assert run("--widen").returncode == 0
    (entry,) = json.loads(kept.read_text())
    assert (entry["median"], entry["least"], entry["largest"]) == (3.0, 2.0, 3.0)
    assert run().returncode == 0
    write_rows(tmp_path / "peers.csv", [a_round("tercet", 1, 38.0), a_round("other", 1, 20.0)])
    assert run().returncode == 1


def test_the_kept_ratios_are_of_parts_that_there_are() -> None:
    assert ratios.load(ratios.KEPT), "docs/ratios.json is what `make bench` compares with"


def test_a_page_without_the_place_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n<!-- one: by a script -->\nold\n<!-- end of one -->\nrest\n")
    pages.fill(page, "one", ["new", "lines"])
    assert page.read_text() == "# Title\n<!-- one: by a script -->\nnew\nlines\n<!-- end of one -->\nrest\n"
    with pytest.raises(ValueError, match="no place for two"):
        pages.fill(page, "two", [])


@pytest.mark.parametrize("part", [name for name in (*PARTS, *LONGER) if name not in ("server", "query")])
def test_every_part_has_a_script_that_tells_how_it_is_used(part: str) -> None:
    """Without the full-size repository: the script that a part runs is there."""
    command = [sys.executable, "-m", f"benchmarks.{part}", "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0
    assert "usage: " in told.stdout


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("steps", ["{out}/steps.csv", "--rounds", "1"]),
        ("repeats", ["{out}/repeats.csv", "--rounds", "1"]),
        ("indexing", ["{out}/indexing.csv", "--rounds", "2", "--pictures", "40", "--seconds", "0.3"]),
        ("shares", ["{out}/shares.csv", "--rounds", "2", "--clients", "2", "--seconds", "0.3"]),
        ("growth", ["{out}/growth.csv", "{out}/growth.png", "--rounds", "1", "--seconds", "0.2"]),
    ],
)
def test_a_script_measures_a_tiny_repository(
    script: str, arguments: list[str], tiny_repository: Path, tmp_path: Path
) -> None:
    given = [argument.format(out=tmp_path) for argument in arguments]
    command = [sys.executable, "-m", f"benchmarks.{script}", *given, "--repository", str(tiny_repository)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=300)
    rows = ratios.rows_of(tmp_path / f"{script}.csv")
    assert rows
    if script == "steps":
        named = {row["step"]: row for row in rows}
        assert float(named["captioner"]["computation"]) > 0
        assert float(named["query"]["server"]) > float(named["captioner"]["server"])
    if script == "shares":
        assert {row["target"]: float(row["share"]) > 0 for row in rows} == {
            "embed_image": True,
            "embed_text": True,
        }
    if script != "growth":
        assert collect(tmp_path)
