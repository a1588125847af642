"""`tercet index`: embed a gallery's pictures into an index, or bring it up to date."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tercet.cli.console import DEFAULT_SERVER, ServerOption, connect, printable, shown_path

if TYPE_CHECKING:
    from tercet.index import BuildProgress


class SearchKind(StrEnum):
    """How an index is searched."""

    auto = "auto"
    exact = "exact"
    hnsw = "hnsw"
    quantised = "quantised"


IN_FLIGHT = 64
"""Pictures at work at once: with so many `embed_image` is at its best (docs/performance.md)."""

LISTED = 5
"""Skipped pictures that are shown; the file has them all."""


def index(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|LIST|-",
            help="The folder of pictures, a text file with one path a line, or - for such a list on stdin.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="INDEX", help="The index.", show_default="FOLDER.tercet"),
    ] = None,
    kind: Annotated[
        SearchKind | None,
        typer.Option(
            help="How to search; auto: by size, dimension and memory.",
            show_default="what was asked for last; auto if new",
        ),
    ] = None,
    hnsw: Annotated[
        bool | None,
        typer.Option("--hnsw/--exact", help="Short for --kind hnsw and --kind exact.", show_default=False),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option(help="Embed everything again, as another encoder requires.")
    ] = False,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Embed the pictures of a gallery into an index, or bring the index up to date.

    Run it again after adding, changing or deleting pictures: only what is new or changed is embedded. Stopped
    or killed, it goes on where it was. Pictures that cannot be read are skipped and listed in
    INDEX/skipped.jsonl.

    A gallery of up to about 200,000 pictures is searched exactly, a larger one by codes of a bit for every
    dimension, whose best are compared exactly; what is chosen, and why, is printed. --kind chooses
    otherwise.

    **Examples**

    tercet index photos

    tercet index photos --output indexes/photos --server gpu-machine:8001

    find / -name '*.jpg' | tercet index - --output everything.tercet
    """
    from tercet.index import build_index

    if output is None:
        if source == "-":
            raise typer.BadParameter("a list on standard input has no name: give the index one with --output")
        output = Path(source.rstrip("/") + ".tercet")
    if kind is not None and hnsw is not None:
        raise typer.BadParameter("give --kind, --hnsw or --exact, not two of them")
    asked: Literal["auto", "exact", "hnsw", "quantised"] | None
    asked = kind.value if kind else None if hnsw is None else "hnsw" if hnsw else "exact"
    try:
        with connect(server, IN_FLIGHT) as client, progress_bar() as show:
            report = build_index(source, output, client, kind=asked, rebuild=rebuild, on_progress=show)
    except KeyboardInterrupt as stopped:
        print("Stopped.", *getattr(stopped, "__notes__", []), sep="\n", file=sys.stderr)
        raise typer.Exit(130) from None
    print(report)
    for picture in report.skipped[:LISTED]:
        print(f"skipped {printable(picture.name)}: {printable(picture.reason)}", file=sys.stderr)
    if len(report.skipped) > LISTED:
        left = len(report.skipped) - LISTED
        print(f"and {left:,} more: {shown_path(output / 'skipped.jsonl')} lists them all", file=sys.stderr)


@contextmanager
def progress_bar() -> "Iterator[Callable[[BuildProgress], None]]":
    """A bar on standard error with rate and time left; yields what to call with the progress."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[skipped]}"),
        console=Console(stderr=True),
    )
    task = bar.add_task("", rate="", skipped="")

    def show(progress: "BuildProgress") -> None:
        if bar.tasks[0].description != progress.step:
            bar.reset(task, description=progress.step)
            bar.start()
        speed = bar.tasks[0].speed
        bar.update(
            task,
            total=progress.total,
            completed=progress.done,
            rate=f"{speed:,.0f}/s" if speed else "",
            skipped=f"{progress.skipped:,} skipped" if progress.skipped else "",
        )

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()
