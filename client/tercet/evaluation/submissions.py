"""The files that the servers of CIRR and CIRCO take, checked as those servers do before one is written.

CIRR (Cuberick-Orion/CIRR, Test-split_server.md) takes two files, one a metric; CIRCO (miccunifi/CIRCO,
README.md and src/evaluation.py) takes one.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tercet.errors import InputError
from tercet.evaluation.values import Dataset, Query, Ranking, Task

__all__ = ["check_submission", "validate_circo", "validate_cirr", "write_submissions"]

CIRR_VERSION = "rc2"
CIRR_ANSWERS: Mapping[str, int] = MappingProxyType({"recall": 50, "recall_subset": 3})
CIRR_BYTES = 5_000_000
CIRCO_ANSWERS = 50


def write_submissions(dataset: Dataset, ranking: Ranking, folder: Path) -> tuple[Path, ...]:
    """Write what the data set's server takes of the ranking of its one task, and return the files.

    Every file is checked first, and each appears whole or not at all.

    Raises:
        InputError: the data set has no server, or its server would refuse the ranking.
    """
    task = _only_task(dataset)
    stem = f"{dataset.name}-{dataset.split}"
    contents: dict[str, dict[str, Any]] = {}
    ranked = {
        query.name: [task.gallery[row] for row in rows if row >= 0]
        for query, rows in zip(task.queries, ranking.top.tolist(), strict=True)
    }
    if dataset.name == "cirr":
        within = {
            query.name: list(names) for query, names in zip(task.queries, ranking.subset_top, strict=True)
        }
        for metric, answers in (("recall", ranked), ("recall_subset", within)):
            contents[f"{stem}-{metric}.json"] = {
                "version": CIRR_VERSION,
                "metric": metric,
                **{query: names[: CIRR_ANSWERS[metric]] for query, names in answers.items()},
            }
    else:
        contents[f"{stem}.json"] = {
            query: [_picture_id(name) for name in names[:CIRCO_ANSWERS]] for query, names in ranked.items()
        }
    texts = {}
    for name, content in contents.items():
        VALIDATORS[dataset.name](content, dataset, name)
        texts[name] = json.dumps(content, separators=(",", ":"))
        _check_size(len(texts[name]), dataset, name)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        unfinished = folder / f"{name}.partial"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / name)
    return tuple(folder / name for name in texts)


def check_submission(path: Path, dataset: Dataset) -> None:
    """Check a file as the data set's server does.

    Raises:
        InputError: the server would refuse the file, or the data set has no server.
    """
    _only_task(dataset)
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}; write the submission again") from error
    VALIDATORS[dataset.name](content, dataset, str(path))
    _check_size(path.stat().st_size, dataset, str(path))


def validate_cirr(content: object, dataset: Dataset, where: str) -> None:
    """Check one of the two CIRR submissions: the metric it names decides which.

    Raises:
        InputError: the server would refuse it.
    """
    content = _as_object(content, where)
    if content.get("version") != CIRR_VERSION:
        raise InputError(f'{where} must say "version": "{CIRR_VERSION}", not {content.get("version")!r}')
    metric = str(content.get("metric"))
    if metric not in CIRR_ANSWERS:
        raise InputError(f'{where} must say "metric": "recall" or "recall_subset", not {metric!r}')
    task = _only_task(dataset)
    gallery = frozenset(task.gallery)

    def allowed(query: Query) -> Collection[str]:
        return (gallery if metric == "recall" else frozenset(query.subset)) - {query.reference}

    answers = {query: names for query, names in content.items() if query not in ("version", "metric")}
    for query, names in answers.items():
        if isinstance(names, list) and (wrong := [name for name in names if str(name).endswith(".png")]):
            raise InputError(f"{where}, query {query}: {wrong[0]!r} is a file; name pictures without .png")
    _check_answers(answers, task, str, CIRR_ANSWERS[metric], allowed, where)


def validate_circo(content: object, dataset: Dataset, where: str) -> None:
    """Check a CIRCO submission: queries counted from 0, of each 50 different pictures' ids.

    The reference may be among them: the official evaluation does not remove it.

    Raises:
        InputError: the server would refuse it.
    """
    task = _only_task(dataset)
    gallery = frozenset(map(_picture_id, task.gallery))
    expected = [str(number) for number in range(len(task.queries))]
    if {query.name for query in task.queries} != set(expected):
        raise InputError(
            f"the queries of {dataset.name} are not numbered from 0 without a gap; check its files"
        )
    _check_answers(_as_object(content, where), task, int, CIRCO_ANSWERS, lambda query: gallery, where)


VALIDATORS: Mapping[str, Callable[[object, Dataset, str], None]] = MappingProxyType(
    {"cirr": validate_cirr, "circo": validate_circo}
)


def _check_answers(
    answers: Mapping[str, Any],
    task: Task,
    kind: type,
    count: int,
    allowed: Callable[[Query], Collection[Any]],
    where: str,
) -> None:
    """Every query of the task and no other has `count` different answers of those allowed."""
    queries = {query.name: query for query in task.queries}
    if missing := [name for name in queries if name not in answers]:
        raise InputError(
            f"{where} lacks {len(missing):,} queries, {missing[0]} the first; answer every query"
        )
    if extra := [name for name in answers if name not in queries]:
        raise InputError(
            f"{where} has {len(extra):,} that are no queries, {extra[0]!r} the first; remove them"
        )
    for name, given in answers.items():
        if not isinstance(given, list) or not all(type(answer) is kind for answer in given):
            raise InputError(f"{where}, query {name}: give a list of {kind.__name__}, not {str(given)[:80]}")
        candidates = allowed(queries[name])
        # Fewer only where there are no more, as in a data set made for a test.
        if len(given) != min(count, len(candidates)):
            raise InputError(
                f"{where}, query {name}: give {min(count, len(candidates))} answers, not {len(given)}"
            )
        if len(set(given)) != len(given):
            again = next(answer for answer in given if given.count(answer) > 1)
            raise InputError(f"{where}, query {name}: {again!r} occurs more than once; name a picture once")
        if wrong := [answer for answer in given if answer not in candidates]:
            raise InputError(
                f"{where}, query {name}: {wrong[0]!r} is no candidate; name pictures of the split (of CIRR's "
                "subset, where it is asked for), and for CIRR not the reference"
            )


def _only_task(dataset: Dataset) -> Task:
    if dataset.name not in VALIDATORS:
        raise InputError(
            f"{dataset.name} has no server; there are submissions for {' and '.join(VALIDATORS)}"
        )
    (task,) = dataset.tasks
    return task


def _as_object(content: object, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(f"{where} must be a JSON object of queries, not {type(content).__name__}")
    return content


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return content


def _check_size(size: int, dataset: Dataset, where: str) -> None:
    if dataset.name == "cirr" and size > CIRR_BYTES:
        raise InputError(
            f"{where} has {size:,} bytes and the server takes {CIRR_BYTES:,}; write it without spaces"
        )


def _picture_id(name: str) -> int:
    try:
        return int(name)
    except ValueError:
        raise InputError(f"picture {name!r} is not named by its COCO id; CIRCO's server takes ids") from None
