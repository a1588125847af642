"""An evaluation drawn: metrics by K, the headline by aspect, where two compositions differ. Needs matplotlib.

Compositions have the same order, colour and marker in every plot of a report.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tercet.errors import TercetError
from tercet.evaluation.results import Evaluation, Number, QueryRecord, RunReport
from tercet.evaluation.table import short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["as_png", "as_svg", "draw_by_aspect", "draw_by_k", "draw_difference", "draw_report"]

# Colour-blind safe (Okabe and Ito, 2008), without the yellow, which is too pale on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "osD^vPX*"
INK, FAINT = "#333333", "#cccccc"
BETTER, WORSE, TIED = PALETTE[0], PALETTE[1], "#d5d5d5"

MOST_ASPECTS = 16
"""Aspects that are drawn: those of the most queries."""

DPI = 144
LEGEND_ROW = 0.22
"""Inches."""

FAMILIES = {"recall": "Recall@K", "recall_subset": "Recall within the subset@K", "precision": "Precision@K"}


def draw_report(report: RunReport) -> dict[str, "Figure"]:
    """By file name without ending, the figures that there is data for.

    Raises:
        TercetError: matplotlib is not installed.
    """
    with_numbers = [evaluation for evaluation in report.evaluations if evaluation.numbers.overall]
    if not with_numbers:
        return {}
    figures = {"by_k": draw_by_k(report)}
    if any(evaluation.numbers.aspects for evaluation in with_numbers) or len(report.dataset.tasks) > 1:
        figures["by_aspect"] = draw_by_aspect(report)
    if len(with_numbers) > 1:
        headline = report.dataset.metrics[0].name
        order = sorted(with_numbers, key=lambda evaluation: -evaluation.numbers.overall[headline].value)
        best, next_best = order[:2]
        figures["difference"] = draw_difference(next_best, best, headline)
    return figures


def draw_by_k(report: RunReport) -> "Figure":
    """A panel for each kind of metric: its value by K, a line a composition, bars its 95 % interval."""
    families: dict[str, list[int]] = {}
    for metric in report.dataset.metrics:
        families.setdefault(metric.name.partition("@")[0], []).append(metric.k)
    widths = [1.3 + len(cutoffs) for cutoffs in families.values()]
    spread = min(0.7, 0.06 * len(report.evaluations))
    width = max(6.4, 0.8 + (0.9 + 0.5 * spread) * sum(widths))
    figure = _figure(width, 3.6, report.evaluations)
    panels = figure.subplots(1, len(families), squeeze=False, width_ratios=widths)[0]
    styles = _styles(report.evaluations)
    for number, (family, cutoffs) in enumerate(families.items()):
        axes = panels[number]
        _dress(axes, FAMILIES.get(family, f"{family}@K"))
        places = np.arange(len(cutoffs), dtype=float)
        drawn = [evaluation for evaluation in report.evaluations if evaluation.numbers.overall]
        for row, evaluation in enumerate(drawn):
            numbers = [evaluation.numbers.overall[f"{family}@{k}"] for k in cutoffs]
            shifted = places + _shift(row, len(drawn), spread)
            _bars(axes, shifted, numbers, styles[evaluation.label], line="-")
        axes.set_xticks(places, [str(k) for k in cutoffs])
        axes.set_xlim(-0.5, len(cutoffs) - 0.5)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("K")
        axes.grid(axis="y", color=FAINT, linewidth=0.5)
        if number == 0:
            axes.set_ylabel("%, with 95 % interval")
    _legend(figure, report.evaluations)
    return figure


def draw_by_aspect(report: RunReport) -> "Figure":
    """The headline by aspect, by task where no query has one: a row an aspect, a mark a composition."""
    headline = report.dataset.metrics[0].name
    drawn = [evaluation for evaluation in report.evaluations if evaluation.numbers.overall]
    groups = {
        evaluation.label: evaluation.numbers.aspects or evaluation.numbers.tasks for evaluation in drawn
    }
    first = groups[drawn[0].label]
    aspects = sorted(first, key=lambda aspect: -first[aspect][headline].queries)[:MOST_ASPECTS]
    aspects = [aspect for aspect in first if aspect in aspects]
    styles = _styles(report.evaluations)
    figure = _figure(7.4, 1.1 + len(aspects) * max(0.42, 0.17 * len(drawn)), report.evaluations)
    axes = figure.add_subplot()
    left_out = len(first) - len(aspects)
    more = f" ({left_out} aspects of fewer queries left out)" if left_out else ""
    _dress(axes, f"{short_name(headline)} by {'aspect' if drawn[0].numbers.aspects else 'task'}{more}")
    for place in range(1, len(aspects), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="#f3f3f3", linewidth=0)
    for row, evaluation in enumerate(drawn):
        numbers = [groups[evaluation.label][aspect][headline] for aspect in aspects]
        places = np.arange(len(aspects)) + _shift(row, len(drawn), 0.66)
        _bars(axes, places, numbers, styles[evaluation.label], across=True)
    axes.set_yticks(
        range(len(aspects)),
        [f"{_plain(aspect)}\n{first[aspect][headline].queries:,} queries" for aspect in aspects],
    )
    axes.set_ylim(len(aspects) - 0.5, -0.5)
    highest = max(of_label[aspect][headline].high for of_label in groups.values() for aspect in aspects)
    # Marks at both ends are drawn whole.
    axes.set_xlim(-2 * max(highest, 0.01), 104 * max(highest, 0.01))
    axes.set_xlabel("%, with 95 % interval")
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    axes.tick_params(axis="y", length=0)
    _legend(figure, report.evaluations)
    return figure


def draw_difference(a: Evaluation, b: Evaluation, metric: str) -> "Figure":
    """Where B differs from A: queries won, tied and lost by aspect, and each query's rank under both."""
    names = _names(a, b)
    pairs = list(zip(a.records, b.records, strict=True))
    figure = _figure(11.4, max(4.6, 1.8 + 0.36 * min(MOST_ASPECTS, len(_aspects(a.records)))))
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_outcomes(left, pairs, metric, names)
    _draw_ranks(right, pairs, names)
    return figure


def as_svg(figure: "Figure") -> bytes:
    """The figure as SVG; the same figure gives the same bytes."""
    import matplotlib as mpl

    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "tercet"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def as_png(figure: "Figure") -> bytes:
    """The figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str


def _styles(evaluations: Sequence[Evaluation]) -> dict[str, _Style]:
    """By label; from the ninth on colours come again with other markers."""
    return {
        evaluation.label: _Style(
            PALETTE[number % len(PALETTE)],
            MARKERS[(number + number // len(PALETTE)) % len(MARKERS)],
        )
        for number, evaluation in enumerate(evaluations)
    }


def _figure(width: float, height: float, explained: Sequence[Evaluation] = ()) -> "Figure":
    """A figure with room for a legend that explains these compositions."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TercetError(f"plots need matplotlib ({error}): pip install 'tercet[evaluate]'") from error
    height += LEGEND_ROW * math.ceil(len(explained) / _columns(explained, width))
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _shift(row: int, rows: int, width: float) -> float:
    """Moves marks of several compositions beside each other."""
    return (row - (rows - 1) / 2) * width / max(rows, 1)


def _dress(axes: "Axes", *title: str) -> None:
    axes.set_title(
        "\n".join(map(_plain, title)), fontsize=11, color=INK, loc="left", fontweight="bold", pad=10
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    axes.set_axisbelow(True)


def _bars(
    axes: "Axes",
    places: Any,
    numbers: Sequence[Number],
    style: _Style,
    *,
    line: str = "none",
    across: bool = False,
) -> None:
    """Marks with their intervals; `across`: values to the right, places down."""
    values = np.array([100 * number.value for number in numbers])
    # A percentile interval may exclude the mean by a hair; matplotlib wants no negative length.
    reach = np.maximum(
        [
            values - [100 * number.low for number in numbers],
            [100 * number.high for number in numbers] - values,
        ],
        0,
    )
    axes.errorbar(
        values if across else places,
        places if across else values,
        xerr=reach if across else None,
        yerr=None if across else reach,
        linestyle=line,
        linewidth=1.4,
        elinewidth=1.4,
        capsize=2.5,
        marker=style.marker,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        color=style.colour,
    )


def _columns(evaluations: Sequence[Evaluation], width: float) -> int:
    """How many labels stand side by side in a legend of that width in inches."""
    longest = max((len(_plain(evaluation.label)) for evaluation in evaluations), default=1)
    return max(1, min(len(evaluations), int(width * 14 / (longest + 6))))


def _legend(figure: "Figure", evaluations: Sequence[Evaluation]) -> None:
    from matplotlib.lines import Line2D

    if len(evaluations) == 1:
        figure.suptitle(_plain(evaluations[0].label), x=0.01, ha="left", fontsize=10, color=INK)
        return
    marks = [
        Line2D([], [], color=style.colour, marker=style.marker, markersize=6, label=_plain(label))
        for label, style in _styles(evaluations).items()
    ]
    figure.legend(
        handles=marks,
        loc="outside lower left",
        ncols=_columns(evaluations, figure.get_figwidth()),
        fontsize=9,
        frameon=False,
        labelcolor=INK,
    )


def _draw_outcomes(
    axes: "Axes", pairs: Sequence[tuple[QueryRecord, QueryRecord]], metric: str, names: tuple[str, str]
) -> None:
    """A bar an aspect: the shares of queries that B wins, ties and loses on the metric."""
    groups: dict[str, list[float]] = {"all queries": []}
    aspects = _aspects([record for record, _ in pairs])
    for one, other in pairs:
        change = other.values[metric] - one.values[metric]
        groups["all queries"].append(change)
        for aspect in dict.fromkeys(one.aspects):
            if aspect in aspects:
                groups.setdefault(f"{aspect}", []).append(change)
    ordered = ["all queries", *(aspect for aspect in aspects if aspect in groups)]
    _dress(axes, f"{short_name(metric)}: {names[1]}", f"against {names[0]}")
    for place, name in enumerate(ordered):
        changes = np.array(groups[name])
        counts = (int((changes > 0).sum()), int((changes == 0).sum()), int((changes < 0).sum()))
        start = 0.0
        for count, colour in zip(counts, (BETTER, TIED, WORSE), strict=True):
            share = 100 * count / len(changes)
            axes.barh(place, share, 0.72, start, color=colour, edgecolor="white", linewidth=0.8)
            start += share
        beside = f"+{counts[0]:,}  \N{MINUS SIGN}{counts[2]:,}"
        axes.text(101.5, place, beside, va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(ordered)), [_plain(name) for name in ordered])
    axes.set_ylim(len(ordered) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the queries; to the right how many are better and worse")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    from matplotlib.patches import Patch

    colours = {"better": BETTER, "the same": TIED, "worse": WORSE}
    axes.legend(
        handles=[Patch(color=colour, label=text) for text, colour in colours.items()],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        ncols=3,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )


def _draw_ranks(
    axes: "Axes", pairs: Sequence[tuple[QueryRecord, QueryRecord]], names: tuple[str, str]
) -> None:
    """A mark where queries have this rank under A and that under B; its area is how many."""
    ranks = np.array(
        [(one.rank, other.rank) for one, other in pairs if one.rank is not None and other.rank is not None]
    ).reshape(-1, 2)
    _dress(axes, "Rank of the best target")
    places, counts = np.unique(ranks, axis=0, return_counts=True)
    if len(places):
        colours = np.where(
            places[:, 1] < places[:, 0], BETTER, np.where(places[:, 1] > places[:, 0], WORSE, "#888888")
        )
        axes.scatter(
            places[:, 0],
            places[:, 1],
            s=14 * counts**0.75,
            c=colours,
            alpha=0.6,
            linewidths=0,
            rasterized=len(places) > 1500,
        )
    most = float(ranks.max(initial=10)) * 1.4
    axes.plot([0.7, most], [0.7, most], color=INK, linewidth=0.8, zorder=0)
    axes.set(xscale="log", yscale="log", xlim=(0.7, most), ylim=(0.7, most), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_xlabel(_plain(f"under {names[0]}"))
    axes.set_ylabel(_plain(f"under {names[1]}"))
    axes.text(0.97, 0.04, "better", transform=axes.transAxes, ha="right", color=BETTER, fontweight="bold")
    axes.text(0.03, 0.95, "worse", transform=axes.transAxes, va="top", color=WORSE, fontweight="bold")


def _names(a: Evaluation, b: Evaluation) -> tuple[str, str]:
    return (a.label, b.label) if a.label != b.label else (f"A ({a.label})", f"B ({b.label})")


def _aspects(records: Sequence[QueryRecord]) -> list[str]:
    """The aspects of the most queries, in the order in which they first appear."""
    counts: dict[str, int] = {}
    for record in records:
        for aspect in dict.fromkeys(record.aspects):
            counts[aspect] = counts.get(aspect, 0) + 1
    most = sorted(counts, key=lambda aspect: -counts[aspect])[:MOST_ASPECTS]
    return [aspect for aspect in counts if aspect in most]


def _plain(text: str) -> str:
    """`text` as matplotlib draws it literally, in one line of moderate length, without control characters."""
    one_line = "".join(character if character.isprintable() else " " for character in text)
    shortened = one_line if len(one_line) <= 60 else one_line[:57] + "..."
    return shortened.replace("$", r"\$")
