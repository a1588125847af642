"""`tercet search`: ask an index with a picture, a text, or both."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tercet.cli.console import DEFAULT_SERVER, ServerOption, connect, output, printable, shown_path
from tercet.composition import DEFAULT_TEMPLATE
from tercet.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from tercet.client import Caption, Client
    from tercet.composition import Composition
    from tercet.index import GalleryIndex

DUPLICATE = 0.9995
"""Cosine similarity from which a picture is the reference itself: a copy or a lossless conversion."""


class Background(StrEnum):
    """What is captioned."""

    remove = "remove"
    keep = "keep"


BackgroundOption = Annotated[
    Background, typer.Option(help="Caption the reference's object alone, or the whole picture.")
]


def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="What `tercet index` made.")],
    image: Annotated[Path | None, typer.Option("--image", "-i", help="The reference picture.")] = None,
    text: Annotated[
        str | None, typer.Option("--text", "-t", help="What to change about it; alone, what to look for.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many pictures to find.")] = 10,
    background: BackgroundOption = Background.remove,
    template: Annotated[
        str, typer.Option(help="How caption and text are fused: a name from `tercet templates`, or a text.")
    ] = DEFAULT_TEMPLATE,
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

    The reference is captioned without its background, the caption is fused with the text, and the fused text
    is compared with every picture of the index. With only --image or only --text, that alone is compared.

    **Examples**

    tercet search photos.tercet --image dress.jpg --text "in blue, on a beach"

    tercet search photos.tercet -i dress.jpg -t "in blue" -k 20 --exclude-reference --sheet found.png

    tercet search photos.tercet -i dress.jpg -t "in blue" --template "{caption}, now {modification}" --json
    """
    from tercet.index import GalleryIndex

    if image is None and text is None:
        raise typer.BadParameter("give --image, --text, or both")
    if exclude_reference and image is None:
        raise typer.BadParameter("--exclude-reference needs the reference: give --image")
    with connect(server) as client:
        loaded = GalleryIndex.load(
            index, encoder_fingerprint=client.lineup().encoder_fingerprint, root=gallery
        )
        caption, composition, embedding = _query(client, image, text, background, template)
        excluded = _copies(client, loaded, image) if exclude_reference and image is not None else []
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
            "caption": caption and caption.text,
            "composed": composition and composition.text,
            "caption_cut": composition and composition.caption_cut,
            "excluded": [str(loaded.paths[row]) for row in excluded],
            "results": [
                {"rank": rank, "score": score, "path": str(path)}
                for rank, (path, score) in enumerate(results, 1)
            ],
        }
        print(json.dumps(answer, indent=1))
    else:
        _print(results, caption, composition, [loaded.paths[row] for row in excluded])
    if sheet is not None:
        _draw(sheet, results, image, text, caption, composition)
        if not as_json:
            print(f"Drawn in {shown_path(sheet)}")


def _query(
    client: "Client", image: Path | None, text: str | None, background: Background, template: str
) -> "tuple[Caption | None, Composition | None, np.ndarray]":
    """Caption and composition, where there are any, and the embedding, f32 [D]."""
    if image is not None and text is not None:
        query = client.compose_queries(image, text, background=background.value, template=template)
        return query.caption, query.composition, query.embedding
    if text is not None:
        return None, None, client.embed_texts(text)
    assert image is not None
    return None, None, client.embed_images(image)


def _copies(client: "Client", index: "GalleryIndex", image: Path) -> list[int]:
    """Rows of the reference: its own file, and pictures whose embedding is the same."""
    rows = set(index.near(client.embed_images(image), DUPLICATE).tolist())
    own = index.row_of(image)
    return sorted(rows if own is None else rows | {own})


def _print(
    results: list[tuple[Path, float]],
    caption: "Caption | None",
    composition: "Composition | None",
    excluded: list[Path],
) -> None:
    from rich.table import Table

    if caption is not None:
        print(f"Caption   {printable(caption.text)}")
    if composition is not None:
        cut = "   (the caption is cut to leave room for the text)" if composition.caption_cut else ""
        print(f"Composed  {printable(composition.text)}{cut}")
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
    caption: "Caption | None",
    composition: "Composition | None",
) -> None:
    from tercet.sheet import SheetRow, draw_sheet

    row = SheetRow(
        results,
        modification=text or "",
        reference=image,
        foreground=caption.foreground if caption else None,
        caption=caption.text if caption else "",
        composed=composition.text if composition else "",
    )
    try:
        draw_sheet([row], sheet)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot draw {sheet}: {error}; give a path that ends in .png") from error
