"""Contact sheets: composed queries and their ranked answers in one picture to look at."""

import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

__all__ = ["SheetPicture", "SheetRow", "draw_sheet"]

SheetPicture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray
"""A path, a Pillow image, or pixels u8 [height, width, 3]."""

WIDTH = 1320
MARGIN, GAP = 40, 14
QUERY_WIDTH = 2 * 176 + GAP
COLUMNS = 5
TILE = (WIDTH - 2 * MARGIN - QUERY_WIDTH - 2 * GAP - 16 - (COLUMNS - 1) * GAP) // COLUMNS
QUERY_TILE = (QUERY_WIDTH - GAP) // 2

PAGE, CARD, EMPTY = "#eef0f3", "#ffffff", "#e3e6ea"
INK, MUTED, LINE = "#1c2128", "#6b7480", "#d5d9de"
RIGHT, ON_COLOUR = "#1a7f37", "#ffffff"

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
TITLE_HEIGHT = 30
TITLE, HEADING, TEXT, SMALL = (ImageFont.load_default(size) for size in (TITLE_HEIGHT, 23, 17, 14))


@dataclass(frozen=True)
class SheetRow:
    """One query and its answers.

    `results` are pictures with their scores, best first; those whose path is in `relevant` are marked right.
    """

    results: Sequence[tuple[Path, float]]
    modification: str = ""
    reference: SheetPicture | None = None
    foreground: SheetPicture | None = None
    caption: str = ""
    composed: str = ""
    relevant: Collection[Path] = frozenset()
    note: str = ""


def draw_sheet(rows: Sequence[SheetRow], path: str | os.PathLike[str], *, title: str = "") -> None:
    """Draw the queries one below another and save them at `path`, as PNG, JPEG or what its ending says.

    A picture that cannot be opened is drawn as an empty tile that says so.

    Raises:
        OSError: `path` cannot be written.
        ValueError: the ending of `path` names no picture format.
    """
    cards = [_card(row) for row in rows]
    top = MARGIN + (TITLE_HEIGHT + 24 if title else 0)
    height = top + sum(card.height + GAP for card in cards) - GAP + MARGIN
    sheet = Image.new("RGB", (WIDTH, max(height, 2 * MARGIN)), PAGE)
    if title:
        ImageDraw.Draw(sheet).text((MARGIN, MARGIN - 8), _plain(title), INK, TITLE)
    for card in cards:
        sheet.paste(card, (MARGIN - 16, top))
        top += card.height + GAP
    target = Path(path)
    # The ending stays last: Pillow reads the format from it.
    unfinished = target.with_name(f".partial-{target.name}")
    try:
        sheet.save(unfinished)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _card(row: SheetRow) -> Image.Image:
    """One query: what was asked on the left, the answers on the right."""
    card = Image.new("RGB", (WIDTH - 2 * MARGIN + 32, 4000), CARD)
    draw = ImageDraw.Draw(card)
    left, top, inside = 16, 16, WIDTH - 2 * MARGIN
    if row.modification:
        for line in _wrapped(row.modification, HEADING, inside, most_lines=3):
            draw.text((left, top), line, INK, HEADING)
            top += 30
    if row.note:
        for line in _wrapped(row.note, SMALL, inside, most_lines=2):
            draw.text((left, top), line, MUTED, SMALL)
            top += 19
    if row.modification or row.note:
        top += 12
        draw.line((left, top, left + inside, top), LINE)
        top += 16
    bottom = max(
        _query(card, draw, row, left, top), _results(card, draw, row, left + QUERY_WIDTH + 2 * GAP + 16, top)
    )
    return card.crop((0, 0, card.width, min(bottom + 16, card.height)))


def _query(card: Image.Image, draw: ImageDraw.ImageDraw, row: SheetRow, left: int, top: int) -> int:
    """Draw reference, foreground and texts; return where they end."""
    pictures = [("reference", row.reference), ("foreground", row.foreground)]
    shown = [(label, picture) for label, picture in pictures if picture is not None]
    for number, (label, picture) in enumerate(shown):
        x = left + number * (QUERY_TILE + GAP)
        card.paste(_tile(picture, QUERY_TILE), (x, top))
        draw.text((x, top + QUERY_TILE + 5), label, MUTED, SMALL)
    if shown:
        top += QUERY_TILE + 34
    for label, text in (("caption", row.caption), ("text searched for", row.composed)):
        if text:
            draw.text((left, top), label, MUTED, SMALL)
            top += 19
            for line in _wrapped(text, TEXT, QUERY_WIDTH, most_lines=8):
                draw.text((left, top), line, INK, TEXT)
                top += 23
            top += 10
    return top


def _results(card: Image.Image, draw: ImageDraw.ImageDraw, row: SheetRow, left: int, top: int) -> int:
    """Draw the ranked answers; return where they end."""
    if not row.results:
        draw.text((left, top), "no results", MUTED, TEXT)
        return top + 30
    line_height = TILE + 38
    lines = math.ceil(len(row.results) / COLUMNS)
    most_lines = (card.height - top - 16) // line_height
    for number, (path, score) in enumerate(row.results[: most_lines * COLUMNS]):
        x = left + number % COLUMNS * (TILE + GAP)
        y = top + number // COLUMNS * line_height
        right = path in row.relevant
        card.paste(_tile(path, TILE), (x, y))
        if right:
            draw.rectangle((x - 4, y - 4, x + TILE + 3, y + TILE + 3), outline=RIGHT, width=5)
        rank = str(number + 1)
        width = max(26, round(SMALL.getlength(rank)) + 14)
        draw.rounded_rectangle((x, y + TILE + 5, x + width, y + TILE + 25), 6, RIGHT if right else EMPTY)
        colour = ON_COLOUR if right else INK
        draw.text((x + width / 2, y + TILE + 15), rank, colour, SMALL, anchor="mm")
        draw.text((x + TILE, y + TILE + 15), f"{score:.3f}", RIGHT if right else MUTED, SMALL, anchor="rm")
    return top + min(lines, most_lines) * line_height


def _tile(picture: SheetPicture, side: int) -> Image.Image:
    """The picture whole, on a square of `side` pixels."""
    tile = Image.new("RGB", (side, side), EMPTY)
    try:
        opened = _open(picture, side)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        ImageDraw.Draw(tile).multiline_text(
            (side / 2, side / 2), "cannot be\nopened", MUTED, SMALL, anchor="mm", align="center"
        )
        return tile
    fitted = ImageOps.contain(opened, (side, side), Image.Resampling.LANCZOS)
    tile.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
    return tile


def _open(picture: SheetPicture, side: int) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(picture))
    if not isinstance(picture, Image.Image):
        with Image.open(picture) as file:
            # JPEG decodes at a fraction of its size for a fraction of the time.
            file.draft("RGB", (2 * side, 2 * side))
            file.load()
            picture = file
    upright = ImageOps.exif_transpose(picture)
    if upright.has_transparency_data:
        flat = Image.new("RGBA", upright.size, CARD)
        flat.alpha_composite(upright.convert("RGBA"))
        upright = flat
    return upright.convert("RGB")


def _plain(text: str) -> str:
    """`text` without what a font cannot draw at all: control characters and lone surrogates."""
    return re.sub(
        r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+", " ", text
    ).strip()


def _wrapped(text: str, font: Font, width: int, most_lines: int) -> list[str]:
    """Lines of at most `width` pixels, broken between words, or inside a word that is wider than a line."""
    lines = [""]
    for piece in _pieces(_plain(text), font, width):
        longer = f"{lines[-1]} {piece}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(piece)
        if len(lines) > most_lines:
            last = lines[most_lines - 1]
            while last and font.getlength(last + "...") > width:
                last = last[:-1]
            return [*lines[: most_lines - 1], last + "..."]
    return lines


def _pieces(text: str, font: Font, width: int) -> Iterator[str]:
    for word in text.split():
        start = 0
        for end in range(1, len(word) + 1):
            if font.getlength(word[start:end]) > width:
                yield word[start : end - 1]
                start = end - 1
        yield word[start:]
