"""A measurement as files: bench.json is everything, bench.csv a row a point, stages.csv a row a stage."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tercet.bench.values import Point, Report
from tercet.errors import InputError

__all__ = ["as_json", "point_row", "stage_rows", "write"]

FORMAT = 1


def as_json(report: Report) -> dict[str, Any]:
    """Everything, as JSON holds it."""
    points = [{**asdict(point), "share_of_ceiling": point.share_of_ceiling} for point in report.points]
    return {
        "format": FORMAT,
        "machine": dict(report.machine),
        "server": dict(report.server),
        "inputs": dict(report.inputs),
        "settings": asdict(report.settings),
        "points": points,
    }


def point_row(point: Point) -> dict[str, Any]:
    """One row of `bench.csv`; milliseconds, seconds of processor time a second, megabytes."""
    latency = {} if point.latency is None else asdict(point.latency)
    return {
        "target": point.target,
        "mode": point.mode,
        "load": f"{point.load:g}",
        "status": point.status,
        "throughput": round(point.throughput, 3),
        **{
            f"{name}_ms": round(latency[name], 3) if latency else ""
            for name in ("mean", "p50", "p90", "p95", "p99")
        },
        "answers": point.answers,
        "failures": sum(point.failures.values()),
        "seconds": round(point.seconds, 3),
        "windows": point.windows,
        "queue_ms": round(sum(stage.queue for stage in point.stages), 3),
        "compute_ms": round(sum(stage.total - stage.queue for stage in point.stages), 3),
        "outside_ms": round(point.outside, 3),
        "client_cores": round(point.client_cores, 3),
        "server_cores": "" if point.server_cores is None else round(point.server_cores, 3),
        "server_memory_mb": "" if point.server_memory is None else round(point.server_memory / 1e6),
        "ceiling": "" if point.ceiling is None else round(point.ceiling, 3),
        "share_of_ceiling": "" if point.share_of_ceiling is None else round(point.share_of_ceiling, 3),
    }


def stage_rows(point: Point) -> list[dict[str, Any]]:
    """The rows of `stages.csv`: what each model spent for each answer, in milliseconds."""
    place = {"target": point.target, "mode": point.mode, "load": f"{point.load:g}"}
    return [
        {
            **place,
            **{name: round(value, 4) if name != "model" else value for name, value in asdict(stage).items()},
        }
        for stage in point.stages
    ]


def write(report: Report, folder: Path) -> list[Path]:
    """Write the three files into `folder`; their paths.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = folder / "bench.json"
        content.write_text(json.dumps(as_json(report), indent=1) + "\n")
        points = [point_row(point) for point in report.points]
        splits = [row for point in report.points for row in stage_rows(point)]
        written = [_write_csv(folder / "bench.csv", points), _write_csv(folder / "stages.csv", splits)]
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another --output") from error
    return [content, *written]


def _write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    names: Iterable[str] = rows[0] if rows else ()
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(names))
        writer.writeheader()
        writer.writerows(rows)
    return file
