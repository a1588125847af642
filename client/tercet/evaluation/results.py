"""What an evaluation found, as values: each query's record, the numbers with intervals, what made them.

Numbers are in 0..1 and shown times 100.
"""

import dataclasses
import datetime
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tercet.composition import read_template
from tercet.errors import InputError
from tercet.evaluation.intervals import RESAMPLES, bootstrap
from tercet.evaluation.metrics import measure
from tercet.evaluation.provenance import (
    code_commit,
    hide_in,
    machine,
    package_versions,
    without_secrets,
    written_command,
)
from tercet.evaluation.values import Dataset, Metric, Query, Ranking, Task
from tercet.lineup import Lineup

if TYPE_CHECKING:
    from tercet.compositions.scoring import ComposedQuery
    from tercet.evaluation.run import Chosen, TaskRun

__all__ = [
    "CONFIDENCE",
    "DatasetFacts",
    "Evaluation",
    "Number",
    "Numbers",
    "QueryRecord",
    "RunReport",
    "TaskFacts",
    "make_records",
    "make_report",
    "summarise",
    "values_of",
]

CONFIDENCE, SEED = 0.95, 0


@dataclass(frozen=True)
class QueryRecord:
    """One query under one composition.

    captions: of every wording, the whole picture's first; composed: the texts that were embedded.
    background: `remove`, `keep`, or empty where nothing was captioned; background_reason: why, in words.
    caption_cut: whether a caption lost words to leave room for the modification.
    notes: what did not go as asked.
    rank: of the best target, 1 is first; None where no target is known or none is a candidate.
    values: by metric, in 0..1; empty where the right answers are not known.
    top: the best candidates' names, best first; scores: theirs.
    """

    name: str
    task: str
    aspects: tuple[str, ...]
    reference: str
    modifications: tuple[str, ...]
    targets: tuple[str, ...]
    captions: tuple[str, ...] = ()
    composed: tuple[str, ...] = ()
    background: str = ""
    background_reason: str = ""
    caption_cut: bool = False
    notes: tuple[str, ...] = ()
    rank: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    top: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Number:
    """A mean over queries and its bootstrap 95 % interval, in 0..1."""

    value: float
    low: float
    high: float
    queries: int


@dataclass(frozen=True)
class Numbers:
    """By metric: overall (the mean over tasks), of each task, of each aspect (the mean over its queries)."""

    overall: Mapping[str, Number] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Number]] = field(default_factory=dict)
    aspects: Mapping[str, Mapping[str, Number]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One composition on the whole data set; records are in the data set's order.

    `texts` are what settings only name: a template's text, a prompt's.
    """

    label: str
    composition: str
    settings: Mapping[str, Any]
    texts: Mapping[str, str]
    records: tuple[QueryRecord, ...]
    numbers: Numbers


@dataclass(frozen=True)
class TaskFacts:
    """What a report keeps of a task; `exclude_reference` as in `Task`."""

    name: str
    queries: int
    gallery: int
    exclude_reference: bool


@dataclass(frozen=True)
class DatasetFacts:
    """What a report keeps of the data set.

    `fingerprint` is of every query, its answers and its candidates: reports with the same one can be compared
    query by query.
    """

    name: str
    split: str
    protocol: str
    options: Mapping[str, str | int]
    pictures: int
    answers_known: bool
    fingerprint: str
    tasks: tuple[TaskFacts, ...]
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class RunReport:
    """A finished evaluation.

    lineup: the server's networks as its manifest says: name, fingerprint, roles with checkpoint, precision,
        options and preprocessing, and the exporter's package versions.
    run: command line, start, wall seconds, seeds, bootstrap, package versions, commit, machine.
    """

    dataset: DatasetFacts
    lineup: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...]
    run: Mapping[str, Any]

    def of(self, label: str | None = None) -> Evaluation:
        """The evaluation of that label; without one, the only one.

        Raises:
            InputError: there is none, or which of several is not said.
        """
        labels = ", ".join(repr(evaluation.label) for evaluation in self.evaluations)
        if label is None and len(self.evaluations) == 1:
            return self.evaluations[0]
        for evaluation in self.evaluations:
            if evaluation.label == label:
                return evaluation
        asked = (
            f"has no composition {label!r}" if label else "has several compositions: name one as FOLDER:LABEL"
        )
        raise InputError(f"the report {asked}; it has {labels}")


# Making


def make_records(
    dataset: Dataset, task: Task, composed: "Sequence[Sequence[ComposedQuery]]", ranking: Ranking
) -> tuple[QueryRecord, ...]:
    """The records of a task: `composed` are its queries', one for each wording."""
    values = _measured(dataset, task, ranking)
    records = []
    for number, query in enumerate(task.queries):
        of_query = {metric: of_task[number] for metric, of_task in values.items()}
        records.append(_record(task, query, composed[number], ranking, number, of_query))
    return tuple(records)


def summarise(records: Sequence[QueryRecord], metrics: Sequence[Metric]) -> Numbers:
    """The numbers of the records, with intervals; none where the right answers are not known."""
    by_task: dict[str, list[QueryRecord]] = {}
    by_aspect: dict[str, list[QueryRecord]] = {}
    for record in records:
        if record.values:
            by_task.setdefault(record.task, []).append(record)
            for aspect in dict.fromkeys(record.aspects):
                by_aspect.setdefault(aspect, []).append(record)
    if not by_task:
        return Numbers()

    def number(groups: Sequence[Sequence[QueryRecord]], metric: str) -> Number:
        interval = bootstrap([values_of(group, metric) for group in groups], confidence=CONFIDENCE, seed=SEED)
        return Number(interval.mean, interval.low, interval.high, sum(len(group) for group in groups))

    def numbers(*groups: Sequence[QueryRecord]) -> dict[str, Number]:
        return {metric.name: number(groups, metric.name) for metric in metrics}

    return Numbers(
        overall=numbers(*by_task.values()),
        tasks={name: numbers(group) for name, group in by_task.items()},
        aspects={name: numbers(group) for name, group in by_aspect.items()},
    )


def make_report(
    dataset: Dataset,
    lineup: Lineup,
    chosen: "Sequence[Chosen]",
    runs: "Mapping[str, Sequence[TaskRun]]",
    *,
    options: Mapping[str, str | int] | None = None,
    command: Sequence[str] = (),
    started: datetime.datetime | None = None,
    seconds: float = 0.0,
    seeds: Mapping[str, int] | None = None,
) -> RunReport:
    """The report of what `evaluate` returned.

    Args:
        dataset: that was evaluated.
        lineup: the server's.
        chosen: the compositions, in the order of tables and plots.
        runs: by label, as `evaluate` returns them.
        options: that the data set was loaded with.
        command: the command line; secrets in it are hidden.
        started: when, with its time zone; now minus `seconds` if not given.
        seconds: wall time.
        seeds: by name, besides those in settings and of the bootstrap.
    """
    evaluations = []
    for choice in chosen:
        records = tuple(
            record
            for run in runs[choice.label]
            for record in make_records(dataset, run.task, run.composed, run.ranking)
        )
        all_settings = dataclasses.asdict(choice.settings)
        settings = {name: all_settings[name] for name in choice.recipe.reads}
        evaluations.append(
            Evaluation(
                label=choice.label,
                composition=choice.recipe.name,
                settings=without_secrets(settings),
                texts=_texts(settings),
                records=records,
                numbers=summarise(records, dataset.metrics),
            )
        )
    started = started or datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    run = {
        "command": written_command(command),
        "started": started.astimezone(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "seeds": {"bootstrap": SEED, **(seeds or {})},
        "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE},
        "versions": package_versions(),
        "commit": code_commit(),
        "machine": machine(),
    }
    return RunReport(_facts(dataset, options or {}), _lineup(lineup), tuple(evaluations), run)


def values_of(records: Sequence[QueryRecord], metric: str) -> NDArray[np.float64]:
    """The metric of each record, f64 [Q]."""
    return np.array([record.values[metric] for record in records], np.float64)


def _measured(dataset: Dataset, task: Task, ranking: Ranking) -> dict[str, list[float]]:
    if not any(query.targets for query in task.queries):
        return {}
    return {metric.name: measure(metric, task.queries, ranking).tolist() for metric in dataset.metrics}


def _record(
    task: Task,
    query: Query,
    composed: "Sequence[ComposedQuery]",
    ranking: Ranking,
    number: int,
    values: Mapping[str, float],
) -> QueryRecord:
    candidates = task.gallery if query.candidates is None else query.candidates
    found = ranking.top[number] >= 0
    best = min(ranking.target_ranks[number].tolist(), default=math.inf)
    texts = [text for made in composed for text in made.texts or (made.composition.text,)]
    return QueryRecord(
        name=query.name,
        task=task.name,
        aspects=query.aspects,
        reference=query.reference,
        modifications=query.modifications,
        targets=query.targets,
        captions=_distinct(caption.text for made in composed for caption in made.captions),
        composed=_distinct(text for text in texts if text),
        background=", ".join(_distinct(made.background for made in composed if made.background)),
        background_reason="; ".join(_distinct(made.background_reason for made in composed)),
        caption_cut=any(made.caption_cut for made in composed),
        notes=_distinct(hide_in(note) for made in composed for note in made.notes),
        rank=int(best) if math.isfinite(best) else None,
        values=values,
        top=tuple(candidates[row] for row in ranking.top[number][found].tolist()),
        scores=tuple(ranking.scores[number][found].tolist()),
    )


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    texts = {name: read_template(value) for name, value in settings.items() if name.endswith("template")}
    if "prompt" in settings:
        from tercet.compositions.rewrite import read_prompt

        texts["prompt"] = read_prompt(settings["prompt"])
    return texts


def _facts(dataset: Dataset, options: Mapping[str, str | int]) -> DatasetFacts:
    digest = hashlib.sha256()
    for task in dataset.tasks:
        digest.update(repr((task.name, task.gallery, task.exclude_reference)).encode())
        for query in task.queries:
            digest.update(repr(dataclasses.astuple(query)).encode())
    return DatasetFacts(
        name=dataset.name,
        split=dataset.split,
        protocol=dataset.protocol,
        options=dict(options),
        pictures=len(dataset.pictures),
        answers_known=dataset.answers_known,
        fingerprint=digest.hexdigest(),
        tasks=tuple(
            TaskFacts(task.name, len(task.queries), len(task.gallery), task.exclude_reference)
            for task in dataset.tasks
        ),
        metrics=dataset.metrics,
    )


def _lineup(lineup: Lineup) -> dict[str, Any]:
    roles = {
        name: {
            "network": role.network,
            "checkpoint": dataclasses.asdict(role.checkpoint),
            "precision": role.precision,
            "onnx_sha256": role.onnx_sha256,
            "parameters": role.parameters,
            "options": dict(role.options),
            "details": dict(role.details),
        }
        for name, role in lineup.roles.items()
    }
    return without_secrets(
        {
            "name": lineup.name,
            "fingerprint": lineup.fingerprint,
            "encoder_fingerprint": lineup.encoder_fingerprint,
            "roles": roles,
            "engines": dict(lineup.engines),
            "versions": dict(lineup.versions),
        }
    )
