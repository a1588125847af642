"""The ablation's plot: recall@1 with intervals, one panel for each kind of modification."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tercet.evaluation.intervals import Interval

COLOURS = ("#4477aa", "#222222")
"""Of the compositions, and of the one that is best over all queries."""


class Recall(Protocol):
    """What the plot needs of a row."""

    @property
    def name(self) -> str:
        """The composition."""

    @property
    def kind(self) -> str:
        """The kind of modification, or `all`."""

    @property
    def recall_at_1(self) -> Interval:
        """In percent."""


def draw(rows: Sequence[Recall], path: Path) -> None:
    """Write the plot as PNG."""
    from matplotlib.figure import Figure

    kinds, names = (list(dict.fromkeys(getattr(row, key) for row in rows)) for key in ("kind", "name"))
    found = {(row.name, row.kind): row.recall_at_1 for row in rows}
    best = max(names, key=lambda name: found[name, "all"].mean)
    figure = Figure(figsize=(1.9 * len(kinds) + 3, 0.32 * len(names) + 1.3), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True)
    places = range(len(names))
    for panel, kind in zip(panels, kinds, strict=True):
        for place, name in zip(places, names, strict=True):
            interval = found[name, kind]
            colour = COLOURS[name == best]
            panel.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2.2, alpha=0.45)
            panel.plot(interval.mean, place, "o", color=colour, markersize=5.5)
        panel.set_title(kind, fontsize=10)
        panel.set_xlim(0, 100)
        panel.set_xticks([0, 50, 100])
        panel.grid(axis="x", color="#dddddd")
        panel.tick_params(length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    panels[0].set_yticks(list(places), names, fontsize=9)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    figure.supxlabel("recall@1 in %, with 95 % intervals", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140, metadata={"Software": None})
