"""What each network costs: parameters, file, operations, time, memory; full size, random weights.

    python -m benchmarks.networks docs/networks.csv [NAME ...]

Run it from the checkout. Every network is exported and timed in a process of its own, in ONNX Runtime on two
threads; rows of networks that are not named stay as they are. The table of export/README.md is written anew
from the file.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pages import fill
from tercet_export.export import export_network, quiet
from tercet_export.networks.blip import BLIP, BLIP_LARGE
from tercet_export.networks.clip import build, find_architecture
from tercet_export.registry import Options, network, role_of
from tests.export import parity

THREADS, ROUNDS = 2, 3
README = Path(__file__).parents[1] / "export" / "README.md"


def official(name: str, rule: parity.Rule = parity.by_shape) -> Callable[[], dict[str, Any]]:
    """A checkpoint of official names and shapes."""
    return lambda: parity.state_dict(name, rule)


def of_module(make: Callable[[], torch.nn.Module]) -> Callable[[], dict[str, Any]]:
    """A checkpoint of the module's own names and shapes."""

    def weights() -> dict[str, Any]:
        with torch.device("meta"):
            shapes = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
        return {name: parity.by_shape(name, shape) for name, shape in shapes.items()}

    return weights


def open_clip(arch: str) -> Callable[[], dict[str, Any]]:
    """A checkpoint of an open_clip architecture."""
    return of_module(lambda: build(find_architecture(arch, Path())))


# What the table calls it: the network, its options, and its checkpoint.
CASES: dict[str, tuple[str, Options, Callable[[], dict[str, Any]]]] = {
    "isnet": ("isnet", Options(), official("isnet")),
    "inspyrenet": ("inspyrenet", Options(), official("inspyrenet_swinb", parity.inspyrenet)),
    "inspyrenet --size 384": (
        "inspyrenet",
        Options(size=384),
        official("inspyrenet_swinb", parity.inspyrenet),
    ),
    "git-base": ("git-base", Options(), official("git_base_microsoft", parity.git)),
    "git-large": ("git-large", Options(), official("git_large_microsoft", parity.git)),
    "ofa-base": ("ofa-base", Options(), official("ofa_base", parity.ofa)),
    "ofa-large": ("ofa-large", Options(), official("ofa_large", parity.ofa)),
    "mplug-base": ("mplug-base", Options(), official("mplug_base")),
    "mplug-large": ("mplug-large", Options(), official("mplug_large")),
    "blip-base": ("blip-base", Options(), official("hf_blip_base_caption")),
    "blip-large": ("blip-large", Options(), of_module(lambda: BLIP(BLIP_LARGE))),
    **{
        f"{kind} {arch}": (kind, Options(arch=arch), open_clip(arch))
        for arch in ("ViT-B-32-quickgelu", "ViT-L-14-quickgelu", "ViT-B-16-SigLIP", "ViT-H-14")
        for kind in ("clip-image", "clip-text")
    },
    "pic2word": ("pic2word", Options(), lambda: parity.pic2word()),
}


def measure(name: str) -> dict[str, Any]:
    """One row of the table."""
    torch.set_num_threads(THREADS)
    entry, options, weights = network(CASES[name][0]), *CASES[name][1:]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        torch.save(weights(), checkpoint)
        exported = export_network(entry, checkpoint, Path(folder) / "model.onnx", options)
        loaded, role = exported.loaded, role_of(entry)
        inputs = role.example_inputs(loaded.sizes, loaded.details or {}, 1)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = THREADS
        session = onnxruntime.InferenceSession(exported.path, settings, providers=["CPUExecutionProvider"])
        seconds = []
        for _ in range(1 + ROUNDS):
            started = time.perf_counter()
            session.run(None, inputs)
            seconds.append(time.perf_counter() - started)
        del session
        with quiet(), torch.inference_mode(), FlopCounterMode(display=False) as counter:
            # The export of a large network leaves it without weights: on the meta device.
            device = next(loaded.graph.parameters()).device
            loaded.graph(*(torch.from_numpy(inputs[tensor.name]).to(device) for tensor in role.inputs))
    side = next((loaded.sizes[key] for key in ("S", "V", "P") if key in loaded.sizes), None)
    return {
        "network": name,
        "input, px": side or "",
        "parameters, M": round(exported.parameters / 1e6, 1),
        "file, MB": round(exported.bytes / 1e6),
        "GFLOP": round(counter.get_total_flops() / 1e9, 1),
        "seconds": round(statistics.median(seconds[1:]), 3),
        "export, s": round(exported.seconds),
        "export's peak memory, GB": round(exported.peak_memory / 1e9, 1),
        "load average": round(os.getloadavg()[0], 1),
    }


def write_table(rows: list[dict[str, Any]]) -> None:
    """Put the rows into export/README.md as a Markdown table."""
    columns = list(rows[0])[:-1]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    lines += [f"| {' | '.join(str(row[column]) for column in columns)} |" for row in rows]
    fill(README, "costs", lines)


def main() -> None:
    """Measure what is named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.names)))
        return
    rows: dict[str, dict[str, Any]] = {}
    if arguments.output.exists():
        with arguments.output.open(newline="") as file:
            rows = {row["network"]: dict(row) for row in csv.DictReader(file)}
    for name in arguments.names or CASES:
        command = [sys.executable, "-m", "benchmarks.networks", "--one", str(arguments.output), name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(rows[name], flush=True)
        ordered = [rows[case] for case in CASES if case in rows]
        with arguments.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(ordered[0]))
            writer.writeheader()
            writer.writerows(ordered)
    write_table([rows[case] for case in CASES if case in rows])


if __name__ == "__main__":
    main()
