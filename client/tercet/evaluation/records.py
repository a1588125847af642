"""`queries.parquet`: a row for each query and composition, for pandas, DuckDB and whatever reads Parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tercet.errors import InputError, TercetError

if TYPE_CHECKING:
    import pyarrow as pa

    from tercet.evaluation.results import QueryRecord, RunReport

__all__ = ["read_queries", "write_queries"]

ROWS_AT_ONCE = 5_000

TEXTS = ("task", "name", "reference", "background", "background_reason")
LISTS = ("aspects", "modifications", "targets", "captions", "composed", "notes", "top")


def write_queries(path: Path, report: "RunReport") -> None:
    """Write the records of every composition.

    The columns are those of `QueryRecord`, first `composition` (the label), and one a metric under its name.
    """
    import_pyarrow()
    import pyarrow.parquet as pq

    schema = _schema([metric.name for metric in report.dataset.metrics])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for evaluation in report.evaluations:
            for start in range(0, len(evaluation.records), ROWS_AT_ONCE):
                rows = evaluation.records[start : start + ROWS_AT_ONCE]
                writer.write_batch(_batch(evaluation.label, rows, schema))


def read_queries(raw: bytes, metrics: Sequence[str]) -> dict[str, tuple["QueryRecord", ...]]:
    """The records by label, from the file's content.

    Raises:
        InputError: it is no Parquet file, or lacks a column.
    """
    pa = import_pyarrow()
    import pyarrow.parquet as pq

    from tercet.evaluation.results import QueryRecord

    try:
        table = pq.read_table(pa.BufferReader(raw), schema=_schema(metrics))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"queries.parquet cannot be read: {error}; evaluate again") from error
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    records: dict[str, list[QueryRecord]] = {}
    for row, label in enumerate(columns["composition"]):
        values = {metric: columns[metric][row] for metric in metrics if columns[metric][row] is not None}
        fields: dict[str, Any] = {name: columns[name][row] for name in (*TEXTS, "caption_cut", "rank")}
        fields |= {name: tuple(columns[name][row]) for name in (*LISTS, "scores")}
        records.setdefault(label, []).append(QueryRecord(values=values, **fields))
    return {label: tuple(of_label) for label, of_label in records.items()}


def import_pyarrow() -> Any:
    """The module; an error that says how to install it where it is missing or refuses this NumPy."""
    try:
        import pyarrow
    except ImportError as error:
        raise TercetError(f"reports need pyarrow ({error}): pip install 'tercet[evaluate]'") from error
    return pyarrow


def _schema(metrics: Sequence[str]) -> "pa.Schema":
    pa = import_pyarrow()
    text, texts = pa.string(), pa.list_(pa.string())
    return pa.schema(
        [
            ("composition", text),
            *((name, text) for name in TEXTS),
            *((name, texts) for name in LISTS),
            ("caption_cut", pa.bool_()),
            ("rank", pa.int64()),
            ("scores", pa.list_(pa.float64())),
            *((metric, pa.float64()) for metric in metrics),
        ]
    )


def _batch(label: str, rows: "Sequence[QueryRecord]", schema: "pa.Schema") -> "pa.RecordBatch":
    pa = import_pyarrow()

    def text(value: str) -> str:
        # A lone surrogate, from a name that is not UTF-8, cannot be written.
        return value.encode("utf-8", "backslashreplace").decode()

    made: dict[str, list[Any]] = {"composition": [label] * len(rows)}
    made |= {name: [text(getattr(row, name)) for row in rows] for name in TEXTS}
    made |= {name: [[text(item) for item in getattr(row, name)] for row in rows] for name in LISTS}
    made |= {name: [getattr(row, name) for row in rows] for name in ("caption_cut", "rank", "scores")}
    made |= {name: [row.values.get(name) for row in rows] for name in schema.names if name not in made}
    return pa.RecordBatch.from_pydict({name: made[name] for name in schema.names}, schema=schema)
