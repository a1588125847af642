"""What each engine makes of each network on this processor: pictures or texts a second, and how exact.

    python -m benchmarks.engines docs/engines.csv [NETWORK ...] [--graphs FOLDER]

Full size, random weights. An engine runs in a process of its own, as the server's does, in turns with ONNX
Runtime in fp32: what is compared are the ratios of neighbouring runs, their median and range. The table of
docs/performance.md is written anew from the file; rows of networks that are not named stay as they are.
FOLDER keeps the exported graphs for another time.
"""

import argparse
import csv
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc.model_config_pb2 import ModelConfig

from benchmarks.networks import CASES
from benchmarks.pages import DOCS, fill
from tercet.server.engines.choice import ENGINES, ONNXRUNTIME
from tercet.server.engines.examples import ROWS, make_examples
from tercet.server.engines.gate import measure_distances, refusal
from tercet.server.engines.networks import describe_processor, installed_version
from tercet.server.engines.trials import TrialFailed, Worker, read_arrays
from tercet.server.runtime import processors

ROUNDS = 7
# The networks: the role that each fills, and in batches of how many rows it is timed.
NETWORKS = {
    "clip-image ViT-B-32-quickgelu": ("clip_image", 8),
    "clip-text ViT-B-32-quickgelu": ("clip_text", 8),
    "clip-image ViT-L-14-quickgelu": ("clip_image", 8),
    "clip-text ViT-L-14-quickgelu": ("clip_text", 8),
    "isnet": ("background_remover", 1),
    "git-base": ("captioner", 8),
}
COLUMNS = ("per_second", "ratio", "lowest", "highest", "processor_ratio", "distance", "verdict")


def main() -> None:
    """Measure what is named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--graphs", type=Path, help="where exported graphs are kept")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.output.exists():
        with arguments.output.open(newline="") as file:
            rows = list(csv.DictReader(file))
    for name in arguments.names or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            measured = list(measure(name, arguments.graphs or Path(folder), Path(folder)))
        rows = [row for row in rows if row["network"] != name] + measured
        rows.sort(key=lambda row: list(NETWORKS).index(row["network"]))
        with arguments.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    write_table(rows)


def measure(name: str, graphs: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """One row for each engine on a network."""
    role, batch = NETWORKS[name]
    graph, details = exported(name, graphs)
    workers = {engine: Worker(engine) for engine in ENGINES}
    inputs, reference = folder / "inputs.npz", workers[ONNXRUNTIME]
    try:
        described = reference.open(graph, ModelConfig())
        np.savez(inputs, **make_examples(role, described, {"roles": {role: details}}))
        reference.run(inputs, ROWS[role], folder / "expected.npz")
        expected = read_arrays(folder / "expected.npz")
        for engine, worker in workers.items():
            row: dict[str, Any] = {"network": name, "batch": batch, "engine": engine}
            row |= dict.fromkeys(COLUMNS, "")
            try:
                worker.open(graph, ModelConfig())
                worker.run(inputs, ROWS[role], folder / "found.npz")
                distances = measure_distances(expected, read_arrays(folder / "found.npz"))
                pairs = [(reference.run(inputs, [batch]), worker.run(inputs, [batch])) for _ in range(ROUNDS)]
                ratios = [theirs.seconds / ours.seconds for theirs, ours in pairs]
                spared = [theirs.processor_seconds / ours.processor_seconds for theirs, ours in pairs]
                row |= {
                    "per_second": f"{batch / statistics.median(ours.seconds for _, ours in pairs):.3g}",
                    "ratio": f"{statistics.median(ratios):.2f}",
                    "lowest": f"{min(ratios):.2f}",
                    "highest": f"{max(ratios):.2f}",
                    "processor_ratio": f"{statistics.median(spared):.2f}",
                    "distance": f"{max(distances.values()):.1g}",
                    "verdict": refusal(expected, distances) or "passes",
                }
            except TrialFailed as error:
                row["verdict"] = f"fails: {error}"
            row |= {"rounds": ROUNDS, "threads": processors(), "processor": describe_processor()[0]}
            row |= {package: installed_version(package) for package in ("onnxruntime", "openvino")}
            row["load_average"] = round(os.getloadavg()[0], 1)
            print(row, flush=True)
            yield row
            if engine != ONNXRUNTIME:
                worker.stop()
    finally:
        for worker in workers.values():
            worker.stop()


def exported(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The network's graph and what the manifest would say of it."""
    folder.mkdir(parents=True, exist_ok=True)
    graph, described = (folder / f"{name.replace(' ', '-')}{suffix}" for suffix in (".onnx", ".json"))
    if not described.exists():
        import torch

        from tercet_export.export import export_network
        from tercet_export.registry import network

        kind, options, weights = CASES[name]
        with tempfile.TemporaryDirectory() as place:
            checkpoint = Path(place) / "checkpoint.pt"
            torch.save(weights(), checkpoint)
            details = export_network(network(kind), checkpoint, graph, options).loaded.details or {}
        described.write_text(json.dumps(details, default=str))
    return graph, json.loads(described.read_text())


def write_table(rows: list[dict[str, Any]]) -> None:
    """Put the rows into docs/performance.md as a Markdown table: a line a network, a column an engine."""
    engines = list(ENGINES)
    lines = [f"| network, batch | {' | '.join(engines)} |", f"| --- {'| ---: ' * len(engines)}|"]
    for name in dict.fromkeys(row["network"] for row in rows):
        found = {row["engine"]: row for row in rows if row["network"] == name}
        cells = [f"{name}, {found[ONNXRUNTIME]['batch']}", f"{found[ONNXRUNTIME]['per_second']}/s"]
        for engine in engines[1:]:
            row = found.get(engine)
            if row is None:  # not measured since there is this engine
                cells.append("")
                continue
            mark = "" if row["verdict"] == "passes" else " ✗"
            times = f"{row['ratio']} ({row['lowest']} to {row['highest']}); {row['processor_ratio']}"
            cells.append(f"{times}; {row['distance']}{mark}" if row["ratio"] else "fails")
        lines.append(f"| {' | '.join(cells)} |")
    fill(DOCS / "performance.md", "engines", lines)


if __name__ == "__main__":
    main()
