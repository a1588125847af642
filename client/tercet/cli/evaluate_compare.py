"""`tercet evaluate compare`: whether one evaluation is better than another, and on which queries."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tercet.cli.console import output, printable, shown_path
from tercet.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from tercet.evaluation.compare import ChangedQuery, Difference, ReportComparison
    from tercet.evaluation.results import Evaluation

MOST_ROWS = 30
"""Aspects that are printed; --json has them all."""


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A report: FOLDER, or FOLDER:LABEL.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The report that may be better than A.")],
    queries: Annotated[
        int, typer.Option(min=0, help="How many of the queries that changed most to name, each way.")
    ] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG|SVG", help="Draw where they differ, into this file.")
    ] = None,
) -> None:
    """Say whether evaluation B is better than A, by how much, and on which queries.

    Both are folders that `tercet evaluate` wrote, of the same data set and split; a composition of a report
    of several is named by its label. Differences are paired: query by query, with the 95 % interval of a
    bootstrap over queries.

    **Examples**

    tercet evaluate compare evaluation/monday evaluation/tuesday

    tercet evaluate compare evaluation/cirr:text evaluation/cirr:caption --plot difference.png

    tercet evaluate compare "evaluation/cirr:caption" "evaluation/cirr:caption background=keep" --json
    """
    from tercet.evaluation.compare import as_json as to_json
    from tercet.evaluation.compare import compare_reports, open_evaluation

    of_a, of_b = open_evaluation(a), open_evaluation(b)
    found = compare_reports(of_a, of_b, changed=queries)
    if plot is not None:
        _draw(plot, of_a[1], of_b[1], found.headline)
    if as_json:
        print(json.dumps(to_json(found), indent=1))
        return
    print_comparison(found, output())
    if plot is not None:
        print(f"Drawn in {shown_path(plot)}")


def print_comparison(found: "ReportComparison", console: "Console") -> None:
    """Print the comparison in words and tables."""
    console.print(f"{printable(found.dataset)} {printable(found.split)}")
    for name, label, lineup in (("A", found.a, found.lineup_a), ("B", found.b, found.lineup_b)):
        console.print(f"{name}: {printable(label)} (lineup {printable(lineup)})")
    console.print()
    console.print(found.words)
    _table(console, "", found.metrics)
    if len(found.tasks) > 1:
        _table(console, f"{found.headline} by task", found.tasks)
    if found.aspects:
        _table(console, f"{found.headline} by aspect", found.aspects)
    _queries(console, "Queries that B answers better, most changed first", found.gained)
    _queries(console, "Queries that B answers worse, most changed first", found.lost)


def _table(console: "Console", title: str, differences: "Mapping[str, Difference]") -> None:
    from rich.table import Table

    console.print()
    if title:
        console.print(title)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    for name in ("A", "B", "B - A", "95 % interval", "won", "lost", "tied"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, of in list(differences.items())[:MOST_ROWS]:
        table.add_row(
            printable(name),
            f"{100 * of.a:.1f}",
            f"{100 * of.b:.1f}",
            f"{100 * of.difference:+.1f}",
            f"{100 * of.low:+.1f} {100 * of.high:+.1f}",
            f"{of.won:,}",
            f"{of.lost:,}",
            f"{of.tied:,}",
        )
    console.print(table)
    if len(differences) > MOST_ROWS:
        console.print(f"and {len(differences) - MOST_ROWS} more (--json)")


def _queries(console: "Console", title: str, queries: "tuple[ChangedQuery, ...]") -> None:
    if not queries:
        return
    console.print()
    console.print(title)
    for query in queries:
        before, after = (str(rank) if rank else "none" for rank in (query.rank_a, query.rank_b))
        wish = "; ".join(map(printable, query.modifications))
        console.print(f"  {printable(query.name)}  rank {before} -> {after}  {wish}")
        for name, texts in (("A", query.texts_a), ("B", query.texts_b)):
            if texts and texts != query.modifications:
                console.print(f"    {name} searched for: {'; '.join(map(printable, texts))}")


def _draw(plot: Path, a: "Evaluation", b: "Evaluation", headline: str) -> None:
    from tercet.evaluation.plots import as_png, as_svg, draw_difference

    formats = {".png": as_png, ".svg": as_svg}
    if plot.suffix.lower() not in formats:
        raise InputError(f"cannot draw {plot}: give a path that ends in .png or .svg")
    encoded = formats[plot.suffix.lower()](draw_difference(a, b, headline))
    unfinished = plot.with_name(f".partial-{plot.name}")
    try:
        unfinished.write_bytes(encoded)
        unfinished.replace(plot)
    except OSError as error:
        raise InputError(f"cannot write {plot}: {error.strerror}; choose another path") from error
    finally:
        unfinished.unlink(missing_ok=True)
