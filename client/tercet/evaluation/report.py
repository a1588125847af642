"""A finished evaluation as a value, and as a folder that is read back, compared and shown.

::

    FOLDER/
    ├── report.json       the numbers and everything that made them; SHA-256 of every other file
    ├── queries.parquet   a row for each query and composition
    ├── index.html        a page to look at, with pictures/ beside it
    └── plots/            the same numbers drawn

Numbers are in 0..1 in the files and times 100 where they are shown.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tercet.errors import InputError
from tercet.evaluation.folder import place_of, replacing
from tercet.evaluation.results import (
    DatasetFacts,
    Evaluation,
    Number,
    Numbers,
    QueryRecord,
    RunReport,
    TaskFacts,
    make_report,
)
from tercet.evaluation.values import Metric, PictureSource

__all__ = [
    "FORMAT",
    "Evaluation",
    "QueryRecord",
    "RunReport",
    "check_folder",
    "make_report",
    "read_report",
    "write_report",
]

FORMAT, VERSION = "tercet-evaluation", 1
REPORT, QUERIES = "report.json", "queries.parquet"
OWN_NAMES = (REPORT, QUERIES, "index.html", "plots", "pictures")


def write_report(
    folder: Path, report: RunReport, pictures: Mapping[str, PictureSource] | None = None
) -> None:
    """Write the report into `folder`, replacing a former one there at once; other files are left alone.

    `pictures` are the data set's, for the page; those that cannot be opened are shown as missing.

    Raises:
        InputError: the folder holds something else than a report under the names that a report has, or the
            disk refuses.
        TercetError: what `pip install 'tercet[evaluate]'` installs is missing.
    """
    from tercet.evaluation.page import make_page
    from tercet.evaluation.plots import as_png, as_svg, draw_report
    from tercet.evaluation.records import write_queries

    old = check_folder(folder)
    with replacing(folder, old) as new:
        write_queries(new / QUERIES, report)
        figures = draw_report(report)
        (new / "plots").mkdir()
        for name, figure in figures.items():
            (new / "plots" / f"{name}.png").write_bytes(as_png(figure))
            (new / "plots" / f"{name}.svg").write_bytes(as_svg(figure))
        page, thumbnails = make_page(report, pictures or {}, list(figures))
        (new / "index.html").write_text(page, encoding="utf-8")
        (new / "pictures").mkdir()
        for name, content in thumbnails.items():
            (new / name).write_bytes(content)
        files = {
            path.relative_to(new).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(new.rglob("*"))
            if path.is_file()
        }
        body = {"format": FORMAT, "version": VERSION, **_as_json(report), "files": files}
        (new / REPORT).write_text(json.dumps(body, indent=1, allow_nan=False) + "\n", encoding="ascii")


def read_report(folder: Path) -> RunReport:
    """Read what `write_report` wrote.

    Raises:
        InputError: the folder holds no report, one of another version, or a damaged one.
        TercetError: what `pip install 'tercet[evaluate]'` installs is missing.
    """
    from tercet.evaluation.records import read_queries

    content = _read_json(place_of(folder, REPORT))
    queries = place_of(folder, QUERIES)
    try:
        raw = queries.read_bytes()
    except OSError as error:
        raise _damaged(queries, error.strerror or str(error)) from None
    if hashlib.sha256(raw).hexdigest() != content["files"].get(QUERIES):
        raise _damaged(queries, f"its SHA-256 is not the one in {REPORT}")
    try:
        records = read_queries(raw, [metric["name"] for metric in content["dataset"]["metrics"]])
        return _from_json(content, records)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(place_of(folder, REPORT), repr(error)) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path.parent} holds no report; give a folder that `tercet evaluate` has written"
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path} is no report of an evaluation; give a folder that `tercet evaluate` has written"
        )
    if content.get("version") != VERSION:
        raise InputError(
            f"{path} has version {content.get('version')!r} and this Tercet reads {VERSION}; read it with "
            "the Tercet that wrote it, or evaluate again"
        )
    if not isinstance(content.get("files"), dict):
        raise _damaged(path, "it does not list its files")
    return content


def check_folder(folder: Path) -> list[str]:
    """The files of the report that is in `folder` and would be replaced, relative to it.

    Raises:
        InputError: the folder holds something else than a report under the names that a report has.
    """
    # After a crash there may be two: the one that counts, and the one that it has not yet replaced.
    there = [path for path in {place_of(folder, REPORT), folder / REPORT} if path.exists()]
    try:
        files = {name for path in there for name in _read_json(path)["files"]}
    except InputError as error:
        raise InputError(f"{error}. It is not written over: choose another folder, or move it away") from None
    if there:
        return sorted({*files, REPORT})
    if taken := [name for name in OWN_NAMES if (folder / name).exists()]:
        raise InputError(
            f"{folder / taken[0]} is there and belongs to no report; choose another folder for the report"
        )
    return []


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged: {reason}; run the same `tercet evaluate` again into a new folder")


def _as_json(report: RunReport) -> dict[str, Any]:
    return {
        "dataset": dataclasses.asdict(report.dataset),
        "lineup": report.lineup,
        "compositions": [
            {
                "label": evaluation.label,
                "composition": evaluation.composition,
                "settings": evaluation.settings,
                "texts": evaluation.texts,
                "numbers": dataclasses.asdict(evaluation.numbers),
            }
            for evaluation in report.evaluations
        ],
        "run": report.run,
    }  # fmt: skip


def _from_json(content: Mapping[str, Any], records: Mapping[str, tuple[QueryRecord, ...]]) -> RunReport:
    facts = content["dataset"]
    dataset = DatasetFacts(
        **{
            **facts,
            "tasks": tuple(TaskFacts(**task) for task in facts["tasks"]),
            "metrics": tuple(Metric(**metric) for metric in facts["metrics"]),
        }
    )

    def numbers(group: Mapping[str, Any]) -> dict[str, Number]:
        return {metric: Number(**number) for metric, number in group.items()}

    evaluations = tuple(
        Evaluation(
            label=made["label"],
            composition=made["composition"],
            settings=made["settings"],
            texts=made["texts"],
            records=records.get(made["label"], ()),
            numbers=Numbers(
                overall=numbers(made["numbers"]["overall"]),
                tasks={name: numbers(group) for name, group in made["numbers"]["tasks"].items()},
                aspects={name: numbers(group) for name, group in made["numbers"]["aspects"].items()},
            ),
        )
        for made in content["compositions"]
    )
    return RunReport(dataset, content["lineup"], evaluations, content["run"])
