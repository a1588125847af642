"""Reports: what is written is what was found; folders are replaced whole; nothing secret gets in."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.compositions.registry import make_settings, recipe_of
from tercet.errors import InputError, TercetError
from tercet.evaluation import report as reports
from tercet.evaluation.provenance import HIDDEN, code_commit, hide_in, without_secrets, written_command
from tercet.evaluation.report import read_report, write_report
from tercet.evaluation.results import RunReport, make_report
from tercet.evaluation.run import Chosen
from tercet.evaluation.values import Dataset
from tests.evaluation import made_up

Made = tuple[Dataset, RunReport]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_up.make(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def other(made: Made) -> RunReport:
    """Another report of the same data set."""
    return made_up.make(Path(), {"caption": 0.1}, dataset=made[0], seed=5)[1]


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take the most time, and are files like any others."""
    monkeypatch.setattr("tercet.evaluation.plots.draw_report", lambda report: {})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_up.make(tmp_path_factory.mktemp("few"), {"caption": 0.2}, queries=3, pictures=6)


@pytest.fixture(scope="module")
def small_other(small: Made) -> RunReport:
    """Another report of the same small data set."""
    return made_up.make(Path(), {"caption": 0.1}, dataset=small[0], seed=5)[1]


def content_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def check_whole(folder: Path, report: RunReport) -> None:
    """Reading gives exactly `report`, and every file that it lists is there unchanged."""
    assert read_report(folder) == report
    for name, sha256 in json.loads(reports.place_of(folder, "report.json").read_text())["files"].items():
        assert hashlib.sha256(reports.place_of(folder, name).read_bytes()).hexdigest() == sha256


def test_what_is_written_is_read_back(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    dataset, report = made
    write_report(tmp_path / "new" / "report", report, dataset.pictures)
    check_whole(tmp_path / "new" / "report", report)
    listed = set(content_of(tmp_path / "new" / "report")["files"])
    assert files_of(tmp_path / "new" / "report") == listed | {"report.json"}
    assert {"queries.parquet", "index.html", "plots/by_k.svg", "plots/by_k.png"} <= listed


def test_numbers_equal_an_independent_calculation(made: Made, tmp_path: Path) -> None:
    """From names and answers alone, without ranks and metrics of the package."""
    write_report(tmp_path, made[1])
    rows = pq.read_table(tmp_path / "queries.parquet").to_pylist()
    for composition in content_of(tmp_path)["compositions"]:
        own = [row for row in rows if row["composition"] == composition["label"]]
        assert len(own) == 80
        for metric in ("recall@1", "recall@5", "recall@10", "mAP@5"):
            tasks = [
                [value(row, metric) for row in own if row["task"] == f"task {task}"] for task in range(2)
            ]
            numbers = composition["numbers"]
            overall = numbers["overall"][metric]
            assert overall["value"] == pytest.approx(np.mean([np.mean(task) for task in tasks]), abs=1e-12)
            assert overall["queries"] == 80
            for task in range(2):
                assert numbers["tasks"][f"task {task}"][metric]["value"] == pytest.approx(
                    np.mean(tasks[task])
                )
            for aspect in made_up.ASPECTS:
                of_aspect = [value(row, metric) for row in own if aspect in row["aspects"]]
                assert numbers["aspects"][aspect][metric]["value"] == pytest.approx(np.mean(of_aspect))
                assert numbers["aspects"][aspect][metric]["queries"] == len(of_aspect) == 20
            low, high = naive_interval(tasks)
            assert overall["low"] == pytest.approx(low, abs=0.02)
            assert overall["high"] == pytest.approx(high, abs=0.02)


def value(row: dict[str, Any], metric: str) -> float:
    name, k = metric.split("@")
    answers = [answer for answer in row["top"] if row["task"] == "task 1" or answer != row["reference"]][
        : int(k)
    ]
    if name == "recall":
        return float(row["targets"][0] in answers)
    right = [answer in row["targets"] for answer in answers]
    hits = [sum(right[: place + 1]) / (place + 1) for place in range(len(answers)) if right[place]]
    return sum(hits) / min(len(row["targets"]), int(k))


def naive_interval(tasks: list[list[float]]) -> tuple[float, float]:
    random = np.random.default_rng(99)
    means = [
        np.mean([np.mean(random.choice(task, len(task), replace=True)) for task in tasks])
        for _ in range(3000)
    ]
    return tuple(np.quantile(means, [0.025, 0.975]).tolist())


def test_rows_hold_each_query(made: Made, tmp_path: Path) -> None:
    write_report(tmp_path, made[1])
    table = pq.read_table(tmp_path / "queries.parquet")
    row = table.to_pylist()[-1]
    assert row["composition"] == "caption"
    assert row["captions"] == [f"a shape like {row['reference']}"]
    assert row["composed"] == [f"{row['captions'][0]}, {row['modifications'][0]}"]
    assert (row["background"], row["background_reason"], row["caption_cut"]) == ("remove", "asked for", False)
    ranks = [row["top"].index(target) + 1 for target in row["targets"]]
    assert row["rank"] == min(ranks)
    assert row["scores"] == sorted(row["scores"], reverse=True)
    assert len(row["scores"]) == len(row["top"])
    assert str(table.schema.field("top").type) == "list<element: string>"
    assert str(table.schema.field("recall@1").type) == "double"


def test_everything_that_made_the_numbers_is_there(made: Made, tmp_path: Path) -> None:
    write_report(tmp_path, made[1])
    content = content_of(tmp_path)
    assert content["dataset"]["tasks"][0] == {
        "name": "task 0", "queries": 40, "gallery": 36, "exclude_reference": True,
    }  # fmt: skip
    assert content["dataset"]["protocol"] == "Every picture is ranked."
    role = content["lineup"]["roles"]["clip_image"]
    assert role["checkpoint"] == {"source": "hf://openai/clip/ViT-L-14.pt", "sha256": "ab" * 32}
    assert (role["network"], role["precision"]) == ("clip-vit-l-14", "fp16")
    assert role["details"]["preprocessing"] == {"size": 224, "kernel": "bicubic"}
    assert content["lineup"]["fingerprint"] == "f" * 16
    caption = content["compositions"][1]
    assert caption["settings"]["background"] == "auto"
    assert caption["texts"]["template"] == "{caption}, {modification}"
    run = content["run"]
    assert run["command"] == ["tercet", "evaluate", "made-up"]
    assert run["started"] == "2026-03-04T05:06:07+00:00"
    assert run["seconds"] == 12.5
    assert run["seeds"] == {"bootstrap": 0, "captions": 3}
    assert run["versions"]["numpy"] == np.__version__
    assert run["machine"]["cores"] >= 1


def test_the_commit_is_tercets_own(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    package = tmp_path / "tercet"
    package.mkdir()
    (package / "__init__.py").write_text("one")
    assert code_commit(package) is None
    git("init")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "-m", "somebody else's")
    assert code_commit(package) is None
    git("add", "tercet")
    git("commit", "-m", "the package")
    assert code_commit(package) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "__init__.py").write_text("two")
    assert code_commit(package) == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_a_split_without_answers_has_no_numbers(tmp_path: Path) -> None:
    dataset, report = made_up.make(tmp_path / "pictures", answers=False, queries=6)
    write_report(tmp_path / "report", report, dataset.pictures)
    assert read_report(tmp_path / "report") == report
    content = content_of(tmp_path / "report")
    assert content["dataset"]["answers_known"] is False
    assert content["compositions"][0]["numbers"] == {"overall": {}, "tasks": {}, "aspects": {}}
    rows = pq.read_table(tmp_path / "report" / "queries.parquet").to_pylist()
    assert {row["rank"] for row in rows} == {None}
    assert {row["recall@1"] for row in rows} == {None}


# Replacing a report


def test_a_new_report_replaces_the_old_and_nothing_else(made: Made, other: RunReport, tmp_path: Path) -> None:
    write_report(tmp_path, made[1], made[0].pictures)
    before = files_of(tmp_path)
    (tmp_path / "submissions").mkdir()
    (tmp_path / "submissions" / "mine.json").write_text("kept")
    (tmp_path / "pictures" / "holiday.jpg").write_text("kept")
    write_report(tmp_path, other)
    check_whole(tmp_path, other)
    assert any(name.startswith("pictures/") for name in before)
    kept = {"submissions/mine.json", "pictures/holiday.jpg"}
    assert files_of(tmp_path) == set(content_of(tmp_path)["files"]) | {"report.json"} | kept


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("when", range(20))
def test_a_crash_leaves_the_old_report_or_the_new_one_whole(
    small: Made, small_other: RunReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    """Killed before the nth change to the disk."""
    write_report(tmp_path, small[1], small[0].pictures)
    left = when

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return change(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patched:
        for name in ("mkdir", "write_bytes", "write_text", "replace", "rename", "unlink"):
            patched.setattr(Path, name, dying(getattr(Path, name)))
        patched.setattr("shutil.rmtree", lambda *_, **__: None)
        try:
            write_report(tmp_path, small_other)
        except Killed:
            died = True
        else:
            died = False
    read = read_report(tmp_path)
    assert read in (small[1], small_other)
    check_whole(tmp_path, read)
    assert died or read == small_other
    # Whoever writes next is not disturbed by what is left over, and leaves nothing of it.
    write_report(tmp_path, small_other)
    check_whole(tmp_path, small_other)
    assert files_of(tmp_path) == {*content_of(tmp_path)["files"], "report.json"}


def test_a_crash_is_tried_before_and_after_the_new_report_counts(
    small: Made, small_other: RunReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after the one rename that makes the new report count: readers see the new one."""
    write_report(tmp_path, small[1], small[0].pictures)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            write_report(tmp_path, small_other)
    check_whole(tmp_path, small[1])
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(Killed):
            write_report(tmp_path, small_other)
    check_whole(tmp_path, small_other)


def test_a_failure_midway_leaves_the_old_report(
    small: Made, small_other: RunReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(tmp_path, small[1], small[0].pictures)
    before = files_of(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("tercet.evaluation.page.make_page", full)
    with pytest.raises(InputError, match="cannot write somewhere: No space left on device; make room"):
        write_report(tmp_path, small_other)
    check_whole(tmp_path, small[1])
    assert files_of(tmp_path) == before


# Foreign and damaged folders


@pytest.mark.parametrize(
    ("name", "content"),
    [("report.json", '{"format": "other"}'), ("index.html", "mine"), ("queries.parquet", "mine")],
)
def test_what_is_no_report_is_not_written_over(made: Made, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="choose another folder"):
        write_report(tmp_path, made[1])
    assert (tmp_path / name).read_text() == content
    assert files_of(tmp_path) == {name}


def test_a_report_of_another_version_is_refused(made: Made, tmp_path: Path) -> None:
    write_report(tmp_path, made[1])
    text = (tmp_path / "report.json").read_text().replace('"version": 1,', '"version": 2,', 1)
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match="version 2 and this Tercet reads 1"):
        read_report(tmp_path)
    with pytest.raises(InputError, match="not written over"):
        write_report(tmp_path, made[1])


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_without_a_report_is_refused(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "folder"
    if there:
        folder.mkdir()
    with pytest.raises(InputError, match="holds no report; give a folder that `tercet evaluate` has written"):
        read_report(folder)


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        ("report.json", lambda raw: raw[: len(raw) // 2], "is damaged"),
        ("report.json", lambda raw: b"[]", "is no report"),
        ("report.json", lambda raw: b"\xff\xfe", "is damaged"),
        ("report.json", lambda raw: raw.replace(b'"protocol"', b'"protocoll"'), "is damaged"),
        ("report.json", lambda raw: raw.replace(b'"overall"', b'"over"'), "is damaged"),
        ("queries.parquet", lambda raw: raw[:-100], "its SHA-256 is not the one"),
        ("queries.parquet", lambda raw: b"", "its SHA-256 is not the one"),
    ],
)
def test_damage_is_named(
    made: Made, tmp_path: Path, name: str, damage: Callable[[bytes], bytes], complaint: str
) -> None:
    write_report(tmp_path, made[1])
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(InputError, match=complaint) as caught:
        read_report(tmp_path)
    assert name in str(caught.value)


def test_missing_queries_are_named(made: Made, tmp_path: Path) -> None:
    write_report(tmp_path, made[1])
    (tmp_path / "queries.parquet").unlink()
    with pytest.raises(InputError, match=r"queries\.parquet is damaged: No such file"):
        read_report(tmp_path)


def test_a_report_of_several_compositions_asks_which(made: Made) -> None:
    assert made[1].of("caption").label == "caption"
    with pytest.raises(InputError, match="name one as FOLDER:LABEL; it has 'text', 'caption'"):
        made[1].of()
    with pytest.raises(InputError, match="has no composition 'image'"):
        made[1].of("image")


def test_names_that_are_not_utf8_are_written(tmp_path: Path) -> None:
    dataset, report = made_up.make(tmp_path / "pictures", queries=3)
    of = report.evaluations[0]
    strange = dataclasses.replace(of.records[0], name="caf\udce9", top=("\udcff", *of.records[0].top[1:]))
    changed = dataclasses.replace(of, records=(strange, *of.records[1:]))
    report = dataclasses.replace(report, evaluations=(changed, *report.evaluations[1:]))
    write_report(tmp_path / "report", report, dataset.pictures)
    assert read_report(tmp_path / "report").evaluations[0].records[0].name == "caf\\udce9"


@pytest.mark.parametrize("module", ["pyarrow", "matplotlib", "jinja2"])
def test_a_missing_extra_is_named(
    small: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TercetError, match=rf"needs? {module} .*pip install 'tercet\[evaluate\]'"):
        write_report(tmp_path, small[1])
    assert not list(tmp_path.iterdir())


# Secrets

SECRET = "zq7-very-secret-51"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--api-key", SECRET],
        [f"--api-key={SECRET}"],
        ["--llm-token", SECRET],
        ["--url", f"https://user:{SECRET}@host/v1"],
        ["--url", f"https://{SECRET}@host/v1"],
        [f"--url=https://host/v1?key={SECRET}&x=1"],
        ["--header", f"Authorization: Bearer {SECRET}"],
        ["-c", f"rewrite api_key={SECRET}"],
        ["--password", SECRET],
        [f"sk-{SECRET}"],
        [f"hf_{SECRET}"],
    ],
)
def test_secrets_of_a_command_line_are_hidden(arguments: list[str]) -> None:
    shown = written_command(["tercet", "evaluate", "cirr", *arguments, "--split", "val"])
    assert SECRET not in json.dumps(shown)
    assert HIDDEN in json.dumps(shown)
    assert shown[:3] == ["tercet", "evaluate", "cirr"]
    assert shown[-2:] == ["--split", "val"]


@pytest.mark.parametrize(
    "plain",
    [
        ["tercet", "evaluate", "cirr", "--data", "/data/cirr", "-c", "caption background=keep"],
        ["--server", "gpu-1:8001,gpu-2:8001", "--output", "reports/monday"],
        ["-c", 'caption template="a {modification} of {caption}"', "--top", "50"],
        ["--url", "http://localhost:8000/v1"],
    ],
)
def test_what_is_no_secret_stays(plain: list[str]) -> None:
    assert written_command(plain) == plain


def test_values_named_as_secrets_are_hidden_and_others_are_not() -> None:
    given = {
        "api_key": SECRET,
        "llm": {"token": SECRET, "headers": [f"Bearer {SECRET}"]},
        "end_token": "</s>",
        "pseudo_token": "*",
        "context_length": 77,
        "checkpoint": "hf://openai/clip/ViT-L-14.pt",
    }
    shown = without_secrets(given)
    assert SECRET not in json.dumps(shown)
    assert shown["end_token"] == "</s>"
    assert shown["pseudo_token"] == "*"
    assert shown["context_length"] == 77
    assert shown["checkpoint"] == "hf://openai/clip/ViT-L-14.pt"


@given(st.text())
def test_hiding_twice_hides_no_more(text: str) -> None:
    assert hide_in(hide_in(text)) == hide_in(text)


def test_no_secret_is_in_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERCET_LLM_API_KEY", SECRET)
    monkeypatch.setenv("UNRELATED", "unrelated-environment-value")
    dataset = made_up.make_dataset(tmp_path / "pictures", queries=3)
    _, runs = made_up.make_runs(dataset, {"caption": 0.2})
    noted = tuple(
        dataclasses.replace(
            run,
            composed=tuple(
                (dataclasses.replace(made, notes=(f"POST https://x.y/v1?key={SECRET} failed: {SECRET}",)),)
                for (made,) in run.composed
            ),
        )
        for run in runs["caption"]
    )
    choice = Chosen(
        "rewrite", recipe_of("rewrite"), make_settings("rewrite", {"llm_model": f"model-{SECRET}"})
    )
    lineup = dataclasses.replace(
        made_up.make_lineup(), versions={"index": f"https://me:{SECRET}@pypi/simple"}
    )
    report = make_report(
        dataset, lineup, [choice], {"rewrite": noted}, command=["tercet", "--api-key", SECRET, SECRET]
    )
    write_report(tmp_path / "report", report, dataset.pictures)
    rows = json.dumps(pq.read_table(tmp_path / "report" / "queries.parquet").to_pylist())
    everything = [path.read_bytes() for path in (tmp_path / "report").rglob("*") if path.is_file()]
    for content in (rows.encode(), *everything):
        assert SECRET.encode() not in content
        assert b"unrelated-environment-value" not in content
        assert b"TERCET_LLM_API_KEY" not in content
    assert HIDDEN in rows
