"""The page: docs/peers.md with tables and docs/peers.png, from the rounds and what they were measured on."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.peers.rounds import OURS, Comparison, Round, compare
from benchmarks.peers.systems import PEERS
from benchmarks.rows import read_rows

__all__ = ["draw", "page", "write_report"]

TITLES = {
    "embed_image": "Pictures to embeddings",
    "embed_text": "Texts to embeddings",
    "query": "Whole composed queries: background removed, captioned, fused, embedded",
}
SCRIPTS = {
    "researcher": "PyTorch fp32, IS-Net, GIT's `generate`, open_clip, one picture after another",
    "researcher batched": "the same, everybody who asks at once as one batch",
}
OURS_COLOUR, THEIRS_COLOUR, INK = "#0072B2", "#999999", "#333333"

INTRODUCTION = """# Beside what people would use instead

`python -m benchmarks.peers` wrote this page, its plot and the rounds behind it (`peers.csv`).

The same random full-size weights (a cosine tells that the answers agree), the same 640x480 JPEG files and
texts, the same closed loop of clients, each server over its own protocol, on the same processors as the
clients. All servers are started; while one is measured the others are stopped (SIGSTOP). They take turns
within a round; a ratio is Tercet's throughput by the other's in the same round: the median of all rounds,
and from the least to the largest. Read ratios, not rates, and only where nobody else used the processors:
taking turns evens out what a busy machine takes, but not how each system bears it (one that computes an
operation on two threads waits for the slower of them). The column *others* is the most that other processes
used in any round, in processors; much below one is quiet.
"""

MEASURED_ON = """Machine: {processor}, {threads} threads ({vectors}), {gigabytes:.0f} GiB. Load average during
the rounds: {busy}; more than the number of threads is the work of others beside the measurement.

Cores is processor time of the server per second, memory that of all of its processes, pages that several
share counted once for each. Cosine is the least between a system's embedding and Tercet's of the same
input."""


def write_report(folder: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Write page and plot into `folder` from the `peers.csv` there; `facts` are kept beside it."""
    rounds = read_rows(Round, folder / "peers.csv")
    (folder / "peers.json").write_text(json.dumps(facts, indent=1) + "\n")
    comparisons = compare(rounds)
    picture, text = folder / "peers.png", folder / "peers.md"
    draw(comparisons, picture)
    text.write_text(page(rounds, comparisons, facts))
    return [text, picture]


def page(rounds: Sequence[Round], comparisons: Sequence[Comparison], facts: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    lines = [INTRODUCTION, "![Throughput beside Tercet's](peers.png)", ""]
    for (network, target, clients), group in groupby(
        comparisons, key=lambda row: (row.network, row.target, row.clients)
    ):
        many = "1 client" if clients == 1 else f"{clients} clients"
        lines += [f"## {TITLES.get(target, target)}, {network}, {many}", "", *table(list(group)), ""]
    lines += ["## What was run", "", "| | settings |", "| --- | --- |"]
    ours = {f"{OURS}, {network}": text for network, text in facts.get(OURS, {}).items()}
    theirs = {**{name: peer.settings for name, peer in PEERS.items()}, **SCRIPTS}
    present = {row.system for row in comparisons}
    about = {**ours, **{name: text for name, text in theirs.items() if name in present}}
    lines += [f"| {name} | {text} |" for name, text in about.items()]
    lines += [f"| {name} | **not run**: {reason} |" for name, reason in facts.get("not_run", {}).items()]
    loads = [row.load_average for row in rounds]
    busy = f"from {min(loads):.1f} to {max(loads):.1f}" if loads else "unknown"
    machine = facts["machine"]
    vectors = ", ".join(machine.get("instructions", [])) or "no vector instructions known"
    memory = machine.get("memory", 0) / 2**30
    lines += ["", MEASURED_ON.format(**machine, vectors=vectors, gigabytes=memory, busy=busy)]
    return "\n".join(lines) + "\n"


def table(group: Sequence[Comparison]) -> list[str]:
    """One load's table."""
    columns = ("a second", "Tercet is faster by", "p50, ms", "p99, ms", "cores", "MB", "cosine", "others")
    columns = ("", *columns, "rounds", "failed")
    lines = [f"| {' | '.join(columns)} |", f"| --- |{' --: |' * (len(columns) - 1)}"]
    for row in group:
        ours = row.system == OURS
        ratio = "1" if ours else f"**{row.ratio:.2f}** ({row.least:.2f} to {row.largest:.2f})"
        name = f"**{row.system}**" if ours else row.system
        lines.append(
            f"| {name} | {row.throughput:.3g} | {ratio} | {row.p50_ms:.0f} | {row.p99_ms:.0f} "
            f"| {row.cores:.1f} | {row.memory_mb} | {row.agreement:.4f} | {row.others:.1f} "
            f"| {row.rounds} | {row.failures} |"
        )
    return lines


def draw(comparisons: Sequence[Comparison], file: Path) -> None:
    """Throughput as bars, Tercet's in colour; a panel for each network, target and number of clients."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (place, list(group))
        for place, group in groupby(comparisons, key=lambda row: (row.network, row.target, row.clients))
    ]
    columns = min(2, max(len(panels), 1))
    rows = max(-(-len(panels) // columns), 1)
    figure = Figure(figsize=(6.2 * columns, 2.7 * rows), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    for number, ((network, target, clients), group) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_title(f"{target}, {network}, {clients} at once", fontsize=10, color=INK, loc="left")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8, left=False)
        values = [row.throughput for row in group]
        colours = [OURS_COLOUR if row.system == OURS else THEIRS_COLOUR for row in group]
        bars = axes.barh([row.system for row in group], values, color=colours)
        axes.bar_label(
            bars,
            [
                f" {row.throughput:.3g}"
                + ("" if row.system == OURS else f"  (Tercet: {row.ratio:.2f} times that)")
                for row in group
            ],
            fontsize=8,
            color=INK,
        )
        axes.invert_yaxis()
        axes.set_xlim(0, 1.35 * max(values))
        axes.set_xlabel("a second, median of rounds", fontsize=8, color=INK)
    figure.savefig(file)
