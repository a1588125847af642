"""`tercet bench`: load on a server, and what it answers, how fast, at what cost."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tercet.cli.console import DEFAULT_SERVER, connect, output, printable, shown_path

if TYPE_CHECKING:
    from rich.table import Table

    from tercet.bench.measure import Progress
    from tercet.bench.run import Rate
    from tercet.bench.values import Point, Report

DEFAULT_MODELS = ("embed_image", "embed_text", "caption_foreground", "query")
DEFAULT_CONCURRENCY = (1, 2, 4, 8, 16)


def bench(
    server: Annotated[
        str,
        typer.Option(
            "--server", envvar="TERCET_SERVER", metavar="HOST:PORT", help="Triton's gRPC address; one."
        ),
    ] = DEFAULT_SERVER,
    repository: Annotated[
        Path | None,
        typer.Option(
            "--repository", "-r", metavar="FOLDER", help="Start a server over this model repository instead."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME,...",
            help="Ensembles, or `query`: caption, fuse, embed and search, as a user asks it.",
            show_default="embed_image,embed_text,caption_foreground,query",
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Closed loop: so many requests at once, the next sent when one is answered.",
            show_default="1,2,4,8,16",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="R,...",
            help="Open loop: so many arrivals a second at random (Poisson), waiting counted from when each "
            "was due; 70% is that part of the best closed loop.",
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Send these files.", show_default="32 JPEGs of 640x480, made"),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(metavar="INDEX", help="What `query` searches.", show_default="the pictures"),
    ] = None,
    ceilings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What benchmarks/ceilings.py wrote: show the share of it."),
    ] = None,
    folder: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where tables and plots go.")
    ] = Path("bench_output"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="A window's length; 20 answers at least.")] = 2.0,
    warm_up: Annotated[float, typer.Option(min=0.0, help="Seconds of load before each point.")] = 2.0,
    windows: Annotated[int, typer.Option(min=3, help="The most windows a point may take to settle.")] = 10,
    outstanding: Annotated[
        int, typer.Option(min=1, help="Open loop: arrivals past so many unanswered ones are not sent.")
    ] = 512,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of pictures, texts and arrivals.")] = 0,
) -> None:
    """Measure a running server, or one started for it: throughput, latency, where the time goes.

    Each model is put under each load in turn. After a warm-up, windows of 2 s (20 answers at least) are taken
    until the last three agree within 10 % in throughput and p95 latency; those three are the result, "not
    stable" if ten were not enough. Ctrl-C keeps what was measured.

    Written are bench.json, bench.csv (a row a point), stages.csv (what Triton says of each model: waiting,
    computing, mean batch) and plots. Processor time is in cores: seconds used per second. The server's is
    shown where it runs on this machine; leave cores to the client, or run it elsewhere, if its share is not
    small.

    **Examples**

    tercet bench

    tercet bench --model embed_image --concurrency 1,16,64 --pictures photos --server gpu-machine:8001

    tercet bench --repository model_repository --model query --index photos.tercet --rate 50%,70%,90%
    """
    from tercet.bench.ceilings import read_ceilings
    from tercet.bench.inputs import make_pictures, make_texts, read_pictures
    from tercet.bench.measure import Interrupted
    from tercet.bench.processes import describe_machine
    from tercet.bench.run import Plan, describe_server, run, with_pseudo_tokens
    from tercet.bench.server import Server
    from tercet.bench.targets import Inputs
    from tercet.bench.values import Report, Settings
    from tercet.errors import TercetError

    rates = _rates(rate)
    sweep = _numbers("--concurrency", concurrency)
    if concurrency is None and (not rates or any(entry.relative for entry in rates)):
        sweep = list(DEFAULT_CONCURRENCY)
    if not sweep and any(entry.relative for entry in rates):
        raise typer.BadParameter("a rate in % needs a closed loop to be a part of: give --concurrency")
    if repository is None and "," in server:
        raise typer.BadParameter(
            "--server names several, and they cannot be told apart: measure one at a time"
        )
    known = _models(model)
    limits, fingerprint = read_ceilings(ceilings) if ceilings else ([], "")
    files = read_pictures(pictures) if pictures else make_pictures(seed)
    inputs = Inputs(files, make_texts(seed), str(pictures or "made"))
    settings = Settings(
        warm_up=warm_up, window=seconds, windows=windows, outstanding=outstanding, timeout=timeout, seed=seed
    )
    points: list[Point] = []
    failure: TercetError | None = None
    interrupted = False
    with ExitStack() as running:
        address = server if repository is None else running.enter_context(_started(repository))
        asked = Server(address, timeout)
        running.callback(asked.close)
        client = running.enter_context(connect(address))
        described = {**describe_server(asked, client), "started_for_this": repository is not None}
        if ceilings and fingerprint != described["fingerprint"]:
            print(f"Note: {ceilings} was measured with another lineup than the server's.", file=sys.stderr)
        machine = describe_machine()
        served = asked.counters().keys() | {"query"}
        chosen = known or [name for name in DEFAULT_MODELS if name in served]
        plan = Plan(chosen, sweep, rates, index)
        inputs = with_pseudo_tokens(inputs, client)
        show = running.enter_context(_display(points))
        try:
            for point in run(asked, plan, inputs, settings, ceilings=limits, on_progress=show):
                points.append(point)
                show(None)
        except Interrupted as stopped:
            interrupted = True
            points += [stopped.point] if stopped.point else []
        except KeyboardInterrupt:
            interrupted = True
        except TercetError as error:
            failure = error
    if points:
        sizes = sorted(map(len, files))
        given = {
            "pictures": inputs.source,
            "count": len(files),
            "mean_bytes": round(sum(sizes) / len(sizes)),
            "largest_bytes": sizes[-1],
            "texts": len(inputs.texts),
            "index": None if index is None else str(index),
        }
        machine["load_average_at_end"] = describe_machine()["load_average"]
        written = _write(Report(machine, described, given, settings, tuple(points)), folder, as_json)
        print(written, file=sys.stderr)
    if failure is not None:
        raise failure
    if interrupted:
        print("Stopped." if points else "Stopped; nothing was measured yet.", file=sys.stderr)
        raise typer.Exit(130)


def _write(report: "Report", folder: Path, as_json: bool) -> str:
    """Write and print the results; the line that says where they are."""
    from tercet.bench.report import as_json as content
    from tercet.bench.report import write

    written = write(report, folder)
    advice = ""
    if importlib.util.find_spec("matplotlib") is None:
        advice = '; no plots without matplotlib: pip install "tercet[evaluate]"'
    else:
        from tercet.bench.plots import draw

        written += draw(report.points, folder)
    if as_json:
        print(json.dumps(content(report), indent=1))
    else:
        output().print(_table(report.points))
        for note in dict.fromkeys(note for point in report.points for note in point.notes):
            print(f"  {printable(note)}")
    return f"Written to {shown_path(folder)}: {', '.join(file.name for file in written)}{advice}"


def _models(names: list[str] | None) -> list[str]:
    """The targets that were named, each once; none for the defaults."""
    from tercet.bench.targets import ENSEMBLES, QUERY

    chosen = list(dict.fromkeys(part.strip() for name in names or [] for part in name.split(",")))
    unknown = [name for name in chosen if name not in (*ENSEMBLES, QUERY)]
    if unknown:
        raise typer.BadParameter(
            f"--model {', '.join(map(printable, unknown))}: choose among {', '.join((*ENSEMBLES, QUERY))}"
        )
    return chosen


def _numbers(option: str, text: str | None) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [0]
    if any(number < 1 for number in numbers):
        raise typer.BadParameter(
            f"{option} takes whole numbers from 1 with commas between them, such as 1,4,16"
        )
    return numbers


def _rates(text: str | None) -> "list[Rate]":
    from tercet.bench.run import Rate

    rates = []
    for part in text.split(",") if text else []:
        try:
            value = float(part.strip().removesuffix("%"))
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise typer.BadParameter(
                "--rate takes numbers with commas between them, such as 20,40 or 50%,70%"
            )
        relative = part.strip().endswith("%")
        rates.append(Rate(value / 100 if relative else value, relative))
    return rates


@contextmanager
def _started(repository: Path) -> Iterator[str]:
    """A server over the repository; its address."""
    from tercet.cli.serve import loading_bar
    from tercet.server import EmbeddedServer

    with ExitStack() as running:
        with loading_bar(hidden=False) as progress:
            server = running.enter_context(EmbeddedServer(repository, progress=progress))
        yield server.grpc_address


@contextmanager
def _display(points: "list[Point]") -> "Iterator[Callable[[Progress | None], None]]":
    """What was measured and what is going on, on standard error; yields what to call with news."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:

        def tell(progress: "Progress | None") -> None:
            if progress is None:
                print(" ".join(str(cell) for cell in _row(points[-1])), file=sys.stderr)

        yield tell
        return
    with Live(console=console, transient=True, refresh_per_second=4) as live:

        def show(progress: "Progress | None") -> None:
            live.update(_table(points, progress))

        yield show


COLUMNS = (
    "",
    "load",
    "answers/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "batch",
    "client",
    "server",
    "of ceiling",
    "",
)


def _table(points: "list[Point] | tuple[Point, ...]", progress: "Progress | None" = None) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if number in (0, len(COLUMNS) - 1) else "right")
    for point in points:
        table.add_row(*_row(point))
    if progress is not None:
        doing = f"window {progress.window}" if progress.window else "warming up"
        failed = f", {progress.failures} failed" if progress.failures else ""
        p95 = f"{progress.p95:.3g}" if progress.p95 else ""
        row = (progress.target, _load(progress), f"{progress.throughput:.4g}", "", p95)
        table.add_row(*row, "", "", "", "", "", f"{doing}, {progress.answered} answers{failed}")
    return table


def _row(point: "Point") -> tuple[str, ...]:
    """A point's cells: the batch is that of the model that computes the longest, cores are processor time."""
    latency = [
        f"{getattr(point.latency, name):.4g}" if point.latency else "-" for name in ("p50", "p95", "p99")
    ]
    longest = max(point.stages, key=lambda stage: stage.infer, default=None)
    failed = ", ".join(f"{count} {kind}" for kind, count in point.failures.items())
    return (
        point.target,
        _load(point),
        f"{point.throughput:.4g}",
        *latency,
        f"{longest.batch:.1f}" if longest else "",
        f"{point.client_cores:.2f}",
        "" if point.server_cores is None else f"{point.server_cores:.2f}",
        "" if point.share_of_ceiling is None else f"{point.share_of_ceiling:.0%}",
        f"{point.status}{f': {failed}' if failed else ''}",
    )


def _load(point: "Point | Progress") -> str:
    return f"{point.load:g} at once" if point.mode == "closed" else f"{point.load:.4g}/s"
