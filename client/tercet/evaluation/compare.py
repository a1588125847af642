"""Whether one evaluation is better than another on the same queries, by how much, and on which of them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.errors import InputError
from tercet.evaluation.intervals import compare
from tercet.evaluation.report import read_report
from tercet.evaluation.results import DatasetFacts, Evaluation, QueryRecord, RunReport, values_of

__all__ = ["ChangedQuery", "Difference", "ReportComparison", "as_json", "compare_reports", "open_evaluation"]

CHANGED = 10
"""Queries that are named in each direction."""


@dataclass(frozen=True)
class Difference:
    """B minus A on one metric, in 0..1, over queries.

    low, high: the 95 % interval of the paired bootstrap.
    probability_better: the share of resamples in which B is higher, ties counted half.
    p_value: of the sign test on won and lost queries, two-sided.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    probability_better: float
    p_value: float
    won: int
    lost: int
    tied: int

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `undecided` where the interval holds 0."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "undecided"


@dataclass(frozen=True)
class ChangedQuery:
    """A query whose best target's rank changed much; None: no target among the candidates."""

    name: str
    task: str
    reference: str
    modifications: tuple[str, ...]
    rank_a: int | None
    rank_b: int | None
    texts_a: tuple[str, ...]
    texts_b: tuple[str, ...]


@dataclass(frozen=True)
class ReportComparison:
    """B against A: by metric, the headline first; the headline by task and by aspect; what changed most."""

    dataset: str
    split: str
    a: str
    b: str
    lineup_a: str
    lineup_b: str
    headline: str
    metrics: Mapping[str, Difference]
    tasks: Mapping[str, Difference]
    aspects: Mapping[str, Difference]
    gained: tuple[ChangedQuery, ...]
    lost: tuple[ChangedQuery, ...]

    @property
    def words(self) -> str:
        """Whether B is better on the headline, in a sentence."""
        of = self.metrics[self.headline]
        numbers = (
            f"{self.headline} {100 * of.b:.1f} against {100 * of.a:.1f}, a difference of "
            f"{signed(of.difference)} (95 % interval {signed(of.low)} to {signed(of.high)})"
        )
        counts = f"{of.won:,} queries won, {of.lost:,} lost, {of.tied:,} tied"
        if of.verdict == "undecided":
            return f"These queries do not tell A and B apart: {numbers}; {counts}."
        return f"B is {of.verdict} than A: {numbers}; {counts}."


def signed(value: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def open_evaluation(place: str) -> tuple[RunReport, Evaluation]:
    """The report and composition that FOLDER, or FOLDER:LABEL, names.

    Raises:
        InputError: there is no such report or composition, or several and none is named.
    """
    folder, label = Path(place), None
    if not folder.exists():
        ends = [number for number, character in enumerate(place) if character == ":"]
        for end in ends:
            if place[:end] and Path(place[:end]).exists():
                folder, label = Path(place[:end]), place[end + 1 :]
                break
    report = read_report(folder)
    return report, report.of(label)


def compare_reports(
    a: tuple[RunReport, Evaluation], b: tuple[RunReport, Evaluation], *, changed: int = CHANGED
) -> ReportComparison:
    """Compare B with A; both are of the same data set, split, queries and candidates.

    Raises:
        InputError: they are not, and why; or the right answers are not known.
    """
    (report_a, of_a), (report_b, of_b) = a, b
    _check_same(report_a.dataset, report_b.dataset, of_a.records, of_b.records)
    dataset = report_a.dataset
    headline = dataset.metrics[0].name
    by_task: dict[str, list[int]] = {}
    by_aspect: dict[str, list[int]] = {}
    for number, record in enumerate(of_a.records):
        if record.values:
            by_task.setdefault(record.task, []).append(number)
            for aspect in dict.fromkeys(record.aspects):
                by_aspect.setdefault(aspect, []).append(number)

    def difference(metric: str, groups: Sequence[Sequence[int]]) -> Difference:
        values = [
            [values_of([records[number] for number in group], metric) for group in groups]
            for records in (of_a.records, of_b.records)
        ]
        return _difference(*values)

    gained, lost = _changed(of_a.records, of_b.records, dataset.pictures + 1, changed)
    return ReportComparison(
        dataset=dataset.name,
        split=dataset.split,
        a=of_a.label,
        b=of_b.label,
        lineup_a=str(report_a.lineup["name"]),
        lineup_b=str(report_b.lineup["name"]),
        headline=headline,
        metrics={metric.name: difference(metric.name, list(by_task.values())) for metric in dataset.metrics},
        tasks={task: difference(headline, [group]) for task, group in by_task.items()},
        aspects={aspect: difference(headline, [group]) for aspect, group in by_aspect.items()},
        gained=gained,
        lost=lost,
    )


def as_json(comparison: ReportComparison) -> dict[str, Any]:
    """Everything, with the verdicts, as JSON holds it."""

    def of(differences: Mapping[str, Difference]) -> dict[str, Any]:
        return {
            name: {"verdict": each.verdict, **dataclasses.asdict(each)} for name, each in differences.items()
        }

    return {
        **dataclasses.asdict(comparison),
        "verdict": comparison.metrics[comparison.headline].verdict,
        "words": comparison.words,
        "metrics": of(comparison.metrics),
        "tasks": of(comparison.tasks),
        "aspects": of(comparison.aspects),
    }


def _difference(a: Sequence[NDArray[np.float64]], b: Sequence[NDArray[np.float64]]) -> Difference:
    found = compare(a, b)
    mean_a, mean_b = (math.fsum(float(np.mean(task)) for task in of) / len(of) for of in (a, b))
    return Difference(
        a=mean_a,
        b=mean_b,
        difference=found.difference.mean,
        low=found.difference.low,
        high=found.difference.high,
        probability_better=found.probability_better,
        p_value=found.p_value,
        won=len(found.won),
        lost=len(found.lost),
        tied=found.tied,
    )


def _check_same(
    a: DatasetFacts, b: DatasetFacts, records_a: Sequence[QueryRecord], records_b: Sequence[QueryRecord]
) -> None:
    def refuse(reason: str) -> None:
        raise InputError(f"the reports cannot be compared: {reason}")

    if (a.name, a.split) != (b.name, b.split):
        refuse(f"A is of {a.name} {a.split}, B of {b.name} {b.split}; evaluate both on the same data set")
    if not (a.answers_known and b.answers_known):
        refuse(f"only the server of {a.name} {a.split} knows the right answers; compare what it says")
    for name in sorted({*a.options, *b.options}):
        ours, theirs = a.options.get(name), b.options.get(name)
        if ours != theirs:
            refuse(f"A was made with {name}={ours}, B with {name}={theirs}; evaluate one of them again")
    if [metric.name for metric in a.metrics] != [metric.name for metric in b.metrics]:
        refuse("they have different metrics; evaluate the older one again")
    if len(records_a) != len(records_b):
        refuse(f"A has {len(records_a):,} queries, B {len(records_b):,}; evaluate both on the same files")
    for of_a, of_b in zip(records_a, records_b, strict=True):
        for part in ("task", "name", "reference", "modifications", "targets"):
            if getattr(of_a, part) != getattr(of_b, part):
                refuse(
                    f"query {of_a.name} of A has the {part} {getattr(of_a, part)!r}, in its place B has "
                    f"{getattr(of_b, part)!r}; evaluate both on the same files"
                )
    if a.fingerprint != b.fingerprint:
        refuse("their galleries or the order of their candidates differ; evaluate both on the same files")


def _changed(
    a: Sequence[QueryRecord], b: Sequence[QueryRecord], worst: int, count: int
) -> tuple[tuple[ChangedQuery, ...], tuple[ChangedQuery, ...]]:
    """The queries whose rank rose and fell by the largest factor; no target counts as rank `worst`."""
    factors = [
        math.log((of_a.rank or worst) / (of_b.rank or worst)) if of_a.targets else 0.0
        for of_a, of_b in zip(a, b, strict=True)
    ]
    order = sorted(range(len(factors)), key=lambda number: -factors[number])
    gained = [number for number in order[:count] if factors[number] > 0]
    lost = [number for number in order[::-1][:count] if factors[number] < 0]

    def query(number: int) -> ChangedQuery:
        of_a, of_b = a[number], b[number]
        return ChangedQuery(
            name=of_a.name,
            task=of_a.task,
            reference=of_a.reference,
            modifications=of_a.modifications,
            rank_a=of_a.rank,
            rank_b=of_b.rank,
            texts_a=of_a.composed,
            texts_b=of_b.composed,
        )

    return tuple(map(query, gained)), tuple(map(query, lost))
