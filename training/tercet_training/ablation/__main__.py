"""Run the ablation: `python -m tercet_training.ablation` (or `make ablation`)."""

import csv
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tercet import Client
from tercet.errors import TercetError
from tercet.evaluation.chosen import choose
from tercet.evaluation.datasets import load_dataset
from tercet.evaluation.intervals import Interval, bootstrap, compare
from tercet.evaluation.metrics import by_aspect, measure
from tercet.evaluation.run import TaskRun, evaluate
from tercet.evaluation.values import Dataset
from tercet.server import EmbeddedServer
from tercet_training.ablation.draw import draw
from tercet_training.world import make_gallery
from tercet_training.world.dataset import write_world
from tercet_training.world.queries import KINDS, SETTING

CHECKOUT = Path(__file__).resolve().parents[3]
BEGIN, END = "<!-- ablation: `make ablation` writes this table -->", "<!-- end of ablation -->"

# No network was trained on this gallery; the settings below were chosen on another one, of seed 31.
SEED, PICTURES, QUERIES = 20_281, 3000, 1000

PLAIN = "caption background=remove"
"""The method without a rule: what the others are compared with."""

WAYS: dict[str, str] = {
    "text": "text only",
    "image": "image only",
    "sum": "image + text",
    "slerp": "image + text, on the sphere",
    "product": "image x text",
    "pic2word": "Pic2Word",
    "caption background=keep": "caption, background kept",
    PLAIN: "caption, background removed",
    "caption": "caption, the rule decides",
    "caption captions=3": "..., three captions averaged",
    "caption modification_share=0.2": "..., modification added back",
    "caption increment=true increment_negative=0.1 increment_positive=0.2": "..., semantic increment",
    "caption+pic2word": "..., Pic2Word in the same prompt",
    "blend text_weight=0": "..., blended with Pic2Word and image",
}
"""Compositions as `tercet evaluate` takes them, and what the table calls them; dots stand for the rule."""

console = Console()


@dataclass(frozen=True)
class Row:
    """Recall of one composition over the queries of one kind, in percent."""

    composition: str
    name: str
    kind: str
    queries: int
    recall_at_1: Interval
    recall_at_10: float


def rows_of(dataset: Dataset, runs: dict[str, tuple[TaskRun, ...]]) -> list[Row]:
    """Recall@1 with its 95 % interval, and recall@10, over all queries and by kind."""
    at_1, at_10 = (
        next(metric for metric in dataset.metrics if metric.name == f"recall@{k}") for k in (1, 10)
    )
    rows = []
    for composition, (run,) in runs.items():
        queries = run.task.queries
        values = [100 * measure(metric, queries, run.ranking) for metric in (at_1, at_10)]
        groups = [{"all": of_metric, **by_aspect(queries, of_metric)} for of_metric in values]
        for kind in ("all", *sorted(groups[0].keys() - {"all"})):
            first, tenth = groups[0][kind], groups[1][kind]
            rows.append(
                Row(
                    composition,
                    WAYS[composition],
                    kind,
                    len(first),
                    bootstrap([first]),
                    float(np.mean(tenth)),
                )
            )
    return rows


def write_csv(path: Path, rows: list[Row]) -> None:
    """Write the rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("composition", "kind", "queries", "recall@1", "low", "high", "recall@10"))
        for row in rows:
            at_1 = row.recall_at_1
            numbers = (at_1.mean, at_1.low, at_1.high, row.recall_at_10)
            writer.writerow(
                (row.composition, row.kind, row.queries, *(f"{number:.1f}" for number in numbers))
            )


def table_of(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """The table's head and lines: recall@1 in percent, over all queries with its interval."""
    kinds = list(dict.fromkeys(row.kind for row in rows))
    head = ["composition", *(f"{kind} ({next(r.queries for r in rows if r.kind == kind)})" for kind in kinds)]
    lines = []
    for name in dict.fromkeys(row.name for row in rows):
        of_name = {row.kind: row.recall_at_1 for row in rows if row.name == name}
        every = of_name["all"]
        cells = [f"{every.mean:.1f} [{every.low:.1f}, {every.high:.1f}]"]
        lines.append([name, *cells, *(f"{of_name[kind].mean:.1f}" for kind in kinds[1:])])
    return head, lines


def table_for_console(head: list[str], lines: list[list[str]]) -> Table:
    """The table without intervals and counts, for 80 columns."""
    table = Table(title="Recall@1 in % by kind of modification", box=None, padding=(0, 1, 0, 0))
    for column in head:
        table.add_column(column.split()[0], justify="left" if column == head[0] else "right")
    for name, every, *others in lines:
        table.add_row(name, every.split()[0], *others)
    return table


def write_table(path: Path, head: list[str], lines: list[list[str]]) -> None:
    """Put the table between the marks of a Markdown file.

    Raises:
        ValueError: the file has no marks.
    """
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} lacks {BEGIN} and {END}; the table goes between them")
    before, _, rest = text.partition(BEGIN)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))
    path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


@contextmanager
def progress_bar() -> "Iterator[Callable[[str, int, int], None]]":
    """A bar with the time left; yields what to call with step, done and total."""
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("")
        yield lambda step, done, total: bar.update(task, description=step, completed=done, total=total)


def run(
    output: Annotated[Path, typer.Option(help="Where the world and the answers of the server go.")] = CHECKOUT
    / "demo_output"
    / "ablation",
    repository: Annotated[Path, typer.Option(help="Triton's model repository.")] = CHECKOUT
    / "model_repository",
    docs: Annotated[Path, typer.Option(help="Where ablation.csv and ablation.png go.")] = CHECKOUT / "docs",
    readme: Annotated[Path, typer.Option(help="The file whose table is written anew.")] = CHECKOUT
    / "README.md",
    pictures: Annotated[int, typer.Option(min=50, help="Pictures in the gallery.")] = PICTURES,
    queries: Annotated[int, typer.Option(min=5, help="Composed queries to ask.")] = QUERIES,
    seed: Annotated[int, typer.Option(help="Decides the gallery and its queries.")] = SEED,
) -> None:
    """Ask the queries of a synthetic world in every way; write table, plot and numbers."""
    from tercet_export.lineup import export_lineup  # imports torch, which takes seconds

    started = time.perf_counter()
    export_lineup("demo", repository)
    world = output / f"world-{seed}-{pictures}-{queries}"
    origin = {"pictures": pictures, "queries": queries, "seed": seed}
    with progress_bar() as show:
        gallery = make_gallery(seed, pictures, queries, (*KINDS, SETTING))
        write_world(world, gallery, origin, on_progress=lambda done, total: show("rendering", done, total))
    dataset = load_dataset("world", world)
    chosen = [choose(words, "world") for words in WAYS]
    # One engine for every machine, so that the numbers are those of the README.
    with (
        EmbeddedServer(repository, engine="onnxruntime") as server,
        Client(server.grpc_address) as client,
        progress_bar() as show,
    ):
        # One at a time, so that no batch of another size rounds otherwise: the table repeats to the digit.
        runs = evaluate(dataset, client, chosen, output / "cache", in_flight=1, on_progress=show)
    rows = rows_of(dataset, runs)
    head, lines = table_of(rows)
    console.print(table_for_console(head, lines))
    at_1 = dataset.metrics[0]
    values = {label: measure(at_1, run.task.queries, run.ranking) for label, (run,) in runs.items()}
    for label, of_label in values.items():
        found = compare([values[PLAIN]], [of_label])
        if found.difference.low > 0:
            by = f"{100 * found.difference.low:.1f} to {100 * found.difference.high:.1f} points"
            console.print(f"{WAYS[label]}: better than {WAYS[PLAIN]} by {by} (95 %, paired)")
    write_csv(docs / "ablation.csv", rows)
    draw(rows, docs / "ablation.png")
    write_table(readme, head, lines)
    console.print(f"{docs / 'ablation.csv'}, ablation.png, {readme}  ({time.perf_counter() - started:.0f} s)")


def main() -> None:
    """Run the command line; a failure that Tercet foresaw is one message, not a traceback."""
    try:
        typer.run(run)
    except TercetError as error:
        console.print(f"[red]{type(error).__name__}:[/red] {error}")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
