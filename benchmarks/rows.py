"""Measurements, which are dataclasses of numbers and texts, to CSV and back."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")


def write_rows(file: Path, rows: Sequence[Any]) -> None:
    """A line for each of at least one; floats to five digits."""
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, [field.name for field in fields(rows[0])], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells = asdict(row).items()
            writer.writerow(
                {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in cells}
            )


def read_rows(kind: type[Row], file: Path) -> list[Row]:
    """What `write_rows` wrote of this dataclass; nothing where there is no file."""
    if not file.exists():
        return []
    types: dict[str, Any] = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    with file.open(newline="") as opened:
        lines = list(csv.DictReader(opened))
    return [kind(**{name: types[name](value) for name, value in line.items()}) for line in lines]
