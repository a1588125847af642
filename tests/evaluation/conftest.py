"""Miniatures of the data sets, written once for all tests; read-only."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tercet import cli
from tests.evaluation.command import Run
from tests.evaluation.miniatures import MINIATURES, Miniature


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Miniature]:
    """miniature("cirr") or miniature("cirr", "pic2word"): in that layout; left out, the usual one."""
    written: dict[tuple[str, str], Miniature] = {}

    def of(name: str, layout: str | None = None) -> Miniature:
        layout = layout or next(iter(MINIATURES[name]))
        if (name, layout) not in written:
            folder: Path = tmp_path_factory.mktemp(f"{name}-{layout}")
            written[name, layout] = MINIATURES[name][layout](folder)
        return written[name, layout]

    return of


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in the test's folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tercet", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run
