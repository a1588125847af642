"""The page: whole by itself, safe against what data sets hold, and there whatever pictures are missing."""

import dataclasses
import math
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tercet.evaluation.page import SIDE, make_page, pick_queries, thumbnail
from tercet.evaluation.report import write_report
from tercet.evaluation.results import RunReport
from tercet.evaluation.values import Dataset, PictureSource
from tests.evaluation import made_up

Made = tuple[Dataset, RunReport]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_up.make(tmp_path_factory.mktemp("pictures"), queries=30)


class Page(HTMLParser):
    """What a browser makes of the page: tags, their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def addresses(self) -> list[str]:
        return [
            value or ""
            for _, attributes in self.tags
            for name, value in attributes.items()
            if name in ("src", "href")
        ]


def test_the_page_is_whole_where_its_folder_is_copied_to(made: Made, tmp_path: Path) -> None:
    dataset, report = made
    write_report(tmp_path / "report", report, dataset.pictures)
    shutil.move(tmp_path / "report", tmp_path / "elsewhere")
    page = Page((tmp_path / "elsewhere" / "index.html").read_text())
    addresses = page.addresses()
    assert len(addresses) > 50
    for address in addresses:
        assert not re.match(r"[a-z]*:|/", address), address
        assert (tmp_path / "elsewhere" / address).is_file(), address
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "iframe", "object", "embed", "form", "link", "base"}
    )
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    for picture in (tmp_path / "elsewhere" / "pictures").iterdir():
        with Image.open(picture) as image:
            assert max(image.size) == SIDE
        assert picture.stat().st_size < 20_000


def test_numbers_and_texts_of_the_report_are_on_the_page(made: Made) -> None:
    dataset, report = made
    page = Page(make_page(report, dataset.pictures, [])[0])
    for evaluation in report.evaluations:
        assert evaluation.label in page.text
        for number in evaluation.numbers.overall.values():
            assert f"{100 * number.value:.1f}" in page.text
            assert f"{100 * number.low:.1f}-{100 * number.high:.1f}" in page.text
    shown = pick_queries(report.evaluations[1], 5)
    for record in (record for kind in shown.values() for record in kind):
        assert record.composed[0] in page.text
        assert record.captions[0] in page.text
    assert "hf://openai/clip/ViT-L-14.pt" in page.text
    assert "tercet evaluate made-up" in page.text


def test_right_answers_are_marked_where_they_rank(made: Made) -> None:
    dataset, report = made
    record = report.of("caption").records[3]
    only = dataclasses.replace(report.of("caption"), records=(record,))
    text, _ = make_page(dataclasses.replace(report, evaluations=(only,)), dataset.pictures, [])
    figures = re.findall(r'<figure( class="right")?>.*?<figcaption title="([^"]*)">([^<]*)', text, re.DOTALL)
    assert figures[0][1] == record.reference
    marked = {name: before.strip() for right, name, before in figures if right}
    assert set(marked) == set(record.targets)
    for name, before in marked.items():
        assert before.startswith(f"{record.top.index(name) + 1}.")
    found = "found at rank 1" if record.rank == 1 else f"best target at rank {record.rank}"
    assert found in text


def test_worst_median_and_best_are_told_apart(made: Made) -> None:
    evaluation = made[1].of("caption")
    picked = pick_queries(evaluation, 5)
    ranks = {kind: [record.rank or math.inf for record in of_kind] for kind, of_kind in picked.items()}
    every = sorted(record.rank or math.inf for record in evaluation.records)
    assert list(picked) == ["worst", "median", "best"]
    assert ranks["best"] == every[:5]
    assert ranks["worst"] == every[:-6:-1]
    assert abs(ranks["median"][2] - every[len(every) // 2]) <= 1
    names = [(record.task, record.name) for of_kind in picked.values() for record in of_kind]
    assert len(set(names)) == 15


@pytest.mark.parametrize("count", range(1, 8))
def test_few_queries_are_shown_once_each(made: Made, count: int) -> None:
    evaluation = dataclasses.replace(made[1].of("caption"), records=made[1].of("caption").records[:count])
    names = [record.name for of_kind in pick_queries(evaluation, 5).values() for record in of_kind]
    assert sorted(names) == sorted(record.name for record in evaluation.records)


def test_a_query_without_a_target_among_the_candidates_is_worst(made: Made) -> None:
    evaluation = made[1].of("caption")
    lost = dataclasses.replace(evaluation.records[7], rank=None, name="lost")
    evaluation = dataclasses.replace(evaluation, records=(*evaluation.records, lost))
    assert pick_queries(evaluation, 3)["worst"][0] is lost


HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}{% raw %}</title>&lt;\u202e"


def test_what_data_sets_hold_cannot_inject(tmp_path: Path) -> None:
    dataset, report = made_up.make(tmp_path / "pictures", queries=4)
    pictures = {f"../{HOSTILE}{name}": source for name, source in dataset.pictures.items()}
    of = report.of("caption")
    records = tuple(
        dataclasses.replace(
            record,
            name=HOSTILE,
            task=HOSTILE,
            aspects=(HOSTILE,),
            reference=f"../{HOSTILE}{record.reference}",
            modifications=(HOSTILE,),
            targets=tuple(f"../{HOSTILE}{name}" for name in record.targets),
            captions=(HOSTILE,),
            composed=(HOSTILE,),
            background=HOSTILE,
            background_reason=HOSTILE,
            notes=(HOSTILE,),
            top=tuple(f"../{HOSTILE}{name}" for name in record.top),
        )
        for record in of.records
    )
    numbers = dataclasses.replace(of.numbers, aspects={HOSTILE: of.numbers.overall})
    of = dataclasses.replace(
        of,
        records=records,
        label=HOSTILE,
        numbers=numbers,
        settings={HOSTILE: HOSTILE},
        texts={HOSTILE: HOSTILE},
    )
    hostile = dataclasses.replace(
        report,
        evaluations=(of,),
        dataset=dataclasses.replace(report.dataset, name=HOSTILE, split=HOSTILE, protocol=HOSTILE),
        lineup={**report.lineup, "name": HOSTILE},
        run={**report.run, "command": [HOSTILE], "versions": {HOSTILE: HOSTILE}},
    )
    write_report(tmp_path / "report", hostile, pictures)
    text = (tmp_path / "report" / "index.html").read_text()
    page = Page(text)
    harmless = Page(make_page(report, dataset.pictures, ["by_k"])[0])
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in harmless.tags}
    attributes = {name for _, attributes in page.tags for name in attributes}
    assert attributes <= {name for _, attributes in harmless.tags for name in attributes}
    assert HOSTILE in page.text
    assert ">49" not in text.replace(" ", "")
    for address in page.addresses():
        assert re.fullmatch(r"pictures/[0-9a-f]{24}\.jpg|plots/[a-z_]+\.svg", address)
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "report"}


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "no picture": lambda path: path.write_bytes(b"<svg>"),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_picture_that_cannot_be_opened_is_a_placeholder(tmp_path: Path, damage: str) -> None:
    dataset, report = made_up.make(tmp_path, queries=4)
    for source in list(dataset.pictures.values())[::2]:
        DAMAGE[damage](source.path)
    text, files = make_page(report, dataset.pictures, [])
    assert text.count("cannot be<br>opened") > 10
    assert text.count("<img") > 10
    assert files


def test_without_any_pictures_there_is_a_page(made: Made) -> None:
    text, files = make_page(made[1], {}, [])
    assert "<img" not in text
    assert not files


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "I;16"])
def test_every_kind_of_picture_becomes_a_thumbnail(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.tif" if mode in ("CMYK", "I;16") else "picture.png")
    Image.new(mode, (600, 300)).save(path)
    encoded = thumbnail(PictureSource(path))
    assert encoded is not None
    with Image.open(BytesIO(encoded)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SIDE, SIDE // 2))


def test_a_split_without_answers_shows_some_queries(tmp_path: Path) -> None:
    dataset, report = made_up.make(tmp_path, answers=False, queries=20)
    page = Page(make_page(report, dataset.pictures, [])[0])
    assert "Only this split's server knows the right answers" in page.text
    assert page.text.count("text searched for") == 2 * 15
    assert "at rank" not in page.text


def test_published_numbers_stand_beside_ours(made: Made) -> None:
    report = made[1]
    dataset = dataclasses.replace(report.dataset, name="circo", split="val")
    page = Page(make_page(dataclasses.replace(report, dataset=dataset), {}, [])[0])
    assert "published on test, training-free" in page.text
    assert "Published numbers are of test, ours of val" in page.text
    assert "12.59" in page.text
    assert "shared_concept" in page.text
