"""`tercet search`: ask an index with a picture, a text, or both."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tercet.cli.console import DEFAULT_SERVER, ServerOption, connect, output, printable, shown_path
from tercet.errors import InputError

if TYPE_CHECKING:
    from tercet.client import Client
    from tercet.compositions import ComposedQuery
    from tercet.compositions.settings import Value
    from tercet.index import GalleryIndex

DUPLICATE = 0.9995
"""Cosine similarity from which a picture is the reference itself: a copy or a lossless conversion."""

DONE = {"remove": "without its background", "keep": "with its background"}


class Background(StrEnum):
    """What is done to the reference's background before it is captioned."""

    auto = "auto"
    remove = "remove"
    keep = "keep"


def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="What `tercet index` made.")],
    image: Annotated[Path | None, typer.Option("--image", "-i", help="The reference picture.")] = None,
    text: Annotated[
        str | None, typer.Option("--text", "-t", help="What to change about it; alone, what to look for.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many pictures to find.")] = 10,
    composition: Annotated[
        str | None,
        typer.Option(
            "--composition",
            "-c",
            metavar="NAME",
            help="How picture and text become a query: a name from `tercet compositions`.",
            show_default="caption",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the composition; repeatable."),
    ] = None,
    background: Annotated[
        Background | None,
        typer.Option(
            help="The reference's, before it is captioned; auto: removed unless the text speaks of it.",
            show_default="auto",
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="How caption and text are fused: a name from `tercet templates`, or a text.",
            show_default="the composition's own",
        ),
    ] = None,
    exclude_reference: Annotated[
        bool, typer.Option("--exclude-reference", help="Leave out the reference itself and copies of it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw query and answers there.")] = None,
    gallery: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the pictures are now, if they have moved.")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Find the pictures of a gallery that fit a reference picture and a text.

    Picture and text become a query in one of several ways. The default, `caption`: the reference is captioned
    without its background, the caption is fused with the text, and the fused text is compared with every
    picture of the index. With only --image or only --text, that alone is compared.

    **Examples**

    tercet search photos.tercet --image dress.jpg --text "in blue, on a beach"

    tercet search photos.tercet -i dress.jpg -t "in blue" -k 20 --exclude-reference --sheet found.png

    tercet search photos.tercet -i dress.jpg -t "in blue" --template "{caption}, now {modification}" --json

    tercet search photos.tercet -i dress.jpg -t "in blue" -c slerp --set slerp_alpha=0.7
    """
    from tercet.index import GalleryIndex

    if image is None and text is None:
        raise typer.BadParameter("give --image, --text, or both")
    if exclude_reference and image is None:
        raise typer.BadParameter("--exclude-reference needs the reference: give --image")
    asked = [composition, setting, background, template]
    if (image is None or text is None) and any(value is not None for value in asked):
        raise typer.BadParameter(
            "--composition, --set, --background and --template say how a picture and a text become a query: "
            "give both --image and --text"
        )
    with connect(server) as client:
        loaded = GalleryIndex.load(
            index, encoder_fingerprint=client.lineup().encoder_fingerprint, root=gallery
        )
        excluded = _copies(client, loaded, image) if exclude_reference and image is not None else []
        query = None
        if image is not None and text is not None:
            query = client.compose_queries(
                image,
                text,
                composition=composition or "caption",
                background=None if background is None else background.value,
                template=template,
                settings=_settings(setting or []),
            )
            scores, rows = loaded.search_composed([query], k, exclude=[excluded])
        else:
            embedding = client.embed_texts(text) if text is not None else client.embed_images(image or "")
            scores, rows = loaded.search(embedding[None], k, exclude=[excluded])
    results = [
        (loaded.paths[row], score)
        for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        if row >= 0
    ]
    if as_json:
        answer: dict[str, Any] = {
            "image": None if image is None else str(image),
            "text": text,
            "composition": query and (composition or "caption"),
            **_described(query),
            "excluded": [str(loaded.paths[row]) for row in excluded],
            "results": [
                {"rank": rank, "score": score, "path": str(path)}
                for rank, (path, score) in enumerate(results, 1)
            ],
        }
        print(json.dumps(answer, indent=1))
    else:
        _print(results, query, [loaded.paths[row] for row in excluded])
    if sheet is not None:
        _draw(sheet, results, image, text, query)
        if not as_json:
            print(f"Drawn in {shown_path(sheet)}")


def _settings(given: list[str]) -> "dict[str, Value]":
    """What the options --set say, by name."""
    settings: dict[str, Value] = {}
    for words in given:
        name, equals, value = words.partition("=")
        if not equals or name in settings:
            what = "is given twice" if equals else "has no value; write NAME=VALUE"
            raise typer.BadParameter(f"{name!r} {what}", param_hint="--set")
        settings[name] = value
    return settings


def _copies(client: "Client", index: "GalleryIndex", image: Path) -> list[int]:
    """Rows of the reference: its own file, and pictures whose embedding is the same."""
    rows = set(index.near(client.embed_images(image), DUPLICATE).tolist())
    own = index.row_of(image)
    return sorted(rows if own is None else rows | {own})


def _described(query: "ComposedQuery | None") -> "dict[str, Any]":
    """How the query came about, for JSON."""
    caption = query and query.caption
    return {
        "caption": caption and caption.text,
        "composed": query and query.composition.text,
        "caption_cut": query and query.caption_cut,
        "background": query and query.background,
        "background_reason": query and query.background_reason,
        "notes": list(query.notes) if query else [],
    }


def _print(results: list[tuple[Path, float]], query: "ComposedQuery | None", excluded: list[Path]) -> None:
    from rich.table import Table

    if query is not None:
        if query.caption is not None:
            print(f"Caption   {printable(query.caption.text)}")
        if query.composition.text:
            cut = "   (the caption is cut to leave room for the text)" if query.caption_cut else ""
            print(f"Composed  {printable(query.composition.text)}{cut}")
        if query.background is not None:
            print(f"Captioned {DONE[query.background]}: {printable(query.background_reason)}")
        for note in query.notes:
            print(f"Note      {printable(note)}")
    if excluded:
        print(f"Excluded  {', '.join(map(shown_path, excluded))}")
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("picture", overflow="fold")
    for rank, (path, score) in enumerate(results, start=1):
        table.add_row(str(rank), f"{score:.4f}", shown_path(path))
    output().print(table)


def _draw(
    sheet: Path,
    results: list[tuple[Path, float]],
    image: Path | None,
    text: str | None,
    query: "ComposedQuery | None",
) -> None:
    from tercet.sheet import SheetRow, draw_sheet

    caption = query.caption if query else None
    row = SheetRow(
        results,
        modification=text or "",
        reference=image,
        foreground=caption.foreground if caption else None,
        caption=caption.text if caption else "",
        composed=query.composition.text if query else "",
    )
    try:
        draw_sheet([row], sheet)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot draw {sheet}: {error}; give a path that ends in .png") from error
