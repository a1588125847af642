"""Submission files: what is written passes, what a server would refuse is refused and the query named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tercet.errors import InputError
from tercet.evaluation.ranking import rank
from tercet.evaluation.submissions import check_submission, write_submissions
from tercet.evaluation.values import Dataset, PictureSource, Query, Ranking, Task

QUERIES = 4


def cirr(pictures: int = 80) -> Dataset:
    names = tuple(f"test1-{number}-0-img0" for number in range(pictures))
    queries = tuple(
        Query(str(12_000 + 7 * number), names[number], ("",), subset=names[number : number + 6])
        for number in range(QUERIES)
    )
    sources = {name: PictureSource(Path(f"{name}.png")) for name in names}
    return Dataset("cirr", "test1", "", sources, (Task("cirr", names, queries, exclude_reference=True),), ())


def circo(pictures: int = 80) -> Dataset:
    names = tuple(str(1000 + 3 * number) for number in range(pictures))
    queries = tuple(Query(str(number), names[number], ("",)) for number in range(QUERIES))
    sources = {name: PictureSource(Path(f"{name}.jpg")) for name in names}
    return Dataset("circo", "test", "", sources, (Task("circo", names, queries),), ())


def ranked(dataset: Dataset, top: int = 50) -> Ranking:
    generator = np.random.default_rng(0)
    (task,) = dataset.tasks
    vectors = generator.standard_normal((QUERIES + len(task.gallery), 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    rows = {name: row for row, name in enumerate(task.gallery)}
    return rank(task, vectors[:QUERIES, None], vectors[QUERIES:], rows, top=top)


def test_cirrs_two_files_are_written_and_pass(tmp_path: Path) -> None:
    dataset = cirr()
    files = write_submissions(dataset, ranked(dataset), tmp_path / "new")
    assert [file.name for file in files] == ["cirr-test1-recall.json", "cirr-test1-recall_subset.json"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [file.name for file in files]
    for file, metric, count in zip(files, ("recall", "recall_subset"), (50, 3), strict=True):
        check_submission(file, dataset)
        content = json.loads(file.read_text())
        assert content.pop("version") == "rc2"
        assert content.pop("metric") == metric
        assert list(content) == ["12000", "12007", "12014", "12021"]
        for query in dataset.tasks[0].queries:
            names = content[query.name]
            assert len(set(names)) == count
            assert query.reference not in names
            assert set(names) <= set(query.subset if metric == "recall_subset" else dataset.pictures)


def test_the_subset_file_is_the_ranking_within_the_subset(tmp_path: Path) -> None:
    dataset = cirr(50)
    recall, subset = (
        json.loads(file.read_text()) for file in write_submissions(dataset, ranked(dataset), tmp_path)
    )
    for query in dataset.tasks[0].queries:
        within = [name for name in recall[query.name] if name in query.subset]
        assert len(recall[query.name]) == 49
        assert subset[query.name] == within[:3]


def test_circos_file_is_written_and_passes(tmp_path: Path) -> None:
    dataset = circo()
    found = ranked(dataset)
    (file,) = write_submissions(dataset, found, tmp_path)
    check_submission(file, dataset)
    content = json.loads(file.read_text())
    assert list(content) == ["0", "1", "2", "3"]
    for query, rows in zip(content, found.top, strict=True):
        assert content[query] == [1000 + 3 * row for row in rows.tolist()]


Change = Callable[[dict[str, Any]], Any]


def changed(key: str, value: Change) -> Change:
    return lambda content: content | {key: value(content)}


CIRR_FAULTS: dict[str, tuple[Change, str]] = {
    "not an object": (lambda content: [content], "JSON object"),
    "no version": (lambda content: content | {"version": "rc1"}, '"version": "rc2"'),
    "no metric": (lambda content: {key: content[key] for key in content if key != "metric"}, '"metric"'),
    "a wrong metric": (lambda content: content | {"metric": "recall@1"}, "'recall@1'"),
    "the other metric": (lambda content: content | {"metric": "recall_subset"}, "query 12000: give 3"),
    "a query is missing": (
        lambda content: {key: content[key] for key in content if key != "12007"},
        "lacks 1 queries, 12007",
    ),
    "a query too many": (lambda content: content | {"9": content["12000"]}, "'9'"),
    "too few": (
        changed("12007", lambda content: content["12007"][:49]),
        "query 12007: give 50 answers, not 49",
    ),
    "too many": (changed("12007", lambda content: [*content["12007"], "x"]), "query 12007: .*not 51"),
    "a picture twice": (
        changed("12007", lambda content: [*content["12007"][:49], content["12007"][0]]),
        "query 12007: .* more than once",
    ),
    "a file's name": (
        changed("12014", lambda content: [f"{name}.png" for name in content["12014"]]),
        "query 12014: .*without .png",
    ),
    "a number": (
        changed("12014", lambda content: [*content["12014"][:49], 3]),
        "query 12014: give a list of str",
    ),
    "no list": (changed("12014", lambda content: "test1"), "query 12014: give a list"),
    "an unknown picture": (
        changed("12021", lambda content: [*content["12021"][:49], "dev-1-0-img0"]),
        "query 12021: 'dev-1-0-img0' is no candidate",
    ),
    "the reference": (
        changed("12000", lambda content: ["test1-0-0-img0", *content["12000"][:49]]),
        "query 12000: 'test1-0-0-img0' is no candidate",
    ),
}
CIRCO_FAULTS: dict[str, tuple[Change, str]] = {
    "a gap": (lambda content: {key: content[key] for key in content if key != "2"}, "lacks 1 queries, 2"),
    "a query too many": (lambda content: content | {"4": content["0"]}, "'4'"),
    "too few": (changed("1", lambda content: content["1"][:10]), "query 1: give 50 answers, not 10"),
    "a picture twice": (changed("1", lambda content: [content["1"][0]] * 50), "query 1: .* more than once"),
    "text": (changed("3", lambda content: list(map(str, content["3"]))), "query 3: give a list of int"),
    "truth": (changed("3", lambda content: [True, *content["3"][:49]]), "query 3: give a list of int"),
    "a fraction": (
        changed("3", lambda content: [float(one) for one in content["3"]]),
        "query 3: give a list",
    ),
    "an unknown picture": (
        changed("0", lambda content: [5, *content["0"][:49]]),
        "query 0: 5 is no candidate",
    ),
}


@pytest.mark.parametrize(
    ("dataset", "change", "message"),
    [pytest.param(cirr(), *fault, id=f"cirr, {name}") for name, fault in CIRR_FAULTS.items()]
    + [pytest.param(circo(), *fault, id=f"circo, {name}") for name, fault in CIRCO_FAULTS.items()],
)
def test_a_faulty_file_is_refused(dataset: Dataset, change: Change, message: str, tmp_path: Path) -> None:
    file, *_ = write_submissions(dataset, ranked(dataset), tmp_path)
    check_submission(file, dataset)
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(InputError, match=message):
        check_submission(file, dataset)


def test_answers_outside_of_the_subset_are_refused(tmp_path: Path) -> None:
    dataset = cirr()
    _, file = write_submissions(dataset, ranked(dataset), tmp_path)
    content = json.loads(file.read_text())
    content["12000"][2] = "test1-60-0-img0"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="query 12000: 'test1-60-0-img0' is no candidate"):
        check_submission(file, dataset)


def test_a_file_that_cannot_be_read_or_repeats_a_query_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"0": [')
    (tmp_path / "twice.json").write_text('{"0": [], "0": []}')
    for name, message in (("broken", "as JSON"), ("twice", "'0' occurs twice"), ("none", "cannot be read")):
        with pytest.raises(InputError, match=message):
            check_submission(tmp_path / f"{name}.json", circo())


def test_a_file_too_large_for_the_server_is_refused(tmp_path: Path) -> None:
    dataset = cirr()
    file, _ = write_submissions(dataset, ranked(dataset), tmp_path)
    file.write_text(file.read_text() + " " * 5_000_000)
    with pytest.raises(InputError, match=r"5,0\d\d,\d\d\d bytes"):
        check_submission(file, dataset)


def test_nothing_is_written_of_a_ranking_that_a_server_would_refuse(tmp_path: Path) -> None:
    dataset = cirr()
    with pytest.raises(InputError, match="query 12000: give 50 answers, not 10"):
        write_submissions(dataset, ranked(dataset, top=10), tmp_path)
    assert list(tmp_path.iterdir()) == []
    other = Dataset("fashioniq", "val", "", {}, dataset.tasks, ())
    with pytest.raises(InputError, match="fashioniq has no server"):
        write_submissions(other, ranked(dataset), tmp_path)


def test_pictures_and_queries_must_be_named_as_circos_server_wants_them(tmp_path: Path) -> None:
    named = cirr()
    with pytest.raises(InputError, match="not named by its COCO id"):
        write_submissions(Dataset("circo", "test", "", {}, named.tasks, ()), ranked(named), tmp_path)
    (task,) = circo().tasks
    gap = Dataset("circo", "test", "", {}, (Task("circo", task.gallery, task.queries[1:]),), ())
    found = ranked(circo())
    with pytest.raises(InputError, match="from 0 without a gap"):
        write_submissions(gap, Ranking(found.top[1:], found.scores[1:], ()), tmp_path)
