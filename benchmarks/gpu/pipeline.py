"""The whole pipeline on the GPU: the embedded server with the variant `gpu`, over a lineup in fp16.

Full-size IS-Net, GIT-base and CLIP ViT-B/32 with random weights (captions of 20 tokens), 640x480 JPEG files,
and the load of `tercet bench`: closed loops over one gRPC channel.
"""

import importlib.util
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tercet.bench import plots, report
from tercet.bench.inputs import make_pictures, make_texts
from tercet.bench.processes import describe_machine
from tercet.bench.run import Plan, describe_server, run
from tercet.bench.server import Server
from tercet.bench.targets import Inputs
from tercet.bench.values import Point, Report, Settings
from tercet.client import Client
from tercet.server import EmbeddedServer
from tercet_export.lineup import export_lineup

__all__ = ["CONCURRENCY", "TARGETS", "Load", "measure", "missing"]

TARGETS = ("embed_image", "embed_text", "caption_foreground", "query")
CONCURRENCY = (1, 2, 4, 8, 16, 32)
ARCH = "ViT-B-32-quickgelu"


@dataclass(frozen=True)
class Load:
    """Which `targets` under how many requests at once, until `deadline` (`time.time()`)."""

    targets: Sequence[str]
    concurrency: Sequence[int]
    settings: Settings
    deadline: float


def missing() -> str | None:
    """What the server lacks to run here; None where nothing does."""
    if importlib.util.find_spec("pytriton") is None:
        return (
            "the embedded server is not installed: pip install 'tercet[serve]' (see benchmarks/gpu/setup.sh)"
        )
    return None


def measure(folder: Path, repository: Path, device: str, load: Load) -> tuple[list[Point], bool]:
    """Serve `repository`, put the load on the server, write to `folder` what `tercet bench` writes.

    Returns the points, and whether that was all of them.

    Raises:
        TercetError: the server could not be started, or failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    variant = "gpu" if device == "cuda" else None
    inputs = Inputs(make_pictures(), make_texts())
    points: list[Point] = []
    log = folder / "server.log"
    with (
        EmbeddedServer(repository, model_config_name=variant, engine="onnxruntime", log_file=log) as server,
        Client(server.grpc_address) as client,
        closing(Server(server.grpc_address)) as asked,
    ):
        described: dict[str, Any] = {**describe_server(asked, client), "variant": variant}
        plan = Plan(load.targets, load.concurrency)
        facts = {"source": inputs.source, "pictures": len(inputs.pictures), "texts": len(inputs.texts)}
        for point in run(asked, plan, inputs, load.settings):
            print(f"{point.target}, {point.load:g} at once: {point.throughput:.4g}/s", flush=True)
            points.append(point)  # and kept at once: a lent machine may be gone before the last one
            made = Report(describe_machine(), described, facts, load.settings, tuple(points))
            report.write(made, folder)
            if time.time() > load.deadline:
                break
    plots.draw(points, folder)
    log.unlink(missing_ok=True)
    return points, len(points) == len(load.targets) * len(load.concurrency)


def prepare(folder: Path, tiny: bool) -> Path:
    """The repository with the lineup in fp16 (the tiny one: fp32); exported where it is not there yet."""
    if tiny:
        from tests.tiny import write_tiny_lineup

        lineup = write_tiny_lineup(folder / "tiny")
    else:
        from benchmarks.peers.weights import write_clip, write_rest

        if not (folder / ARCH / "hugging_face" / "tokenizer_config.json").exists():
            write_clip(folder / ARCH, ARCH)
        if not (folder / "rest" / "vocab.txt").exists():
            write_rest(folder / "rest")
        lineup = folder / "gpu.toml"
        lineup.write_text("\n".join(lines()) + "\n")
    repository = folder / ("tiny-repository" if tiny else "repository")
    export_lineup(lineup, repository)
    return repository


def lines() -> Iterator[str]:
    """The lineup's file."""
    yield 'name = "gpu"'
    clip = {"checkpoint": f"{ARCH}/open_clip.safetensors", "arch": ARCH}
    roles: dict[str, dict[str, str | int]] = {
        "background_remover": {"network": "isnet", "checkpoint": "rest/isnet.safetensors"},
        "captioner": {
            "network": "git-base",
            "checkpoint": "rest/git/model.safetensors",
            "tokenizer": "rest/vocab.txt",
            "beams": 1,
            "max_tokens": 20,
        },
        "clip_image": {"network": "clip-image", **clip},
        "clip_text": {"network": "clip-text", **clip},
    }
    for role, settings in roles.items():
        yield f"\n[{role}]"
        yield from (
            f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
            for key, value in {**settings, "precision": "fp16"}.items()
        )
