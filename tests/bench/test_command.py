"""`tercet bench` on a real Triton with tiny networks."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tercet.client import Client
from tercet.server import EmbeddedServer

TERCET = [sys.executable, "-c", "from tercet.cli import main; main()", "bench"]
QUICK = ["--seconds", "0.4", "--warm-up", "0.2", "--windows", "3"]


def run(*arguments: str, cwd: Path, **more: object) -> subprocess.CompletedProcess[str]:
    command = [*TERCET, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=180, **more)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def measured(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run over two targets in both modes: its folder, standard output and error."""
    folder = tmp_path_factory.mktemp("bench")
    targets = ["--model", "embed_text,query", "--concurrency", "1,4", "--rate", "50%", "--json"]
    done = run("--server", server.grpc_address, *targets, *QUICK, "--output", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout, done.stderr


def test_every_point_is_measured_and_written(measured: tuple[Path, str, str]) -> None:
    folder, output, errors = measured
    report = json.loads((folder / "bench.json").read_text())
    assert json.loads(output) == report, "--json prints what is written, and nothing else"
    points = [(point["target"], point["mode"]) for point in report["points"]]
    each = ["closed", "closed", "open"]
    assert points == [(target, mode) for target in ("embed_text", "query") for mode in each]
    for point in report["points"]:
        assert point["failures"] == {}
        assert point["answers"] >= 60, "three windows of twenty answers at least"
        latency = point["latency"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"]
        assert point["throughput"] == pytest.approx(point["answers"] / point["seconds"], rel=0.01)
        assert 0 < point["server_cores"] <= (os.cpu_count() or 1) * 1.2
        assert 0 < point["client_cores"] < (os.cpu_count() or 1)
        assert point["server_memory"] > 50e6
    by_load = [point["throughput"] for point in report["points"] if point["target"] == "embed_text"]
    opened = next(point for point in report["points"] if point["mode"] == "open")
    assert opened["load"] == pytest.approx(max(by_load[:2]) / 2, rel=0.01)
    assert report["server"]["lineup"] == "tiny"
    assert report["server"]["processes"] >= 8
    assert report["machine"]["threads"] >= 1
    assert "Written to out: bench.json, bench.csv, stages.csv, latency.png" in errors


def test_csv_and_json_agree(measured: tuple[Path, str, str]) -> None:
    folder = measured[0]
    report = json.loads((folder / "bench.json").read_text())
    with (folder / "bench.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report["points"])
    for row, point in zip(rows, report["points"], strict=True):
        assert (row["target"], row["mode"], row["status"]) == (
            point["target"],
            point["mode"],
            point["status"],
        )
        assert float(row["load"]) == pytest.approx(point["load"], rel=1e-3)
        assert float(row["throughput"]) == pytest.approx(point["throughput"], abs=0.001)
        assert float(row["p99_ms"]) == pytest.approx(point["latency"]["p99"], abs=0.001)
        assert int(row["answers"]) == point["answers"]
    with (folder / "stages.csv").open(newline="") as file:
        stages = list(csv.DictReader(file))
    assert [row["model"] for row in stages] == [
        stage["model"] for point in report["points"] for stage in point["stages"]
    ]


def test_tritons_split_adds_up(measured: tuple[Path, str, str]) -> None:
    """The steps' times and what lies between them are the latency that the client saw."""
    report = json.loads((measured[0] / "bench.json").read_text())
    for point in report["points"]:
        models = [stage["model"] for stage in point["stages"]]
        if point["target"] == "embed_text":
            assert models == ["tokenize_text", "clip_text"]
        else:
            pictures = ["decode_image", "background_remover", "captioner", "detokenize_caption"]
            assert models == [*pictures, "tokenize_text", "clip_text", "search"]
        inside = sum(
            stage["queue"] + stage["input"] + stage["infer"] + stage["output"] for stage in point["stages"]
        )
        mean = point["latency"]["mean"]
        assert inside + point["outside"] == pytest.approx(mean)
        # A step's answer is on its way before Triton has stopped counting the step.
        assert 0.2 * mean < inside < 1.5 * mean
        for stage in point["stages"]:
            assert stage["requests"] == pytest.approx(1, abs=0.25)
            assert 1 <= stage["batch"] <= max(point["load"], 16)
            assert stage["infer"] > 0


def test_plots_are_drawn(measured: tuple[Path, str, str]) -> None:
    for name in ("latency.png", "stages.png", "batches.png"):
        assert (measured[0] / name).stat().st_size > 10_000


def test_an_interrupt_keeps_what_was_measured(server: EmbeddedServer, tmp_path: Path) -> None:
    options = ["--model", "embed_text", "--concurrency", "1,2", "--windows", "4", "--seconds", "0.7"]
    command = [*TERCET, "--server", server.grpc_address, *options, "--warm-up", "0.1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "embed_text 1 at once" in process.stderr.readline()  # the first point is done
        time.sleep(1.2)
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "Stopped."
    report = json.loads((tmp_path / "bench_output" / "bench.json").read_text())
    assert [point["load"] for point in report["points"]] == [1, 2]
    assert report["points"][1]["status"] == "interrupted"
    assert report["points"][1]["answers"] > 10


def test_shares_of_ceilings_are_shown(server: EmbeddedServer, client: Client, tmp_path: Path) -> None:
    rows = [{"step": "clip_text", "engine": "x", "per_second": 1e4, "outputs": []}]
    content = {"format": 1, "lineup": client.lineup().fingerprint, "machine": {}, "rows": rows}
    (tmp_path / "ceilings.json").write_text(json.dumps(content))
    options = ["--model", "embed_text", "--concurrency", "2", "--ceilings", "ceilings.json", *QUICK]
    done = run("--server", server.grpc_address, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (point,) = json.loads((tmp_path / "bench_output" / "bench.json").read_text())["points"]
    assert point["share_of_ceiling"] == pytest.approx(point["throughput"] / 1e4)
    assert f"{point['share_of_ceiling']:.0%}" in done.stdout
    assert "another lineup" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "embed_video"], "choose among embed_image, embed_text"),
        (["--concurrency", "0"], "whole numbers from 1"),
        (["--rate", "fast"], "such as 20,40 or 50%,70%"),
        (["--rate", "50%", "--concurrency", ""], "needs a closed loop"),
    ],
)
def test_a_wrong_option_is_explained(options: list[str], message: str, tmp_path: Path) -> None:
    done = run(*options, cwd=tmp_path, env={**os.environ, "COLUMNS": "200"})
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--server", "localhost:9"], "Error: no Triton answers at localhost:9"),
        (["--pictures", "nowhere"], "Error: there is no folder nowhere"),
        (["--ceilings", "nowhere"], "Error: cannot read nowhere"),
        (["--repository", "nowhere"], "Error: there is no model repository at nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_message(options: list[str], message: str, tmp_path: Path) -> None:
    done = run(*options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.lstrip().startswith(message)


def test_a_missing_model_names_what_is_served(tiny_repository: Path, tmp_path: Path) -> None:
    with EmbeddedServer(tiny_repository, models=["embed_text", "describe_lineup"]) as server:
        done = run("--server", server.grpc_address, "--model", "embed_image", cwd=tmp_path)
    assert done.returncode == 1
    assert "does not serve embed_image" in done.stderr
    assert "it serves embed_text" in done.stderr
