"""What scripts that measure share: arguments, tables into pages, the full-size repository, ratios."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rows import write_rows

__all__ = ["DOCS", "fill", "full_size_repository", "keep", "markdown", "measuring_parser", "spread"]

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CACHE = Path.home() / ".cache" / "tercet" / "peers"
ARCH = "ViT-B-32-quickgelu"


def full_size_repository() -> Path:
    """A model repository with the `small` lineup at full size: random weights, exported where it is missing.

    IS-Net, GIT-base (greedy, 20 tokens, which random weights always use), CLIP ViT-B/32.
    """
    from benchmarks.peers.weights import prepare

    return prepare(CACHE / "weights", ARCH, whole=True)[1]


def measuring_parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all of them take: where rows go, how many rounds, which repository."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repository", type=Path, help="another than the full-size one, made where missing")
    return parser


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table whose first column is text, the others numbers."""
    lines = [f"| {' | '.join(header)} |", f"| --- |{' ---: |' * (len(header) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def fill(page: Path, name: str, lines: Sequence[str]) -> None:
    """Put `lines` between the comments `<!-- name: ... -->` and `<!-- end of name -->` of a page.

    Raises:
        ValueError: the page has no such place.
    """
    text = page.read_text()
    head, begin, rest = text.partition(f"<!-- {name}: ")
    comment, closed, old = rest.partition(" -->\n")
    _, end, tail = old.partition(f"<!-- end of {name} -->")
    if not (begin and closed and end):
        raise ValueError(f"{page} has no place for {name}")
    page.write_text(head + begin + comment + closed + "\n".join(lines) + "\n" + end + tail)


def keep(output: Path, part: str, rows: Sequence[Any], lines: Sequence[str]) -> None:
    """Write a part's rows and print its table; in docs, fill its place in docs/performance.md too."""
    write_rows(output, rows)
    if output.resolve().parent == DOCS:
        fill(DOCS / "performance.md", part, lines)
    print("\n".join(lines))


def spread(values: Iterable[float]) -> Mapping[str, float]:
    """Median, least and largest."""
    known = sorted(values)
    return {"median": median(known), "least": known[0], "largest": known[-1]}
