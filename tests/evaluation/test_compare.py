"""Comparing two reports: the same queries, or a refusal with its reason; verdicts follow the intervals."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from tercet.cli.evaluate_compare import compare as command
from tercet.errors import InputError
from tercet.evaluation.compare import as_json, compare_reports, open_evaluation
from tercet.evaluation.report import write_report
from tercet.evaluation.results import DatasetFacts, Evaluation, RunReport
from tercet.evaluation.values import Dataset
from tests.evaluation import made_up

STRENGTHS = {"text": 0.03, "caption": 0.25, "caption background=keep": 0.25}
Made = tuple[Dataset, RunReport]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_up.make(tmp_path_factory.mktemp("pictures"), STRENGTHS)


@pytest.fixture(scope="module")
def folder(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "both"
    write_report(folder, made[1])
    return folder


@pytest.fixture
def run() -> Callable[..., str]:
    """Runs the command in a terminal of 80 columns."""
    app = typer.Typer()
    app.command()(command)

    def invoke(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


def pair(report: RunReport, label: str) -> tuple[RunReport, Evaluation]:
    return report, report.of(label)


def test_numbers_equal_an_independent_calculation(made: Made) -> None:
    found = compare_reports(pair(made[1], "text"), pair(made[1], "caption"))
    a, b = made[1].of("text").records, made[1].of("caption").records
    assert found.headline == "recall@1"
    assert list(found.metrics) == ["recall@1", "recall@5", "recall@10", "mAP@5"]
    for metric, of in found.metrics.items():
        changes = np.array(
            [after.values[metric] - before.values[metric] for before, after in zip(a, b, strict=True)]
        )
        tasks = np.array([record.task for record in a])
        assert of.difference == pytest.approx(
            np.mean([changes[tasks == task].mean() for task in ("task 0", "task 1")]), abs=1e-12
        )
        assert of.b - of.a == pytest.approx(of.difference)
        assert of.b == pytest.approx(made[1].of("caption").numbers.overall[metric].value)
        assert (of.won, of.lost, of.tied) == (
            (changes > 0).sum(),
            (changes < 0).sum(),
            (changes == 0).sum(),
        )
        assert of.low <= of.difference <= of.high
        random = np.random.default_rng(4)
        means = [
            np.mean([random.choice(changes[tasks == task], 40).mean() for task in ("task 0", "task 1")])
            for _ in range(2000)
        ]
        assert of.low == pytest.approx(np.quantile(means, 0.025), abs=0.03)
        assert of.high == pytest.approx(np.quantile(means, 0.975), abs=0.03)
    for aspect, of in found.aspects.items():
        own = [
            after.values["recall@1"] - before.values["recall@1"]
            for before, after in zip(a, b, strict=True)
            if aspect in before.aspects
        ]
        assert of.difference == pytest.approx(np.mean(own))
        assert of.won + of.lost + of.tied == len(own) == 20


def test_a_better_run_is_better_and_the_other_way_round_worse(made: Made) -> None:
    better = compare_reports(pair(made[1], "text"), pair(made[1], "caption"))
    worse = compare_reports(pair(made[1], "caption"), pair(made[1], "text"))
    assert better.words.startswith("B is better than A: recall@1 ")
    assert worse.words.startswith("B is worse than A: recall@1 ")
    for metric, of in better.metrics.items():
        assert of.difference == pytest.approx(-worse.metrics[metric].difference)
        assert (of.won, of.lost) == (worse.metrics[metric].lost, worse.metrics[metric].won)
    assert [query.name for query in better.gained[:3]] == [query.name for query in worse.lost[:3]]


def test_a_run_against_itself_is_undecided(made: Made) -> None:
    found = compare_reports(pair(made[1], "caption"), pair(made[1], "caption"))
    assert found.words.startswith("These queries do not tell A and B apart: ")
    assert "a difference of +0.0 (95 % interval +0.0 to +0.0); 0 queries won, 0 lost, 80 tied" in found.words
    assert found.gained == found.lost == ()


def test_runs_of_the_same_strength_are_not_told_apart(made: Made) -> None:
    found = compare_reports(pair(made[1], "caption"), pair(made[1], "caption background=keep"))
    of = found.metrics["recall@1"]
    assert of.low <= 0 <= of.high
    assert of.verdict == "undecided"


def test_what_changed_most_comes_first_with_its_texts(made: Made) -> None:
    found = compare_reports(pair(made[1], "text"), pair(made[1], "caption"), changed=6)
    before = {record.name: record for record in made[1].of("text").records}
    after = {record.name: record for record in made[1].of("caption").records}
    factors = {name: before[name].rank / after[name].rank for name in before}  # type: ignore[operator]
    assert [factors[query.name] for query in found.gained] == sorted(factors.values())[:-7:-1]
    lowest = [factor for factor in sorted(factors.values())[:6] if factor < 1]
    assert [factors[query.name] for query in found.lost] == lowest
    for query in (*found.gained, *found.lost):
        assert (query.rank_a, query.rank_b) == (before[query.name].rank, after[query.name].rank)
        assert query.texts_b == after[query.name].composed
        assert query.modifications == before[query.name].modifications


def test_a_target_that_is_lost_altogether_has_changed_most(made: Made) -> None:
    of = made[1].of("caption")
    records = list(of.records)
    records[11] = dataclasses.replace(records[11], rank=None, values=dict.fromkeys(records[11].values, 0.0))
    found = compare_reports(
        pair(made[1], "caption"), (made[1], dataclasses.replace(of, records=tuple(records)))
    )
    assert [(query.name, query.rank_b) for query in found.lost] == [(records[11].name, None)]


def facts(**changes: object) -> Callable[[RunReport], RunReport]:
    def change(report: RunReport) -> RunReport:
        return dataclasses.replace(report, dataset=dataclasses.replace(report.dataset, **changes))

    return change


def records(change: Callable[[tuple], tuple]) -> Callable[[RunReport], RunReport]:
    def of(report: RunReport) -> RunReport:
        changed = tuple(dataclasses.replace(of, records=change(of.records)) for of in report.evaluations)
        return dataclasses.replace(report, evaluations=changed)

    return of


def first(**changes: object) -> Callable[[tuple], tuple]:
    return lambda of: (dataclasses.replace(of[0], **changes), *of[1:])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (facts(name="circo"), "A is of made-up val, B of circo val"),
        (facts(split="test"), "A is of made-up val, B of made-up test"),
        (facts(answers_known=False), "only the server of made-up val knows the right answers"),
        (facts(options={"protocol": "val"}), "A was made with protocol=None, B with protocol=val"),
        (facts(metrics=made_up.METRICS[:1]), "different metrics"),
        (facts(fingerprint="0"), "galleries or the order of their candidates differ"),
        (records(lambda of: of[1:]), "A has 80 queries, B 79"),
        (records(first(reference="picture-999")), "query 0-000 of A has the reference 'picture-"),
        (records(first(modifications=("blue",))), "query 0-000 of A has the modifications"),
        (records(first(targets=())), "query 0-000 of A has the targets"),
        (records(lambda of: (of[1], of[0], *of[2:])), "query 0-000 of A has the name '0-000'"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    made: Made, change: Callable[[RunReport], RunReport], reason: str
) -> None:
    with pytest.raises(InputError, match=f"the reports cannot be compared: .*{reason}"):
        compare_reports(pair(made[1], "caption"), pair(change(made[1]), "caption"))


def test_another_gallery_is_another_fingerprint(made: Made) -> None:
    """As it is made from the data set: queries, targets, galleries and their order all count."""
    dataset = made[0]
    task = dataset.tasks[0]

    def fingerprint(**changes: object) -> str:
        changed = dataclasses.replace(
            dataset, tasks=(dataclasses.replace(task, **changes), *dataset.tasks[1:])
        )
        return made_up.make(Path(), {"text": 0.1}, dataset=changed)[1].dataset.fingerprint

    same: DatasetFacts = made[1].dataset
    assert fingerprint() == same.fingerprint
    queries = task.queries
    others = {
        fingerprint(gallery=task.gallery[::-1]),
        fingerprint(exclude_reference=False),
        fingerprint(queries=queries[1:]),
        fingerprint(queries=(dataclasses.replace(queries[0], modifications=("other",)), *queries[1:])),
        fingerprint(queries=(dataclasses.replace(queries[0], candidates=task.gallery), *queries[1:])),
        same.fingerprint,
    }
    assert len(others) == 6


def test_folders_and_labels_are_found(folder: Path, tmp_path: Path) -> None:
    assert open_evaluation(f"{folder}:caption")[1].label == "caption"
    assert open_evaluation(f"{folder}:caption background=keep")[1].label == "caption background=keep"
    with pytest.raises(InputError, match="name one as FOLDER:LABEL"):
        open_evaluation(str(folder))
    with pytest.raises(InputError, match="has no composition 'image'"):
        open_evaluation(f"{folder}:image")
    with pytest.raises(InputError, match="holds no report"):
        open_evaluation(str(tmp_path / "nothing:caption"))
    _, report = made_up.make(
        tmp_path / "pictures", {"caption template='{caption}: {modification}'": 0.2}, queries=3
    )
    colon = tmp_path / "a:b"
    write_report(colon, report)
    label = report.evaluations[0].label
    assert open_evaluation(f"{colon}")[1].label == label
    assert open_evaluation(f"{colon}:{label}")[1].label == label


def test_the_command_says_it_in_words(
    folder: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    plain = {"highlight": False, "markup": False, "emoji": False}
    monkeypatch.setattr("tercet.cli.evaluate_compare.output", lambda: Console(width=80, **plain))
    text = run(f"{folder}:text", f"{folder}:caption")
    lines = text.splitlines()
    assert lines[:3] == ["made-up val", "A: text (lineup made-up)", "B: caption (lineup made-up)"]
    assert "B is better than A: recall@1" in text
    assert max(map(len, lines)) <= 80
    for aspect in made_up.ASPECTS:
        assert sum(line.startswith(f"{aspect} ") for line in lines) == 1
    assert "Queries that B answers better, most changed first" in lines
    assert "B searched for: a shape like picture-" in text


def test_the_command_writes_json_and_a_plot(
    folder: Path, run: Callable[..., str], tmp_path: Path, made: Made
) -> None:
    places = (f"{folder}:text", f"{folder}:caption")
    content = json.loads(run(*places, "--json", "--queries", 2, "--plot", tmp_path / "difference.png"))
    assert content["verdict"] == "better"
    assert content["metrics"]["recall@5"]["won"] > 0
    assert len(content["gained"]) == 2
    expected = as_json(compare_reports(pair(made[1], "text"), pair(made[1], "caption"), changed=2))
    assert content == json.loads(json.dumps(expected))
    with Image.open(tmp_path / "difference.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10
    assert "Drawn in" in run(*places, "--plot", tmp_path / "difference.svg")
    assert (tmp_path / "difference.svg").read_bytes().startswith(b"<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["difference.png", "difference.svg"]


def test_a_plot_of_no_known_kind_is_refused(folder: Path, run: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.png or \.svg"):
        run(f"{folder}:text", f"{folder}:caption", "--plot", tmp_path / "difference.docx")
    with pytest.raises(InputError, match="cannot write"):
        run(f"{folder}:text", f"{folder}:caption", "--plot", tmp_path / "nowhere" / "difference.png")
