"""The page of a report: tables, plots, and queries to look at, as one HTML file with pictures beside it.

It needs no JavaScript and no network. Texts and names of data sets are escaped; files are named by their
content, so that no name of a data set becomes a path or an address.
"""

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps

from tercet.errors import PictureError, TercetError
from tercet.evaluation.results import Evaluation, QueryRecord, RunReport
from tercet.evaluation.table import (
    Cell,
    Column,
    cell_of,
    cell_with_interval,
    columns_of,
    kind_of,
    published_cell,
    rows_beside,
    short_name,
)
from tercet.evaluation.values import PictureSource

__all__ = ["make_page", "pick_queries", "thumbnail"]

PICTURES = "pictures"
SIDE = 176
"""Pixels of a thumbnail's longer side."""

SHOWN_ANSWERS = 12
SHOWN_TARGETS = 3
QUERIES_EACH = 5
FEWER_QUERIES = 3
"""Of each kind, where there are more than `MANY` compositions."""

MANY = 4
LONGEST_TEXT = 600


@dataclass(frozen=True)
class _Tile:
    """A picture as the page shows it; `file` is None where it cannot be opened."""

    name: str
    file: str | None
    rank: int | None = None
    score: float | None = None
    right: bool = False


@dataclass(frozen=True)
class _Shown:
    """A query as the page shows it; `missing` are targets that are not among the answers shown."""

    record: QueryRecord
    reference: _Tile
    answers: tuple[_Tile, ...]
    missing: tuple[_Tile, ...]


def make_page(
    report: RunReport, pictures: Mapping[str, PictureSource], plots: Sequence[str]
) -> tuple[str, dict[str, bytes]]:
    """The HTML, and by path beside it the thumbnails that it shows.

    `plots` are the names of the plots in the report's folder, without ending.

    Raises:
        TercetError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise TercetError(f"the page needs jinja2 ({error}): pip install 'tercet[evaluate]'") from error
    environment = Environment(
        loader=PackageLoader("tercet.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short_name"] = short_name
    environment.filters["shortened"] = _shortened
    files: dict[str, bytes] = {}
    tiles = _Tiles(pictures, files)
    each = QUERIES_EACH if len(report.evaluations) <= MANY else FEWER_QUERIES
    text = environment.get_template("page.html.jinja").render(
        report=report,
        headline=report.dataset.metrics[0].name,
        queries=sum(task.queries for task in report.dataset.tasks),
        columns=columns_of(report),
        ours=[(of, [cell_of(of, column) for column in columns_of(report)]) for of in report.evaluations],
        published=_published(report, columns_of(report)),
        aspects=_aspects(report),
        plots=plots,
        shown=[
            (of, {kind: [tiles.show(record) for record in of_kind] for kind, of_kind in picked.items()})
            for of, picked in ((of, pick_queries(of, each)) for of in report.evaluations)
        ],
    )
    # A lone surrogate, from a name that is not UTF-8, could not be written.
    return text.encode("utf-8", "backslashreplace").decode(), files


def pick_queries(evaluation: Evaluation, each: int) -> dict[str, list[QueryRecord]]:
    """The queries to show by kind: worst, median and best by the rank of the best target; no query twice.

    Where the right answers are not known, some evenly spaced.
    """
    records = list(evaluation.records)
    if not evaluation.numbers.overall:
        step = max(1, len(records) // (3 * each))
        return {"some": records[::step][: 3 * each]}
    order = sorted(records, key=lambda of: (of.rank or math.inf, -of.scores[0] if of.scores else 0.0))
    each = min(each, math.ceil(len(order) / 3))
    best = order[:each]
    worst = order[max(each, len(order) - each) :][::-1]
    middle = order[each : len(order) - each]
    start = max(0, (len(middle) - each) // 2)
    picked = {"worst": worst, "median": middle[start : start + each], "best": best}
    return {kind: of_kind for kind, of_kind in picked.items() if of_kind}


def thumbnail(source: PictureSource, side: int = SIDE) -> bytes | None:
    """The picture as a JPEG file of at most `side` pixels each way; None where it cannot be opened."""
    try:
        with Image.open(io.BytesIO(source.encoded())) as file:
            # JPEG decodes at a fraction of its size for a fraction of the time.
            file.draft("RGB", (2 * side, 2 * side))
            upright = ImageOps.exif_transpose(file)
            if upright.has_transparency_data:
                flat = Image.new("RGBA", upright.size, "white")
                flat.alpha_composite(upright.convert("RGBA"))
                upright = flat
            small = ImageOps.contain(upright.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    except (PictureError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=82, optimize=True)
    return encoded.getvalue()


class _Tiles:
    """Makes the thumbnails that are shown, each once."""

    def __init__(self, pictures: Mapping[str, PictureSource], files: dict[str, bytes]) -> None:
        self._pictures, self._files = pictures, files
        self._known: dict[str, str | None] = {}

    def show(self, record: QueryRecord) -> _Shown:
        """The query with its pictures."""
        targets = set(record.targets)
        answers = tuple(
            _Tile(name, self._file(name), rank, score, name in targets)
            for rank, (name, score) in enumerate(
                list(zip(record.top, record.scores, strict=True))[:SHOWN_ANSWERS], 1
            )
        )
        found = {tile.name for tile in answers}
        missing = [name for name in dict.fromkeys(record.targets) if name not in found]
        ranks = {name: rank for rank, name in enumerate(record.top, 1)}
        return _Shown(
            record,
            _Tile(record.reference, self._file(record.reference)),
            answers,
            tuple(
                _Tile(name, self._file(name), ranks.get(name), right=True) for name in missing[:SHOWN_TARGETS]
            ),
        )

    def _file(self, name: str) -> str | None:
        if name not in self._known:
            encoded = thumbnail(self._pictures[name]) if name in self._pictures else None
            path = None
            if encoded is not None:
                path = f"{PICTURES}/{hashlib.sha256(encoded).hexdigest()[:24]}.jpg"
                self._files[path] = encoded
            self._known[name] = path
        return self._known[name]


def _published(report: RunReport, columns: Sequence[Column]) -> dict[str, Any]:
    """Published rows by heading, their sources in the order of their numbers, and what to know about them."""
    if not report.dataset.answers_known:
        return {"groups": {}, "sources": [], "warnings": (), "remembered": False}
    rows, warnings = rows_beside(report)
    groups: dict[str, list[tuple[Any, list[Cell | None]]]] = {}
    for row in rows:
        cells = [published_cell(row, column) for column in columns]
        if any(cells):
            groups.setdefault(kind_of(row, report.dataset.split), []).append((row, cells))
    sources = list(dict.fromkeys(row.source for group in groups.values() for row, _ in group))
    return {
        "groups": groups,
        "sources": sources,
        "warnings": warnings if groups else (),
        "remembered": any(row.unverified for group in groups.values() for row, _ in group),
    }


def _aspects(report: RunReport) -> dict[str, list[Cell | None]]:
    """The headline by aspect, a cell for each composition."""
    headline = report.dataset.metrics[0].name
    names = dict.fromkeys(name for of in report.evaluations for name in of.numbers.aspects)
    return {
        name: [
            cell_with_interval(of.numbers.aspects.get(name, {}).get(headline)) for of in report.evaluations
        ]
        for name in names
    }


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "..."
