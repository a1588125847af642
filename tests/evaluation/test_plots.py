"""Plots are pictures with something on them, of the size they should have, whatever is drawn."""

import dataclasses
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tercet.evaluation.plots import (
    DPI,
    as_png,
    as_svg,
    draw_by_aspect,
    draw_by_k,
    draw_difference,
    draw_report,
)
from tercet.evaluation.results import Evaluation, RunReport, summarise
from tests.evaluation import made_up

STRENGTHS = {"text": 0.03, "caption": 0.25, "caption background=keep": 0.2}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return made_up.make(tmp_path_factory.mktemp("pictures"), STRENGTHS, queries=20)[1]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Matplotlib warns of what it cannot lay out or draw."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def opened(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def check_drawn(figure: object) -> np.ndarray:
    """Of the figure's size, mostly white paper, with ink in every quarter's width."""
    pixels = opened(as_png(figure))  # type: ignore[arg-type]
    width, height = figure.get_size_inches()  # type: ignore[attr-defined]
    assert pixels.shape == (int(height * DPI), int(width * DPI), 3)
    ink = (pixels < 200).any(axis=2)
    assert 0.002 < ink.mean() < 0.6
    assert all(part.any() for part in np.array_split(ink, 4, axis=1))
    return pixels


def with_records(of: Evaluation, **changes: object) -> Evaluation:
    return dataclasses.replace(
        of, records=tuple(dataclasses.replace(record, **changes) for record in of.records)
    )


def test_a_report_has_its_three_plots(report: RunReport) -> None:
    figures = draw_report(report)
    assert list(figures) == ["by_k", "by_aspect", "difference"]
    for figure in figures.values():
        pixels = check_drawn(figure)
        assert pixels.shape[1] > 700
        svg = as_svg(figure)
        assert svg.startswith(b"<?xml")
        assert svg.rstrip().endswith(b"</svg>")


def test_the_same_report_gives_the_same_files(report: RunReport) -> None:
    first, second = draw_report(report), draw_report(report)
    for name in first:
        assert as_svg(first[name]) == as_svg(second[name])
    assert as_png(first["by_k"]) == as_png(second["by_k"])


def test_numbers_are_where_they_belong(report: RunReport) -> None:
    """Heights of marks and ends of bars are the numbers' and their intervals'."""
    axes = draw_by_k(report).axes
    assert [of.get_title(loc="left") for of in axes] == ["Recall@K", "mAP@K"]
    for evaluation, container in zip(report.evaluations, axes[0].containers, strict=True):
        line, _, (bars,) = container
        numbers = [evaluation.numbers.overall[f"recall@{k}"] for k in (1, 5, 10)]
        assert line.get_ydata() == pytest.approx([100 * number.value for number in numbers])
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        assert ends[:, 0] == pytest.approx([100 * number.low for number in numbers])
        assert ends[:, 1] == pytest.approx([100 * number.high for number in numbers])
    colours = [container[0].get_color() for container in axes[0].containers]
    assert colours == [container[0].get_color() for container in axes[1].containers]
    assert colours == [container[0].get_color() for container in draw_by_aspect(report).axes[0].containers]
    assert len(set(colours)) == 3


def test_won_and_lost_queries_are_counted(report: RunReport) -> None:
    a, b = report.of("text"), report.of("caption")
    figure = draw_difference(a, b, "recall@5")
    changes = [
        after.values["recall@5"] - before.values["recall@5"]
        for before, after in zip(a.records, b.records, strict=True)
    ]
    won, lost = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[0] == f"+{won}  \N{MINUS SIGN}{lost}"
    assert len(texts) == 1 + len(made_up.ASPECTS)
    points = figure.axes[1].collections[0]
    assert len(points.get_offsets()) == len(
        {(x.rank, y.rank) for x, y in zip(a.records, b.records, strict=True)}
    )
    check_drawn(figure)


def test_one_composition_is_not_compared(report: RunReport) -> None:
    figures = draw_report(dataclasses.replace(report, evaluations=report.evaluations[:1]))
    assert list(figures) == ["by_k", "by_aspect"]
    for figure in figures.values():
        check_drawn(figure)


def test_many_compositions_with_long_names(tmp_path: Path) -> None:
    names = ["text", "image", "sum", "slerp", "product", "pic2word", "caption", "caption+pic2word"]
    names += [
        f"caption captions={number} template='a photo of {{caption}}, {{modification}}'" for number in (2, 3)
    ]
    _, report = made_up.make(tmp_path, {name: 0.02 * number for number, name in enumerate(names)}, queries=10)
    for figure in draw_report(report).values():
        pixels = check_drawn(figure)
        # The legend leaves room to draw in.
        assert all(of.get_position().height > 0.35 for of in figure.axes)
        assert pixels.shape[0] < 3000


@pytest.mark.parametrize(
    "hostile", ["$x^2$ and \\frac{", "two\nlines\tand \x1b[31m", "x" * 500, "<b>&amp;</b>", "_ # % {}"]
)
def test_labels_and_aspects_are_drawn_literally(report: RunReport, hostile: str) -> None:
    changed = []
    for number, of in enumerate(report.evaluations):
        of = dataclasses.replace(with_records(of, aspects=(hostile, "other")), label=f"{hostile}{number}")
        changed.append(dataclasses.replace(of, numbers=summarise(of.records, made_up.METRICS)))
    for figure in draw_report(dataclasses.replace(report, evaluations=tuple(changed))).values():
        check_drawn(figure)
        as_svg(figure)


def test_hundreds_of_aspects_are_cut_to_the_largest(report: RunReport) -> None:
    of = report.evaluations[0]
    records = tuple(
        dataclasses.replace(record, aspects=("all", f"rare {number}"))
        for number, record in enumerate(of.records)
    )
    of = dataclasses.replace(of, records=records, numbers=summarise(records, made_up.METRICS))
    figure = draw_by_aspect(dataclasses.replace(report, evaluations=(of,)))
    assert "25 aspects of fewer queries left out" in figure.axes[0].get_title(loc="left")
    assert len(figure.axes[0].get_yticklabels()) == 16
    assert figure.axes[0].get_yticklabels()[0].get_text() == "all\n40 queries"


def test_without_answers_there_is_nothing_to_draw(tmp_path: Path) -> None:
    assert draw_report(made_up.make(tmp_path, answers=False, queries=3)[1]) == {}


def test_queries_that_never_rank_are_left_out_of_the_ranks(report: RunReport) -> None:
    a, b = report.of("text"), with_records(report.of("caption"), rank=None)
    check_drawn(draw_difference(a, b, "recall@1"))
