"""What a measurement looks like: latency against throughput, time by stage, batches by load."""

from collections.abc import Sequence
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tercet.bench.values import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

COLUMNS = 2
INK, FAINT = "#333333", "#bbbbbb"
PERCENTILES = (("p50", "-", 1.0), ("p95", "--", 0.75), ("p99", ":", 0.6))
# Colour-blind safe (Okabe and Ito, 2008).
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


def draw(points: Sequence[Point], folder: Path) -> list[Path]:
    """Draw `latency.png`, `stages.png` and `batches.png` into `folder`; the paths of those with data."""
    answered = [point for point in points if point.latency is not None]
    colours = _colours(answered)
    drawn = [_figure(answered, _draw_latency, colours, folder / "latency.png")]
    split = [point for point in answered if point.stages]
    if split:
        drawn.append(_figure(split, _draw_stages, colours, folder / "stages.png"))
        drawn.append(_figure(split, _draw_batches, colours, folder / "batches.png"))
    return drawn if answered else []


def _colours(points: Sequence[Point]) -> dict[str, str]:
    """A colour for each model of the server, the same in every picture."""
    models = dict.fromkeys(stage.model for point in points for stage in point.stages)
    return {model: PALETTE[number % len(PALETTE)] for number, model in enumerate(models)}


def _figure(points: Sequence[Point], panel: Any, colours: dict[str, str], file: Path) -> Path:
    """One panel a target."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    targets = {target: list(of) for target, of in groupby(points, key=lambda point: point.target)}
    columns = min(COLUMNS, max(len(targets), 1))
    rows = max(ceil(len(targets) / columns), 1)
    figure = Figure(figsize=(6.2 * columns, 4.1 * rows), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    for number, (target, of) in enumerate(targets.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_title(target, fontsize=11, color=INK, loc="left", fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8)
        panel(axes, of, colours)
    figure.savefig(file)
    return file


def _draw_latency(axes: "Axes", points: Sequence[Point], colours: dict[str, str]) -> None:
    """Throughput to the right, latency up: a curve for each percentile, a cross for each open loop."""
    closed = [point for point in points if point.mode == "closed"]
    for name, line, alpha in PERCENTILES:
        axes.plot(
            [point.throughput for point in closed],
            [getattr(point.latency, name) for point in closed],
            line,
            color=PALETTE[0],
            alpha=alpha,
            marker="o",
            markersize=4,
            label=f"{name}, so many at once",
        )
    unsettled = [point for point in points if point.latency and point.status != "stable"]
    if unsettled:
        axes.scatter(
            [point.throughput for point in unsettled],
            [point.latency.p50 for point in unsettled if point.latency],
            s=90,
            facecolors="none",
            edgecolors=INK,
            linewidths=0.8,
            label="not stable",
        )
    for point in closed:
        place = (point.throughput, point.latency.p50 if point.latency else 0)
        axes.annotate(
            f"{point.load:g}", place, (0, -11), textcoords="offset points", fontsize=8, ha="center", color=INK
        )
    opened = [point for point in points if point.mode == "open"]
    for (name, _, alpha), marker in zip(PERCENTILES, "x+1", strict=True):
        if opened:
            values = [getattr(point.latency, name) for point in opened]
            rates = [point.throughput for point in opened]
            axes.scatter(
                rates, values, marker=marker, color=PALETTE[5], alpha=alpha, label=f"{name}, random arrivals"
            )
    ceiling = next((point.ceiling for point in points if point.ceiling), None)
    if ceiling:
        axes.axvline(ceiling, color=INK, linewidth=1)
        axes.annotate(
            "ceiling", (ceiling, 1), (-3, -3), xycoords=("data", "axes fraction"), textcoords="offset points",
            fontsize=8, ha="right", va="top", color=INK,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.margins(x=0.06, y=0.12)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=7, colors=INK)
    axes.grid(color=FAINT, linewidth=0.4, which="both", alpha=0.5)
    axes.set_xlabel("answers per second", fontsize=9)
    axes.set_ylabel("latency, ms", fontsize=9)
    axes.legend(fontsize=7, frameon=False)


def _draw_stages(axes: "Axes", points: Sequence[Point], colours: dict[str, str]) -> None:
    """A bar for each load: waiting (pale) and computing (full) in each model, one upon another."""
    models = dict.fromkeys(stage.model for point in points for stage in point.stages)
    for place, point in enumerate(points):
        bottom = 0.0
        by_model = {stage.model: stage for stage in point.stages}
        for model in models:
            stage = by_model.get(model)
            if stage is None:
                continue
            for height, alpha in ((stage.queue, 0.35), (stage.total - stage.queue, 1.0)):
                axes.bar(place, height, 0.7, bottom, color=colours[model], alpha=alpha, linewidth=0)
                bottom += height
        axes.bar(
            place,
            max(point.outside, 0),
            0.7,
            bottom,
            color=FAINT,
            hatch="///",
            edgecolor="white",
            linewidth=0,
        )
    for model in models:
        axes.bar(0, 0, color=colours[model], label=model)
    axes.bar(0, 0, color=FAINT, hatch="///", edgecolor="white", linewidth=0, label="between and around")
    axes.set_xticks(range(len(points)), [_load(point) for point in points], fontsize=8)
    axes.set_xlabel("load (pale: waiting for the model)", fontsize=9)
    axes.set_ylabel("mean ms per answer", fontsize=9)
    axes.grid(color=FAINT, linewidth=0.4, axis="y", alpha=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=7, frameon=False, loc="upper left", reverse=True)


def _draw_batches(axes: "Axes", points: Sequence[Point], colours: dict[str, str]) -> None:
    """Mean batch of each model by load."""
    models = dict.fromkeys(stage.model for point in points for stage in point.stages)
    models.pop("search", None)
    for model in models:
        label = model
        for mode in ("closed", "open"):  # no line between them: their loads are not of one kind
            places = [place for place, point in enumerate(points) if point.mode == mode]
            batches = [
                next((stage.batch for stage in points[place].stages if stage.model == model), float("nan"))
                for place in places
            ]
            axes.plot(places, batches, marker="o", markersize=4, color=colours[model], label=label)
            label = ""
    axes.set_xticks(range(len(points)), [_load(point) for point in points], fontsize=8)
    axes.set_xlabel("load", fontsize=9)
    axes.set_ylabel("mean batch", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.grid(color=FAINT, linewidth=0.4, alpha=0.6)
    axes.legend(fontsize=7, frameon=False)


def _load(point: Point) -> str:
    return f"{point.load:g}" if point.mode == "closed" else f"{point.load:.3g}/s"
