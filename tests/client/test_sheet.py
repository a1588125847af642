"""Contact sheets: what is drawn where, and what must not stop them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tercet import sheet
from tercet.sheet import SheetRow, draw_sheet

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0x1A, 0x7F, 0x37)


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (30, 20)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def area(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((pixels == colour).all(axis=2).sum())


def test_reference_foreground_and_results_are_drawn(tmp_path: Path) -> None:
    red, blue = picture(tmp_path / "red.png", RED), picture(tmp_path / "blue.png", BLUE)
    white = np.full((5, 5, 3), 254, np.uint8)
    row = SheetRow([(blue, 0.5)] * 7, "on a beach", red, white, "a ball", "a ball, on a beach")
    draw_sheet([row], tmp_path / "sheet.png", title="Title")
    pixels = drawn(tmp_path / "sheet.png")
    results = 7 * sheet.TILE * round(sheet.TILE * 20 / 30)
    assert area(pixels, BLUE) == pytest.approx(results, rel=0.02)
    assert area(pixels, RED) == pytest.approx(sheet.QUERY_TILE**2 * 20 / 30, rel=0.02)
    assert area(pixels, (254, 254, 254)) >= sheet.QUERY_TILE**2
    assert area(pixels, GREEN) == 0


def test_the_right_answer_is_marked(tmp_path: Path) -> None:
    red, blue = picture(tmp_path / "red.png", RED), picture(tmp_path / "blue.png", BLUE)
    for relevant in (set(), {blue}, {red, blue}):
        draw_sheet([SheetRow([(red, 0.5), (blue, 0.4)], relevant=relevant)], tmp_path / "sheet.png")
        marked = area(drawn(tmp_path / "sheet.png"), GREEN)
        frame = 5 * 4 * sheet.TILE
        assert marked // frame == len(relevant)


def test_several_queries_stand_one_below_another(tmp_path: Path) -> None:
    row = SheetRow([(picture(tmp_path / "red.png", RED), 0.5)], "a text")
    heights = []
    for count in (1, 2, 3):
        draw_sheet([row] * count, tmp_path / "sheet.png")
        heights.append(len(drawn(tmp_path / "sheet.png")))
    assert heights[2] - heights[1] == heights[1] - heights[0] > 0
    draw_sheet([], tmp_path / "sheet.png")


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec=None)), st.sampled_from([1, 7, 400]))
def test_any_text_can_be_drawn(tmp_path_factory: pytest.TempPathFactory, text: str, times: int) -> None:
    path = tmp_path_factory.getbasetemp() / "text.png"
    draw_sheet([SheetRow([], text * times, caption=text, composed=text * times, note=text)], path, title=text)


@pytest.mark.parametrize(
    "text", ["word " * 500, "x" * 5000, "日本語" * 300, "שלום עולם " * 90, "🎉" * 700, "a\0b\x1b[31m\n\ud800"]
)
def test_long_and_foreign_texts_stay_inside(tmp_path: Path, text: str) -> None:
    draw_sheet([SheetRow([], text, caption=text, composed=text)], tmp_path / "sheet.png")
    pixels = drawn(tmp_path / "sheet.png")
    assert len(pixels) < 900
    frame = np.concatenate(
        [pixels[:, : sheet.MARGIN - 1], pixels[:, sheet.WIDTH - sheet.MARGIN + 1 :]], axis=1
    )
    assert frame.min() > 200, "text over the edge of the card"


def test_pictures_that_cannot_be_opened_leave_a_gap(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    whole = picture(tmp_path / "whole.jpg", RED, (300, 300)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    bad = [tmp_path / "text.png", tmp_path / "cut.jpg", tmp_path / "missing.png", tmp_path]
    good = picture(tmp_path / "good.png", BLUE, (9, 9))
    draw_sheet([SheetRow([(path, 0.1) for path in [*bad, good]])], tmp_path / "sheet.png")
    assert area(drawn(tmp_path / "sheet.png"), BLUE) == sheet.TILE**2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_kinds_of_pictures(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "picture.tiff"
    Image.new(mode, (10, 10)).save(path)
    draw_sheet([SheetRow([(path, 0.1)], reference=path)], tmp_path / "sheet.png")


def test_a_failed_save_leaves_the_old_sheet(tmp_path: Path) -> None:
    target = tmp_path / "sheet.png"
    draw_sheet([], target)
    before = target.read_bytes()
    with pytest.raises(ValueError):
        draw_sheet([], tmp_path / "sheet.nonsense")
    with pytest.raises(OSError):
        draw_sheet([], tmp_path / "missing" / "sheet.png")
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
