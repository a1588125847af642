"""The numbers that matter, as ratios, out of what the scripts wrote; and whether one has become worse.

    python -m benchmarks.ratios FOLDER [--kept docs/ratios.json] [--keep | --widen]

Times differ from machine to machine and from hour to hour; a ratio of two that were measured in turns does
less. A ratio is a regression if its median is a fifth worse than the kept one *and* the ranges of the two do
not meet. `--keep` makes the folder's ratios the kept ones. From one run to the next ratios of the same code
were seen to move by up to 30 % on a machine that others share, more than within a run: `--widen` adds the
ranges of another run to the kept ones. The exit status is 1 where something regressed.
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.pages import DOCS, fill, markdown, spread
from benchmarks.peers.rounds import OURS, Comparison, Round, compare
from benchmarks.rows import read_rows
from benchmarks.shares import Share

KEPT = DOCS / "ratios.json"
TOLERANCE = 0.20
SMALL = 0.02
"""Differences below this are none, of ratios that are shares near zero."""


@dataclass(frozen=True)
class Ratio:
    """One number: median, least and largest of its rounds, the bar it is held against, which way is better.

    Where a number was measured once, all three are the same.
    """

    name: str
    median: float
    least: float
    largest: float
    bar: float | None = None
    higher_is_better: bool = True

    @property
    def reached(self) -> bool | None:
        """Whether the bar is; None where there is none."""
        if self.bar is None:
            return None
        return self.median >= self.bar if self.higher_is_better else self.median <= self.bar

    def worse_than(self, kept: "Ratio") -> bool:
        """Whether this is a regression: the median is clearly worse, and the ranges do not meet."""
        margin = max(TOLERANCE * kept.median, SMALL)
        if self.higher_is_better:
            return self.median < kept.median - margin and self.largest < kept.least
        return self.median > kept.median + margin and self.least > kept.largest

    def widened_by(self, other: "Ratio") -> "Ratio":
        """This ratio with the range of both."""
        least, largest = min(self.least, other.least), max(self.largest, other.largest)
        return replace(self, least=least, largest=largest)


def main() -> int:
    """Collect, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the scripts wrote")
    parser.add_argument("--kept", type=Path, default=KEPT)
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--keep", action="store_true", help="these are the ones to compare with from now on")
    change.add_argument("--widen", action="store_true", help="this is another run of what is kept")
    arguments = parser.parse_args()
    found = collect(arguments.folder)
    kept = load(arguments.kept) if arguments.kept.exists() else []
    print("\n".join(table(found, kept)))
    worse = regressions(found, kept)
    for line in worse:
        print(f"WORSE: {line}", file=sys.stderr)
    if arguments.keep or arguments.widen:
        merged = {ratio.name: ratio for ratio in kept}
        for ratio in found:
            before = merged.get(ratio.name)
            merged[ratio.name] = before.widened_by(ratio) if before and arguments.widen else ratio
        write(arguments.kept, sorted(merged.values(), key=lambda ratio: ratio.name))
        return 0
    return 1 if worse else 0


def write(file: Path, ratios: Sequence[Ratio]) -> None:
    """Keep them; those of docs/ fill the table of its page, too."""
    file.write_text(json.dumps([asdict(ratio) for ratio in ratios], indent=1) + "\n")
    if file == KEPT:
        fill(DOCS / "performance.md", "ratios", table([r for r in ratios if r.bar is not None], []))


def load(file: Path) -> list[Ratio]:
    """What `write` wrote."""
    return [Ratio(**entry) for entry in json.loads(file.read_text())]


def regressions(found: Sequence[Ratio], kept: Sequence[Ratio]) -> list[str]:
    """A line for each ratio that has become worse."""
    before = {ratio.name: ratio for ratio in kept}
    return [
        f"{ratio.name}: {shown(ratio)}, was {shown(before[ratio.name])}"
        for ratio in found
        if ratio.name in before and ratio.worse_than(before[ratio.name])
    ]


def collect(folder: Path) -> list[Ratio]:
    """Every ratio that the files of a folder tell; files that are not there tell none."""
    found: list[Ratio] = []
    for name, reader in READERS.items():
        if (folder / name).exists():
            found += reader(folder / name)
    return found


def of_peers(file: Path) -> Iterator[Ratio]:
    """Throughput by each peer's, and by the best of them."""
    bars = {("embed_image", 16): 4.0, ("embed_text", 16): 2.0}
    scripts = {("query", 1, "researcher"): 5.0, ("query", 8, "researcher"): 8.0}
    rows = [row for row in compare(read_rows(Round, file)) if row.system != OURS]
    groups: dict[tuple[str, str, int], list[Comparison]] = {}
    for row in rows:
        groups.setdefault((row.network, row.target, row.clients), []).append(row)
    for (network, target, clients), group in groups.items():
        best = min(group, key=lambda row: row.ratio)
        for row in group:
            bar = scripts.get((target, clients, row.system))
            bar = bars.get((target, clients)) if row is best and bar is None else bar
            name = f"{target}, {network}, {clients} clients: by {row.system}'s throughput"
            yield Ratio(name, row.ratio, row.least, row.largest, bar)


def of_bench(file: Path) -> Iterator[Ratio]:
    """The tail at part of the load, out of `tercet bench`'s own file.

    Its shares of ceilings are no ratios to compare: ceilings are measured minutes before, and a machine that
    others share is a fifth slower or faster then. `of_shares` has them measured in turns.
    """
    points = json.loads(file.read_text())["points"]
    for point in points:
        if point["mode"] == "open" and point["latency"]:
            tail = point["latency"]["p99"] / point["latency"]["p50"]
            best = max(p["throughput"] for p in points if p["target"] == point["target"])
            name = f"{point['target']} at {point['load'] / best:.0%} of its throughput: p99 by p50"
            bar = 2.0 if point["target"] == "embed_image" else None
            yield Ratio(name, tail, tail, tail, bar, higher_is_better=False)


def of_shares(file: Path) -> Iterator[Ratio]:
    """What serving leaves of the throughput of the same work in one process."""
    bars = {("embed_image", 16): 0.85, ("embed_text", 16): 0.8}
    shares: dict[tuple[str, int], list[float]] = {}
    for row in read_rows(Share, file):
        shares.setdefault((row.target, row.clients), []).append(row.share)
    for (target, clients), found in shares.items():
        name = f"{target}, {clients} clients: by the same work without a server"
        yield Ratio(name, **spread(found), bar=bars.get((target, clients)))


def of_steps(file: Path) -> Iterator[Ratio]:
    """The share of a composed query that is not computation."""
    for row in rows_of(file):
        if row["step"] == "query":
            share = float(row["share_of_query"])
            yield Ratio("query: share that is not computation", share, share, share, 0.10, False)


def of_indexing(file: Path) -> Iterator[Ratio]:
    """Indexing by embed_image's best, and how memory grew from the first round to the last."""
    rows = rows_of(file)
    name = f"indexing {rows[-1]['pictures']} files: by embed_image's best throughput"
    yield Ratio(name, **spread(float(row["ratio"]) for row in rows), bar=0.9)
    grown = float(rows[-1]["resident_mb"]) / float(rows[0]["resident_mb"])
    yield Ratio("indexing: memory at the end by that at a fifth", grown, grown, grown, 1.1, False)


def of_repeats(file: Path) -> Iterator[Ratio]:
    """How many times as fast a remembered reference is asked again."""
    yield Ratio("query: remembered by not", **spread(float(row["ratio"]) for row in rows_of(file)))


def of_search(file: Path) -> Iterator[Ratio]:
    """Recall, the tail and exact search's time by the product's, at the largest size with two threads."""
    rows = [row for row in rows_of(file) if row["queries"] == "composed" and row["kind"] in KINDS]
    largest = max(int(row["size"]) for row in rows)
    rows = [row for row in rows if int(row["size"]) == largest]
    threads = max(int(row["threads"]) for row in rows)
    rows = [row for row in rows if int(row["threads"]) == threads]
    for row in rows:
        if row["kind"] == "exact":
            share = float(row["of_product"])
            name = f"search, {largest:,}: exact by a matrix product's time"
            yield Ratio(name, share, share, share, 1.2, False)
    good = [row for row in rows if row["kind"] == "quantised" and float(row["recall_at_10"]) >= 0.99]
    if good:
        best = min(good, key=lambda row: float(row["p99_ms"]))
        recall, tail = float(best["recall_at_10"]), float(best["p99_ms"])
        yield Ratio(f"search, {largest:,}: recall@10 of codes", recall, recall, recall, 0.99)
        exact = median(float(row["p50_ms"]) for row in rows if row["kind"] == "exact")
        speed = exact / float(best["p50_ms"])
        yield Ratio(f"search, {largest:,}: codes by exact search's speed", speed, speed, speed)
        yield Ratio(f"search, {largest:,}: p99 of codes, ms", tail, tail, tail, 5.0, False)


def of_captioner(file: Path) -> Iterator[Ratio]:
    """Pictures a second by transformers', and the time by its floor."""
    for entry in json.loads(file.read_text())["ratios"]:
        yield Ratio(**entry)


KINDS = ("exact", "quantised")
READERS: dict[str, Callable[[Path], Iterator[Ratio]]] = {
    "peers.csv": of_peers,
    "shares.csv": of_shares,
    "embedding/bench.json": of_bench,
    "captioner.json": of_captioner,
    "steps.csv": of_steps,
    "search.csv": of_search,
    "indexing.csv": of_indexing,
    "repeats.csv": of_repeats,
}


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The lines of a CSV."""
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def shown(ratio: Ratio) -> str:
    """Median and range."""
    if ratio.least == ratio.largest:
        return f"{ratio.median:.3g}"
    return f"{ratio.median:.3g} ({ratio.least:.3g} to {ratio.largest:.3g})"


def table(found: Sequence[Ratio], kept: Sequence[Ratio]) -> list[str]:
    """As Markdown; with what is kept beside it, where anything is."""
    before = {ratio.name: shown(ratio) for ratio in kept}
    header = ("", "median (range)", *(["kept"] if kept else []), "bar", "reached")
    lines = []
    for ratio in found:
        sign = "≥" if ratio.higher_is_better else "≤"
        bar = "" if ratio.bar is None else f"{sign} {ratio.bar:g}"
        reached = {None: "", True: "yes", False: "**no**"}[ratio.reached]
        lines.append(
            (ratio.name, shown(ratio), *([before.get(ratio.name, "")] if kept else []), bar, reached)
        )
    return markdown(header, lines)


if __name__ == "__main__":
    sys.exit(main())
