"""The table that papers print: our compositions with intervals, then what others published."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tercet.cli.console import printable
from tercet.evaluation.published import (
    OPENAI_BACKBONES,
    PublishedRow,
    backbone_of,
    beside,
    may_be_openai,
)
from tercet.evaluation.results import Evaluation, Number, RunReport

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Cell",
    "Column",
    "cell_of",
    "cell_with_interval",
    "columns_of",
    "kind_of",
    "print_results",
    "published_cell",
    "rows_beside",
    "short_name",
]

MOST_TASKS = 6
"""Tasks that get columns of their own."""

PAPERS_BACKBONE = "ViT-L/14"
NAME_WIDTH = 30
CELL_WIDTH = 10  # 99.9-100.0
SHORT = (("recall_subset@", "Rsub@"), ("recall@", "R@"), ("precision@", "P@"))


@dataclass(frozen=True)
class Column:
    """A metric, of one task or, where `task` is empty, overall."""

    metric: str
    task: str = ""

    @property
    def title(self) -> str:
        """Two lines: the task and the metric."""
        return f"{self.task}\n{short_name(self.metric)}"


@dataclass(frozen=True)
class Cell:
    """A number in percent, and what stands below or behind it."""

    value: str
    interval: str = ""
    unverified: bool = False


def short_name(metric: str) -> str:
    """The metric as a table's head names it: `recall@10` is R@10, `recall_subset@1` Rsub@1."""
    for long, short in SHORT:
        if metric.startswith(long):
            return short + metric.removeprefix(long)
    return metric


def columns_of(report: RunReport) -> tuple[Column, ...]:
    """Every metric overall, after those of the tasks where there are several."""
    tasks = [task.name for task in report.dataset.tasks]
    names = [metric.name for metric in report.dataset.metrics]
    if not 1 < len(tasks) <= MOST_TASKS:
        return tuple(Column(name) for name in names)
    of_tasks = [Column(name, task) for task in tasks for name in names]
    return (*of_tasks, *(Column(name, "mean") for name in names))


def cell_of(evaluation: Evaluation, column: Column) -> Cell | None:
    """Our number and its interval; None where it is not known."""
    numbers = evaluation.numbers
    group = numbers.overall if column.task in ("", "mean") else numbers.tasks.get(column.task, {})
    return cell_with_interval(group.get(column.metric))


def cell_with_interval(number: Number | None) -> Cell | None:
    """The number in percent and its interval."""
    if number is None:
        return None
    return Cell(f"{100 * number.value:.1f}", f"{100 * number.low:.1f}-{100 * number.high:.1f}")


def published_cell(row: PublishedRow, column: Column) -> Cell | None:
    """A published number as it was printed; None where it was not given."""
    overall = column.task in ("", "mean")
    value = (row.values if overall else row.tasks.get(column.task, {})).get(column.metric)
    if value is None:
        return None
    name = column.metric if overall else f"{column.task} {column.metric}"
    return Cell(max(f"{value:.1f}", f"{value:g}", key=len), unverified=name in row.unverified)


def rows_beside(report: RunReport) -> tuple[tuple[PublishedRow, ...], tuple[str, ...]]:
    """The published rows to show beside the report's, training-free first; what to know about them."""
    backbone = backbone_of(report.lineup)
    rows, warnings = beside(report.dataset, backbone or PAPERS_BACKBONE)
    if rows and backbone is None:
        warnings = (f"Published numbers are of {PAPERS_BACKBONE}; our image encoder is another.", *warnings)
    elif rows and backbone in OPENAI_BACKBONES and not may_be_openai(report.lineup):
        # Worth 9 points of CIRR's R@1 (ExplainableML/Vision_by_Language, issues 8 and 10).
        weights = f"Published numbers of {backbone} are of OpenAI's weights unless marked; ours are others."
        warnings = (weights, *warnings)
    ours = report.dataset.split
    return tuple(sorted(rows, key=lambda row: (row.split != ours, row.training_free is not True))), warnings


def kind_of(row: PublishedRow, split: str) -> str:
    """The heading that a published row comes under; `split` is ours."""
    other = f" on {row.split}" if row.split != split else ""
    return f"published{other}, {'training-free' if row.training_free else 'trained'}"


def print_results(report: RunReport, console: "Console") -> None:
    """Print the table; where it is wider than the terminal, in several tables one below another."""
    from rich.table import Table

    dataset = report.dataset
    if not dataset.answers_known:
        console.print(f"{dataset.name} {dataset.split}: only its server knows the right answers; no numbers.")
        return
    published, warnings = rows_beside(report)
    sources = list(dict.fromkeys(row.source for row in published))
    queries = sum(task.queries for task in dataset.tasks)
    console.print(
        f"{printable(dataset.name)} {printable(dataset.split)}: {queries:,} queries, in %, "
        f"below each number its 95 % interval"
    )
    shown: list[PublishedRow] = []
    for columns in _that_fit(columns_of(report), console.width):
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
        table.add_column("", max_width=NAME_WIDTH, overflow="fold")
        for column in columns:
            table.add_column(printable_lines(column.title), justify="right", no_wrap=True)
        for evaluation in report.evaluations:
            cells = [cell_of(evaluation, column) for column in columns]
            table.add_row(
                printable(evaluation.label),
                *(f"{cell.value}\n{cell.interval}" if cell else "" for cell in cells),
            )
        kind = ""
        for row in published:
            of_row = [published_cell(row, column) for column in columns]
            if not any(of_row):
                continue
            if (of_row_kind := kind_of(row, dataset.split)) != kind:
                kind = of_row_kind
                table.add_row()
                table.add_row(kind)
            shown.append(row)
            texts = ("" if cell is None else cell.value + ("?" if cell.unverified else "") for cell in of_row)
            mark = "*" if row.not_comparable else ""
            table.add_row(f"  {row.method}{mark} [{sources.index(row.source) + 1}]", *texts)
        console.print()
        console.print(table)
    _print_notes(console, shown, sources, warnings)


def _that_fit(columns: Sequence[Column], width: int) -> Iterator[Sequence[Column]]:
    """Groups of columns that fit beside the names; metrics of one task stay together where they can."""
    fitting = max(1, (width - NAME_WIDTH - 2) // (CELL_WIDTH + 2))
    start = 0
    while start < len(columns):
        end = min(start + fitting, len(columns))
        whole = end
        while whole > start and whole < len(columns) and columns[whole].task == columns[whole - 1].task:
            whole -= 1
        if whole > start:
            end = whole
        yield columns[start:end]
        start = end


def _print_notes(
    console: "Console", rows: Sequence[PublishedRow], sources: Sequence[str], warnings: Sequence[str]
) -> None:
    if not rows:
        return
    console.print()
    for warning in warnings:
        console.print(warning)
    if any(row.unverified for row in rows):
        console.print("? written down from memory, not seen again in a source")
    for row in dict.fromkeys((row.method, row.not_comparable) for row in rows if row.not_comparable):
        console.print(f"* {row[0]}: {row[1]}")
    used = {row.source for row in rows}
    for number, source in enumerate(sources, 1):
        if source in used:
            console.print(f"[{number}] {source}")


def printable_lines(text: str) -> str:
    """`printable` of every line; empty ones left out."""
    return "\n".join(printable(line) for line in text.split("\n") if line)
