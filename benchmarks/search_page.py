"""The plot and the table of `benchmarks/search.py`'s measurements."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.pages import fill

COLOURS = {"exact": "#222222", "quantised": "#0072b2", "hnsw": "#d55e00", "ivf": "#009e73"}
RECALL = 0.99


class Row(Protocol):
    """What is read of a measurement."""

    size: int
    kind: str
    parameters: str
    threads: int
    queries: str
    recall_at_10: float
    p50_ms: float
    p99_ms: float
    batch_per_s: float
    resident_mb: float
    build_s: float


def draw(rows: Sequence[Row], path: Path, threads: int = 1) -> None:
    """Recall against latency of one thread: a panel a size, a colour a kind, dotted for picture queries."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = sorted({row.size for row in rows})
    figure, panels = pyplot.subplots(
        1, len(sizes), figsize=(4.4 * len(sizes), 4), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, size in zip(panels[0], sizes, strict=True):
        for kind, colour in COLOURS.items():
            for queries, style in (("composed", "-o"), ("picture", ":")):
                series = sorted(
                    (row for row in best_threads(rows, size, kind, threads) if row.queries == queries),
                    key=lambda row: row.recall_at_10,
                )
                panel.plot(
                    [row.p50_ms for row in series],
                    [row.recall_at_10 for row in series],
                    style,
                    color=colour,
                    markersize=4,
                    label=f"{kind}, {queries} queries" if series else None,
                )
        panel.axhline(RECALL, color="#bbbbbb", linewidth=0.8, zorder=0)
        panel.set(xscale="log", title=f"{size:,} pictures", ylim=(0.4, 1.02))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
        panel.set_xlabel("one query, milliseconds (median)")
        panel.grid(alpha=0.2)
    panels[0, 0].set_ylabel("recall@10")
    panels[0, 0].legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=130)


def best_threads(rows: Sequence[Row], size: int, kind: str, threads: int) -> list[Row]:
    """The rows of a size and kind on so many threads, or on the fewest that were measured."""
    of_kind = [row for row in rows if (row.size, row.kind) == (size, kind)]
    there = {row.threads for row in of_kind}
    return [row for row in of_kind if row.threads == (threads if threads in there else min(there))]


def write_table(rows: Sequence[Row], page: Path) -> None:
    """Put into the page, for each size and kind, the fastest setting that finds enough."""
    heads = ["recall@10, composed", "picture", "p50 ms", "p99 ms", "batched a second", "memory MB", "build s"]
    lines = [
        f"| pictures | kind | setting | {' | '.join(heads)} |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for size in sorted({row.size for row in rows}):
        for kind in COLOURS:
            of_kind = best_threads(rows, size, kind, 1)
            composed = [row for row in of_kind if row.queries == "composed"]
            enough = [row for row in composed if row.recall_at_10 >= RECALL]
            if composed:
                row = (
                    min(enough, key=lambda row: row.p50_ms)
                    if enough
                    else max(composed, key=lambda row: row.recall_at_10)
                )
                misled = [
                    f"{other.recall_at_10:.3f}"
                    for other in of_kind
                    if other.queries == "picture" and other.parameters == row.parameters
                ]
                lines.append(
                    f"| {size:,} | {kind} | {row.parameters or '-'} | {row.recall_at_10:.3f} "
                    f"| {misled[0] if misled else '-'} | {row.p50_ms:.2f} | {row.p99_ms:.2f} "
                    f"| {row.batch_per_s:,.0f} | {row.resident_mb:,.0f} | {row.build_s:,.1f} |"
                )
    fill(page, "search", lines)
