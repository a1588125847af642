"""What is measured, as plain values: a row for each network, batch and engine."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["MEASURED", "Row", "Status", "merge", "read_status", "write_status"]

MEASURED = "measured"


@dataclass(frozen=True)
class Row:
    """One engine on one network with one batch.

    `status` is `measured`, or why there are no numbers (these are then 0): no memory was left, or what
    failed. `per_second` counts rows (pictures, texts), the median of the rounds; latencies are milliseconds
    of whole runs, over all `runs` of all rounds. `ratio` is the throughput by that of `beside` in the same
    round: median, least and largest of the rounds. `gflop` is the work of one row by PyTorch's count, so that
    `tflops` is what was done of it a second and `share` that by the fp16 matrix product's rate in the same
    round (`matrix_tflops`). `distance` is the farthest output from fp32 on the same device, over `compared`
    rows, and `verdict` whether the gate accepts it. `memory_mb` is what the device had in use afterwards, by
    all engines that were open. `on_processor`: which operators that compute ONNX Runtime has no kernel for on
    the card, as `33 MaxPool`; a row with any is slow for that reason.
    """

    network: str
    batch: int
    engine: str
    status: str
    per_second: float = 0.0
    latency_ms: float = 0.0
    p99_ms: float = 0.0
    runs: int = 0
    rounds: int = 0
    beside: str = ""
    ratio: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0
    gflop: float = 0.0
    tflops: float = 0.0
    share: float = 0.0
    matrix_tflops: float = 0.0
    distance: float = 0.0
    compared: int = 0
    verdict: str = ""
    memory_mb: int = 0
    card: str = ""
    driver: str = ""
    versions: str = ""
    load_average: float = 0.0
    on_processor: str = ""


@dataclass(frozen=True)
class Status:
    """How far a part of the measurement came: a network, or the pipeline.

    `complete`: to its end, on `card` with these `versions`; `note` says what is missing or was left out.
    """

    complete: bool
    seconds: float
    card: str
    versions: str
    note: str = ""


def merge(kept: Iterable[Row], measured: Sequence[Row], order: Sequence[str]) -> list[Row]:
    """`measured` in the place of all that was kept of the same networks; in the networks' `order`."""
    anew = {row.network for row in measured}
    rows = [row for row in kept if row.network not in anew] + list(measured)
    places = {name: place for place, name in enumerate(order)}
    return sorted(rows, key=lambda row: (places.get(row.network, len(places)), row.batch))


def write_status(
    file: Path, parts: Mapping[str, Status], rows: Iterable[Row], machine: Mapping[str, Any]
) -> None:
    """Everything as JSON: the machine of the last call, how far each part came, the rows."""
    content = {
        "machine": dict(machine),
        "parts": {name: asdict(status) for name, status in parts.items()},
        "rows": [asdict(row) for row in rows],
    }
    file.write_text(json.dumps(content, indent=1) + "\n")


def read_status(file: Path) -> dict[str, Status]:
    """How far each part came in earlier calls; nothing where there is no file."""
    if not file.exists():
        return {}
    return {name: Status(**status) for name, status in json.loads(file.read_text())["parts"].items()}
