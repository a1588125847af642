"""`tercet evaluate`: the field's numbers of a data set, by its own protocol, from a running server."""

import importlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tercet.cli.console import DEFAULT_SERVER, ServerOption, connect, output, printable, shown_path
from tercet.cli.evaluate_compare import compare
from tercet.errors import InputError, TercetError
from tercet.evaluation.datasets import DATASETS, DatasetEntry

if TYPE_CHECKING:
    from tercet.evaluation.run import Chosen, Progress
    from tercet.lineup import Lineup

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Measure how well composed queries are answered, as papers do, by a data set's own protocol.

Each data set is a command, which says by `--help` which files it expects and where they come from. `compare`
says whether one result is better than another.
""",
)

DataOption = Annotated[
    Path, typer.Option("--data", metavar="FOLDER", help="The data set's official files.", show_default=False)
]
SplitOption = Annotated[str | None, typer.Option(help="The split.", show_default="the first of its splits")]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="A choice that the data set leaves; repeatable."),
]
CheckOption = Annotated[
    bool, typer.Option("--check", help="Only look which files are there and how many queries they hold.")
]
CompositionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--composition",
        "-c",
        metavar="'NAME [SETTING=VALUE ...]'",
        help="A way to compose the queries (`tercet compositions` lists them); repeatable; `all`: every one "
        "that the server can serve.",
        show_default="caption",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="The report.", show_default="evaluation/DATASET-SPLIT-LINEUP"
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        envvar="TERCET_EVALUATION_CACHE",
        help="Keeps embeddings and captions, so that a killed run goes on and the next need not ask again.",
        show_default="~/.cache/tercet/evaluation",
    ),
]
TopOption = Annotated[int, typer.Option(min=50, max=1000, help="Answers of a query that are written down.")]
InFlightOption = Annotated[
    int,
    typer.Option(
        min=1,
        max=256,
        help="Queries at once. With 1 the server makes no batches: numbers repeat to the last bit.",
    ),
]


@dataclass(frozen=True)
class Asked:
    """What one command was asked for."""

    dataset: str
    data: Path
    split: str | None
    options: dict[str, str]
    compositions: list[str]
    output: Path | None
    cache: Path
    top: int
    in_flight: int


def add(name: str, entry: DatasetEntry) -> None:
    """Make the command of one data set."""

    def command(
        data: DataOption,
        split: SplitOption = None,
        option: SettingsOption = None,
        check: CheckOption = False,
        composition: CompositionOption = None,
        output: OutputOption = None,
        cache: CacheOption = None,
        top: TopOption = 50,
        in_flight: InFlightOption = 32,
        server: ServerOption = DEFAULT_SERVER,
    ) -> None:
        asked = Asked(
            name,
            data,
            split,
            dict(_pair(setting) for setting in option or []),
            composition or ["caption"],
            output,
            cache
            or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tercet" / "evaluation",
            top,
            in_flight,
        )
        if check:
            show_check(asked)
        else:
            run(asked, server)

    app.command(name, help=_help(name, entry), short_help=f"{entry.title} ({', '.join(entry.splits)})")(
        command
    )


def _help(name: str, entry: DatasetEntry) -> str:
    options = [
        f"`--option {key}={option.default}` {option.words}"
        + (f" ({', '.join(option.choices)})" if option.choices else "")
        for key, option in entry.options.items()
    ]
    paragraphs = [
        f"{entry.title}; splits: {', '.join(entry.splits)}.",
        f"Expects {entry.layout}.",
        f"From: {entry.source}.",
        *options,
        "Stopped or killed, it goes on where it was when it is started again.",
        "**Examples**",
        f"tercet evaluate {name} --data FOLDER --check",
        f"tercet evaluate {name} --data FOLDER -c caption -c pic2word -c 'caption background=keep'",
    ]
    return "\n\n".join(paragraphs)


def _pair(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals:
        raise typer.BadParameter(f"{setting!r} has no value; write NAME=VALUE", param_hint="--option")
    return key, value


def show_check(asked: Asked) -> None:
    """Print what is there of the data set; exit code 1 where it would not load."""
    from tercet.evaluation.datasets import check_dataset

    found = check_dataset(asked.dataset, asked.data, asked.split, **asked.options)
    print("\n".join(map(printable, found.report().splitlines())))
    if not found.complete:
        raise typer.Exit(1)


def run(asked: Asked, server: str) -> None:
    """Evaluate, print the table, write the report and, where the answers are not known, the submissions."""
    from tercet.evaluation.chosen import check_labels, choose
    from tercet.evaluation.datasets import load_dataset
    from tercet.evaluation.report import check_folder, make_report, write_report
    from tercet.evaluation.run import evaluate
    from tercet.evaluation.table import print_results

    started = time.monotonic()
    require_extra()
    chosen = [choose(words, asked.dataset) for words in asked.compositions if words != "all"]
    dataset = load_dataset(asked.dataset, asked.data, asked.split, **asked.options)
    try:
        with connect(server) as client:
            lineup = client.lineup()
            folder = asked.output or Path("evaluation") / f"{dataset.name}-{dataset.split}-{lineup.name}"
            check_folder(folder)
            if "all" in asked.compositions:
                chosen += [choice for choice in every(asked.dataset, lineup) if choice not in chosen]
            check_labels(chosen)
            with progress_bar() as show:
                runs = evaluate(
                    dataset,
                    client,
                    chosen,
                    asked.cache,
                    top=asked.top,
                    in_flight=asked.in_flight,
                    on_progress=show,
                )
    except KeyboardInterrupt:
        print(f"Stopped. What was done is kept in {shown_path(asked.cache)}: run the same again to go on.")
        raise typer.Exit(130) from None
    report = make_report(
        dataset,
        lineup,
        chosen,
        runs,
        options=dict(asked.options),
        command=sys.argv,
        seconds=time.monotonic() - started,
    )
    write_report(folder, report, dataset.pictures)
    print_results(report, output())
    if not dataset.answers_known:
        from tercet.evaluation.submissions import write_submissions

        for number, choice in enumerate(chosen, 1):
            place = folder / "submissions" / f"{number}-{choice.recipe.name}"
            for path in write_submissions(dataset, runs[choice.label][0].ranking, place):
                print(f"For the server: {shown_path(path)}  ({printable(choice.label)})")
    print(f"Report: {shown_path(folder / 'index.html')}")


def require_extra() -> None:
    """Refuse to begin what could not be written down in the end.

    Raises:
        TercetError: it names what to install.
    """
    for name in ("pyarrow", "matplotlib", "jinja2"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise TercetError(
                f"the report needs {name} ({error}); install it with: pip install 'tercet[evaluate]'"
            ) from error


def every(dataset: str, lineup: "Lineup") -> "list[Chosen]":
    """Every composition that the server can serve; says which are left out, and why."""
    from tercet.evaluation.chosen import choose_all

    chosen, left_out = choose_all(dataset, lineup)
    for name, reason in left_out.items():
        print(f"without {name}: {printable(reason)}", file=sys.stderr)
    if not chosen:
        raise InputError("the server can serve no composition; serve a lineup with a text encoder")
    return chosen


@contextmanager
def progress_bar() -> "Iterator[Progress]":
    """A bar for every step on standard error, with rate and time left; yields what to call."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        steps: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in steps:
                steps[step] = bar.add_task(printable(step), total=total, rate="")
            number = steps[step]
            speed = bar.tasks[number].speed
            bar.update(number, completed=done, rate=f"{speed:,.0f}/s" if speed else "")

        yield show


for _name, _entry in DATASETS.items():
    add(_name, _entry)
app.command()(compare)
