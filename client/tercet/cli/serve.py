"""`tercet serve`: the embedded Triton over a model repository, until Ctrl-C."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from tercet.cli.console import printable

if TYPE_CHECKING:
    from tercet.server import EmbeddedServer
    from tercet.server.embedded import Progress

WATCH_SECONDS = 5.0


def serve(
    repository: Annotated[
        Path, typer.Option("--repository", "-r", metavar="FOLDER", help="The model repository.")
    ] = Path("model_repository"),
    host: Annotated[
        str, typer.Option(help="The IPv4 address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8002,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="TERCET_ENGINE",
            show_default="auto",
            help="What runs the networks on the processor: auto (the fastest that is exact enough, measured "
            "once), onnxruntime, openvino (its fastest that is), openvino-f32, openvino-bf16, openvino-int8.",
        ),
    ] = None,
    logs: Annotated[bool, typer.Option("--logs", help="Show Triton's log as it is written.")] = False,
    model_config_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Use each model's configs/NAME.pbtxt where it has one."),
    ] = None,
) -> None:
    """Serve the models of a repository on this machine, until Ctrl-C.

    Models whose weights are missing are left out, and so are the ensembles that need them; a lineup is
    exported with `tercet-export lineup`.

    **Examples**

    tercet serve

    tercet serve --repository other/model_repository --grpc-port 9001 --logs
    """
    from tercet.server import EmbeddedServer

    signal.signal(signal.SIGTERM, interrupt)
    try:
        with ExitStack() as running:
            with loading_bar(hidden=logs) as progress:
                server = EmbeddedServer(
                    repository,
                    host=host,
                    http_port=http_port,
                    grpc_port=grpc_port,
                    metrics_port=metrics_port,
                    model_config_name=model_config_name,
                    engine=engine,
                    progress=progress,
                    tell=show_line,
                    on_log=show_line if logs else None,
                )
                running.enter_context(server)
            print(welcome(server), flush=True)
            while True:
                time.sleep(WATCH_SECONDS)
                server.check()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)


def show_line(line: str) -> None:
    """Print a line of Triton's log, or about the engines."""
    print(printable(line), file=sys.stderr)


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Let SIGTERM end the server as Ctrl-C does."""
    raise KeyboardInterrupt


def welcome(server: "EmbeddedServer") -> str:
    """What to print once the server is ready: its addresses, what it serves and what not, how to ask it."""
    lines = [
        f"gRPC     {server.grpc_address}",
        f"HTTP     http://{server.http_address}",
        f"metrics  http://{server.metrics_address}/metrics",
        f"serving  {', '.join(server.models)}",
        *(f"engine   {name}: {printable(str(trial))}" for name, trial in server.engines.items()),
        *(f"without  {name}: {printable(reason)}" for name, reason in server.left_out.items()),
        "",
        "Ask it, for example (Ctrl-C here stops it):",
        f"  tercet index PICTURES --server {server.grpc_address}",
        f"  curl http://{server.http_address}/v2/models/{server.models[0]}",
    ]
    return "\n".join(lines)


@contextmanager
def loading_bar(hidden: bool) -> "Iterator[Progress]":
    """A bar on standard error of the models that are ready; yields what to call as they become so."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[model]}"),
        console=Console(stderr=True),
        disable=hidden,
        transient=True,
    ) as bar:
        task = bar.add_task("loading models", total=None, model="")

        def show(model: str, ready: int, total: int) -> None:
            bar.update(task, completed=ready, total=total, model=model)

        yield show
