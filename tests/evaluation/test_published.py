"""Published numbers: all with a source, under our names, and consistent; the table is whole at any width."""

import dataclasses
import io
import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tercet.evaluation.datasets import DATASETS, circo, cirr, coco, fashioniq, genecis, imagenet_r
from tercet.evaluation.published import PublishedRow, all_published, backbone_of, beside, published_rows
from tercet.evaluation.results import RunReport, TaskFacts
from tercet.evaluation.table import print_results
from tercet.evaluation.values import Metric
from tests.evaluation import made_up

METRICS = {
    "cirr": cirr.METRICS,
    "circo": circo.METRICS,
    "fashioniq": fashioniq.METRICS,
    "genecis": genecis.METRICS,
    "imagenet-r": imagenet_r.METRICS,
    "coco": coco.METRICS,
}
TASKS = {
    "fashioniq": ("dress", "shirt", "toptee"),
    "imagenet-r": ("cartoon", "origami", "toy", "sculpture"),
    "genecis": ("focus_attribute", "change_attribute", "focus_object", "change_object"),
}
ROWS = all_published()
IDS = [f"{row.dataset}-{row.split}-{row.backbone}-{row.method}" for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_every_row_is_complete(row: PublishedRow) -> None:
    assert len(row.source) > 10
    assert row.method
    assert row.backbone
    assert row.split in DATASETS[row.dataset].splits
    assert row.values or row.tasks
    names = {metric.name for metric in METRICS[row.dataset]}
    assert set(row.values) <= names
    assert set(row.tasks) <= set(TASKS.get(row.dataset, ()))
    given = set(row.values)
    for task, of_task in row.tasks.items():
        assert set(of_task) <= names
        given |= {f"{task} {name}" for name in of_task}
    assert set(row.unverified) <= given
    for name, choice in row.options.items():
        assert choice in DATASETS[row.dataset].options[name].choices
    for number in (*row.values.values(), *(value for of in row.tasks.values() for value in of.values())):
        assert 0 < number < 100


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_recall_grows_with_k_and_means_are_of_their_tasks(row: PublishedRow) -> None:
    """A slip of the pen would show."""
    for of in (row.values, *row.tasks.values()):
        families: dict[str, list[tuple[int, float]]] = {}
        for name, value in of.items():
            family, k = name.split("@")
            families.setdefault(family, []).append((int(k), value))
        for family, points in families.items():
            values = [value for _, value in sorted(points)]
            if family != "mAP":
                assert values == sorted(values)
    if row.tasks and len(row.tasks) == len(TASKS[row.dataset]):
        for name, value in row.values.items():
            mean = np.mean([of[name] for of in row.tasks.values()])
            assert value == pytest.approx(mean, abs=0.16), name


def test_nothing_is_twice() -> None:
    assert len(set(IDS)) == len(IDS)


def test_the_file_is_as_documented() -> None:
    content = json.loads(resources.files("tercet.evaluation").joinpath("published.json").read_text("utf-8"))
    assert (content["format"], content["unit"]) == (1, "%")
    used = {row["source"] for row in content["rows"]}
    assert used == set(content["sources"])


@pytest.mark.parametrize(
    ("dataset", "split", "backbone", "method", "metric", "value"),
    [
        ("cirr", "test1", "ViT-L/14", "Pic2Word", "recall@1", 23.9),
        ("cirr", "test1", "ViT-L/14", "CIReVL", "recall_subset@1", 59.54),
        ("cirr", "test1", "ViT-G/14", "LinCIR", "recall@10", 76.05),
        ("circo", "test", "ViT-L/14", "SEARLE", "mAP@5", 11.68),
        ("circo", "test", "ViT-G/14", "CIReVL", "mAP@50", 31.03),
        ("circo", "test", "ViT-H/14", "LinCIR", "mAP@25", 20.5),
        ("circo", "test", "ViT-B/32", "SEARLE", "mAP@5", 9.35),
        ("fashioniq", "val", "ViT-L/14", "Pic2Word", "recall@10", 24.7),
        ("fashioniq", "val", "ViT-G/14", "LinCIR", "recall@50", 65.69),
        ("imagenet-r", "test", "ViT-L/14", "Pic2Word", "recall@10", 10.1),
        ("coco", "val", "ViT-L/14", "Pic2Word", "recall@5", 24.8),
        ("genecis", "test", "ViT-L/14", "Pic2Word", "recall@1", 11.2),
    ],
)
def test_known_numbers(
    dataset: str, split: str, backbone: str, method: str, metric: str, value: float
) -> None:
    (row,) = [row for row in published_rows(dataset, split, backbone) if row.method == method]
    assert row.values[metric] == value
    assert metric not in row.unverified


def test_rows_of_one_backbone_are_of_that_alone() -> None:
    assert len(published_rows("circo", "test")) > len(published_rows("circo", "test", "ViT-G/14")) > 5
    assert {row.backbone for row in published_rows("circo", "test", "ViT-G/14")} == {"ViT-G/14"}
    assert published_rows("circo", "nowhere") == ()
    for row in published_rows("circo", "test"):
        if row.method.startswith(("MagicLens", "BGE-VL")):
            assert "shared_concept" in row.not_comparable


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("ViT-L-14-quickgelu", "ViT-L/14"),
        ("ViT-bigG-14", "ViT-G/14"),
        ("ViT-B-32-quickgelu", "ViT-B/32"),
        ("ViT-H-14", "ViT-H/14"),
        ("demo/clip.json", None),
    ],
)
def test_the_lineup_tells_the_backbone(arch: str, name: str | None) -> None:
    assert backbone_of({"roles": {"clip_image": {"options": {"arch": arch}}}}) == name
    assert backbone_of({"roles": {}}) is None


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return made_up.make(tmp_path_factory.mktemp("pictures"), queries=10)[1]


def as_if(
    report: RunReport,
    name: str,
    split: str,
    metrics: Sequence[Metric],
    tasks: Sequence[str] = (),
    **options: str,
) -> RunReport:
    """The report with another data set's name and metrics on the same numbers."""
    tasks = tasks or (name,)
    evaluations = []
    for of in report.evaluations:
        number = of.numbers.overall["recall@1"]
        numbers = {metric.name: number for metric in metrics}
        evaluations.append(
            dataclasses.replace(
                of,
                numbers=dataclasses.replace(of.numbers, overall=numbers, tasks=dict.fromkeys(tasks, numbers)),
            )
        )
    facts = dataclasses.replace(
        report.dataset,
        name=name,
        split=split,
        metrics=tuple(metrics),
        tasks=tuple(TaskFacts(task, 10, 36, False) for task in tasks),
        options=options,
    )
    return dataclasses.replace(report, dataset=facts, evaluations=tuple(evaluations))


def printed(report: RunReport, width: int) -> str:
    file = io.StringIO()
    print_results(report, Console(file=file, width=width, highlight=False, markup=False, emoji=False))
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 10_000])
@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_table_is_whole_at_any_width(report: RunReport, name: str, width: int) -> None:
    """Every number of ours and of others is there in one piece, and no line is longer than the terminal."""
    split = {"cirr": "test1", "circo": "test"}.get(name, DATASETS[name].splits[0])
    ours = as_if(report, name, split, METRICS[name], TASKS.get(name, ()))
    text = printed(ours, width)
    assert max(map(len, text.splitlines())) <= width
    words = re.split(r"\s+", text)
    columns = len(METRICS[name]) * (1 + len(TASKS.get(name, ())))
    for of in ours.evaluations:
        number = of.numbers.overall[METRICS[name][0].name]
        assert words.count(f"{100 * number.low:.1f}-{100 * number.high:.1f}") >= columns
    for row in published_rows(name, split, "ViT-L/14"):
        for key, value in row.values.items():
            shown = f"{value:.2f}".rstrip("0")
            shown += "0" if shown.endswith(".") else ""
            assert shown + ("?" if key in row.unverified else "") in words, (row.method, key)
    assert "published, training-free" in text.replace("\n", " ")
    assert "…" not in text


def test_ours_come_first_and_in_order(report: RunReport) -> None:
    text = printed(as_if(report, "circo", "test", METRICS["circo"]), 120)
    places = [
        text.index(word) for word in ("\ntext ", "\ncaption ", "training-free", "LDRE", "trained", "LinCIR")
    ]
    assert places == sorted(places)


def test_what_is_not_comparable_is_said(report: RunReport) -> None:
    val = printed(as_if(report, "cirr", "val", METRICS["cirr"]), 120)
    assert "Published numbers are of test1, ours of val: other queries, not comparable to the digit." in val
    assert "published on test1, trained" in " ".join(val.split())
    test = printed(as_if(report, "cirr", "test1", METRICS["cirr"]), 120)
    assert "ours of val" not in test
    concept = " ".join(printed(as_if(report, "circo", "test", METRICS["circo"]), 120).split())
    assert (
        "* MagicLens: trained on millions of triplets, and its queries use CIRCO's shared_concept" in concept
    )
    other = as_if(report, "fashioniq", "val", METRICS["fashioniq"], TASKS["fashioniq"], protocol="val")
    assert "protocol=original, ours of protocol=val: not comparable" in " ".join(printed(other, 120).split())
    same = as_if(report, "fashioniq", "val", METRICS["fashioniq"], TASKS["fashioniq"], protocol="original")
    assert "not comparable." not in printed(same, 120)


def test_another_encoder_is_said(report: RunReport) -> None:
    demo = as_if(report, "circo", "test", METRICS["circo"])
    assert "our image encoder" not in printed(demo, 120)
    roles = {"clip_image": {"options": {"arch": "demo/clip.json"}}}
    demo = dataclasses.replace(demo, lineup={**demo.lineup, "roles": roles})
    assert "Published numbers are of ViT-L/14; our image encoder is another." in printed(demo, 120)


def test_other_weights_of_the_same_architecture_are_said(report: RunReport) -> None:
    ours = as_if(report, "circo", "test", METRICS["circo"])
    assert "OpenAI's weights" not in printed(ours, 120)
    roles = {"clip_image": {"options": {"arch": "ViT-L-14"}}}
    text = printed(dataclasses.replace(ours, lineup={**ours.lineup, "roles": roles}), 10_000)
    assert "Published numbers of ViT-L/14 are of OpenAI's weights unless marked; ours are others." in text


def test_a_data_set_of_ones_own_has_no_published_rows(report: RunReport) -> None:
    rows, warnings = beside(report.dataset)
    assert (rows, warnings) == ((), ())
    assert "published" not in printed(report, 80)


def test_without_answers_the_table_says_why(tmp_path: Path) -> None:
    text = printed(made_up.make(tmp_path, answers=False, queries=2)[1], 80)
    assert text == "made-up val: only its server knows the right answers; no numbers.\n"


def test_hostile_labels_cannot_steer_the_terminal(report: RunReport) -> None:
    of = dataclasses.replace(report.evaluations[0], label="\x1b[31mred[/]\n" + "x" * 200)
    text = printed(dataclasses.replace(report, evaluations=(of,)), 80)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    number = of.numbers.overall["recall@1"]
    assert f"{100 * number.value:.1f}" in text
    assert math.isfinite(number.value)
