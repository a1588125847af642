"""`tercet-export`: its help teaches, its errors are one message, its results are shown."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tercet_export.cli import app
from tercet_export.registry import networks
from tests.tiny import write_tiny_lineup


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


@pytest.mark.parametrize("command", [(), ("network",), ("lineup",), ("list",)])
def test_help(command: tuple[str, ...]) -> None:
    code, output = run(*command, "--help")
    assert code == 0
    assert "Usage" in output


def test_list_shows_every_network() -> None:
    code, output = run("list")
    assert code == 0
    assert all(name in output for name in (*networks(), "demo", "small"))


def test_network_reports_what_it_made(tmp_path: Path) -> None:
    checkpoint = write_tiny_lineup(tmp_path).parent / "pic2word.safetensors"
    code, output = run("network", "pic2word", "--checkpoint", checkpoint, "--output", tmp_path / "o.onnx")
    assert code == 0
    assert (tmp_path / "o.onnx").is_file()
    for shown in ("image_to_token", "1,344", "peak memory", "pseudo_token"):
        assert shown in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("network", "nonet", "--checkpoint", "x", "--output", "y"), "there is no network 'nonet'"),
        (
            ("network", "isnet", "--checkpoint", "absent.pt", "--output", "y"),
            "there is no checkpoint absent.pt",
        ),
        (("lineup", "nolineup"), "there is no lineup 'nolineup'"),
    ],
)
def test_errors_are_one_message(arguments: tuple[str, ...], message: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tercet_export.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {message}")
    assert "Traceback" not in result.stderr


def test_lineup_fills_a_repository(tmp_path: Path) -> None:
    lineup = write_tiny_lineup(tmp_path)
    head, _, tail = lineup.read_text().partition("[background_remover]")
    lineup.write_text(head + tail[tail.index("[image_to_token]") :])
    code, output = run("lineup", lineup, "--repository", tmp_path / "repository")
    assert code == 0
    assert "image_to_token: pic2word" in output
    assert (tmp_path / "repository" / "image_to_token" / "1" / "model.onnx").is_file()
    code, output = run("lineup", lineup, "--repository", tmp_path / "repository")
    assert code == 0
    assert "(unchanged)" in output
