"""`tercet caption`: describe pictures in a sentence each."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tercet.cli.console import DEFAULT_SERVER, ServerOption, connect, printable
from tercet.errors import TercetError


class Background(StrEnum):
    """What is captioned."""

    remove = "remove"
    keep = "keep"


def caption(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.")],
    background: Annotated[
        Background, typer.Option(help="Caption the picture's object alone, or the whole picture.")
    ] = Background.remove,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a picture.")] = False,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Describe pictures in a sentence each, as `tercet search` does with its reference.

    Pictures that cannot be read do not keep the others from being described; they make the exit code 1.

    **Examples**

    tercet caption dress.jpg

    tercet caption *.jpg --background keep --json
    """
    failed = False
    with connect(server) as client:
        results = client.caption_iter(images, background=background.value, foreground=False)
        for image, result in zip(images, results, strict=True):
            if isinstance(result, TercetError):
                failed = True
                print(f"Error: {printable(str(result))}", file=sys.stderr)
            elif as_json:
                print(
                    json.dumps({"path": str(image), "caption": result.text, "score": result.score}),
                    flush=True,
                )
            else:
                name = f"{printable(str(image))}: " if len(images) > 1 else ""
                print(f"{name}{printable(result.text)}", flush=True)
    if failed:
        raise typer.Exit(1)
