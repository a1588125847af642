"""What was measured, as a picture: throughput by batch, and the share of the card's matrix rate."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.results import MEASURED, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

INK, FAINT = "#333333", "#bbbbbb"
# Colour-blind safe (Okabe and Ito, 2008).
PALETTE = (
    *("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#E69F00", "#D55E00", "#999999"),
    *("#000000", "#7A4B00"),
)


def draw(rows: Sequence[Row], file: Path) -> bool:
    """A line of panels for each network: rows a second, latency, share; False where nothing was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.status == MEASURED]
    networks = {name: list(of) for name, of in groupby(shown, key=lambda row: row.network)}
    if not networks:
        return False
    engines = list(dict.fromkeys(row.engine for row in shown))
    colours = {engine: PALETTE[number % len(PALETTE)] for number, engine in enumerate(engines)}
    figure = Figure(figsize=(13.5, 3.4 * len(networks)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    for line, (name, of) in enumerate(networks.items()):
        titles = ("rows a second", "latency of a run, ms (dots: p99)", "share of the matrix rate")
        for column, (title, value) in enumerate(zip(titles, VALUES, strict=True)):
            axes = figure.add_subplot(len(networks), len(titles), line * len(titles) + column + 1)
            axes.set_title(f"{name}: {title}", fontsize=9, color=INK, loc="left")
            _panel(axes, of, colours, value)
    figure.savefig(file)
    return True


VALUES = ("per_second", "latency_ms", "share")


def _panel(axes: "Axes", rows: Sequence[Row], colours: dict[str, str], value: str) -> None:
    """One quantity of one network by batch; a hollow mark where the gate refuses the outputs."""
    for engine in dict.fromkeys(row.engine for row in rows):
        of = [row for row in rows if row.engine == engine]
        batches, values = [row.batch for row in of], [getattr(row, value) for row in of]
        axes.plot(batches, values, color=colours[engine], linewidth=1.3, label=engine)
        for row, height in zip(of, values, strict=True):
            face = colours[engine] if row.verdict == "passes" else "white"
            axes.plot(row.batch, height, "o", markersize=4, color=colours[engine], markerfacecolor=face)
        if value == "latency_ms":
            slowest = [row.p99_ms for row in of]
            axes.plot(batches, slowest, ".", markersize=3, color=colours[engine], alpha=0.6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    if value == "share":
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=6, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(color=FAINT, linewidth=0.4, which="both", alpha=0.5)
    axes.set_xlabel("batch", fontsize=8)
    if value == "per_second":
        axes.legend(fontsize=7, frameon=False)
