"""Index, search and commands against a real Triton."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tercet.client import Client
from tercet.index import GalleryIndex, build_index
from tercet.server import EmbeddedServer

TERCET = [sys.executable, "-c", "from tercet.cli import main; main()"]


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """60 pictures of noise, and some files that are none."""
    folder = tmp_path / "gallery"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        pixels = rng.integers(0, 256, (6, 6, 3), np.uint8).repeat(12, 0).repeat(12, 1)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    (folder / "05-empty.jpg").write_bytes(b"")
    (folder / "17-text.jpg").write_text("no picture")
    (folder / "23-cut.png").write_bytes((folder / "23.png").read_bytes()[:200])
    return folder


def tercet(server: EmbeddedServer, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TERCET_SERVER": server.grpc_address}
    return subprocess.run([*TERCET, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_gallery_is_indexed_and_every_picture_finds_itself(
    client: Client, gallery: Path, tmp_path: Path
) -> None:
    report = build_index(gallery, tmp_path / "index", client, shard_size=16)
    assert report.pictures == 60
    assert {picture.name for picture in report.skipped} == {"05-empty.jpg", "17-text.jpg", "23-cut.png"}
    assert build_index(gallery, tmp_path / "index", client).embedded == 0
    index = GalleryIndex.load(tmp_path / "index", encoder_fingerprint=client.lineup().encoder_fingerprint)
    scores, rows = index.search(client.embed_images(index.paths), 1)
    np.testing.assert_array_equal(rows[:, 0], np.arange(60))
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-4)


def test_the_commands(server: EmbeddedServer, gallery: Path, tmp_path: Path) -> None:
    done = tercet(server, "index", "gallery", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "60 embedded, 0 kept, 0 removed, 3 skipped" in done.stdout
    query = ("search", "gallery.tercet", "-i", "gallery/07.png", "-t", "on a beach", "--exclude-reference")
    done = tercet(server, *query, "-k", "5", "--json", "--sheet", "sheet.png", cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert answer["composed"].endswith("on a beach")
    assert str(gallery / "07.png") in answer["excluded"]
    assert len(answer["results"]) == 5
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 300
    done = tercet(server, *query, "-k", "5", cwd=tmp_path)
    assert (
        f"Captioned {'without' if answer['background'] == 'remove' else 'with'} its background" in done.stdout
    )
    first = next(line for line in done.stdout.splitlines() if line.split()[0] == "1")
    assert answer["results"][0]["path"].removeprefix(f"{tmp_path}/") in first
    done = tercet(server, "caption", "gallery/07.png", "gallery/17-text.jpg", "gallery/08.png", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    assert "17-text.jpg" in done.stderr


def test_a_server_killed_midway(tiny_repository: Path, gallery: Path, tmp_path: Path) -> None:
    """One clear message, exit code 1, everything embedded so far kept."""
    rng = np.random.default_rng(1)
    for number in range(1500):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(gallery / f"more{number:04d}.png")
    with EmbeddedServer(tiny_repository) as server:
        environment = {**os.environ, "TERCET_SERVER": server.grpc_address}
        command = [*TERCET, "index", "gallery"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as building:
            entries = tmp_path / "gallery.tercet" / "shards" / "000001.jsonl"
            while building.poll() is None and not (entries.exists() and entries.stat().st_size > 3000):
                time.sleep(0.01)
            server.stop()
            output, errors = building.communicate(timeout=120)
    assert building.returncode == 1, output + errors
    assert "Traceback" not in errors
    message = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert len(message) == 1
    assert "run the same command again" in errors
    done = len(entries.read_text().splitlines()) - 1
    with EmbeddedServer(tiny_repository) as server:
        result = tercet(server, "index", "gallery", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"1,560 pictures in gallery.tercet: {1560 - done:,} embedded, {done:,} kept" in result.stdout


def heed_interrupts() -> None:
    """Even where the tests run in a shell's background, whose children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_build_stopped_with_ctrl_c(server: EmbeddedServer, gallery: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number in range(1500):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(gallery / f"more{number:04d}.png")
    environment = {**os.environ, "TERCET_SERVER": server.grpc_address}
    with subprocess.Popen(
        [*TERCET, "index", "gallery"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    ) as building:
        entries = tmp_path / "gallery.tercet" / "shards" / "000001.jsonl"
        while building.poll() is None and not entries.exists():
            time.sleep(0.01)
        building.send_signal(signal.SIGINT)
        _, errors = building.communicate(timeout=30)
    assert building.returncode == 130
    assert re.search(r"Stopped\.\nEverything embedded so far is kept in gallery\.tercet", errors)
