"""Every code block of the README does what it says: they run here, against a real Triton."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tercet.server import EmbeddedServer
from tercet_training.world import make_gallery, render

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)
# `make test` is what runs this test, and the fixture below starts the server.
NOT_RUN = ("make ", "tercet serve")


@pytest.fixture(scope="module")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Triton over the demo lineup, exported from the committed checkpoints."""
    from tercet_export.lineup import export_lineup

    repository = tmp_path_factory.mktemp("demo") / "model_repository"
    export_lineup("demo", repository)
    with EmbeddedServer(repository) as running:
        yield running


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README supposes it: pictures in `pictures/`, one of them `dress.jpg`."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "pictures").mkdir()
    for number, scene in enumerate(make_gallery(1, pictures=100, queries=4).scenes[:40]):
        render(scene).save(folder / "pictures" / f"{number:03d}.jpg")
    shutil.copy(folder / "pictures" / "000.jpg", folder / "dress.jpg")
    return folder


def at(server: EmbeddedServer, text: str) -> str:
    """The block with the README's default addresses replaced by the test server's."""
    return text.replace("localhost:8001", server.grpc_address).replace("localhost:8000", server.http_address)


def test_the_blocks_run(demo_server: EmbeddedServer, workplace: Path) -> None:
    """In the README's order, because later blocks use what earlier ones made."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["TERCET_SERVER"] = demo_server.grpc_address
    ran = 0
    for language, block in BLOCKS:
        if language == "python":
            command = [sys.executable, "-c", at(demo_server, block)]
        elif language == "bash":
            lines = [line for line in block.splitlines() if line and not line.startswith(NOT_RUN)]
            if not lines:
                continue
            command = ["bash", "-euo", "pipefail", "-c", at(demo_server, "\n".join(lines))]
        else:
            continue
        done = subprocess.run(
            command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 5


def test_the_lineups_are_lineups(tmp_path: Path) -> None:
    """Read and consistent; their weights are too large for a test."""
    from tercet_export.lineup import read_lineup

    blocks = [block for language, block in BLOCKS if language == "toml"]
    assert blocks
    for block in blocks:
        (tmp_path / "mine.toml").write_text(block)
        assert read_lineup(tmp_path / "mine.toml")[0].captioner is not None


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"^make ([a-z-]+)", "\n".join(block for _, block in BLOCKS), flags=re.M)
    assert {"demo", "test"} <= set(named)
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
