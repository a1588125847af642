"""`tercet tune`: which engine runs each network best on this machine, measured ahead of `tercet serve`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tercet.cli.console import output, printable

if TYPE_CHECKING:
    from rich.table import Table

    from tercet.server.engines import Trial


def tune(
    repository: Annotated[
        Path, typer.Option("--repository", "-r", metavar="FOLDER", help="The model repository.")
    ] = Path("model_repository"),
    model_config_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Use each model's configs/NAME.pbtxt where it has one."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure what was measured before, too.")] = False,
) -> None:
    """Try every engine on every network of a repository, and remember the best for `tercet serve`.

    An engine is taken if its answers are those of ONNX Runtime in fp32 (embeddings: 1 - cosine at most 0.001;
    masks: mean difference at most 0.005; captions: 19 of 20 the same) and it is faster. `tercet serve` does
    this itself when it first serves a network; do it ahead, for example, while nothing else runs.

    **Examples**

    tercet tune

    tercet tune --again
    """
    from tercet.cli.serve import show_line
    from tercet.errors import ServerStartError
    from tercet.server.engines import choose, find_networks
    from tercet.server.engines.networks import INSTALL, is_installed, measure_engines
    from tercet.server.repository import select_models

    if not is_installed():
        raise ServerStartError(f"there is no engine but onnxruntime to try: {INSTALL}")
    models = select_models(repository, config_name=model_config_name).models
    networks = find_networks(repository, models, model_config_name)
    if not networks:
        raise ServerStartError(
            f"{repository} holds no network of a lineup whose engine can be chosen: fill it (tercet-export "
            "lineup); one on a GPU, or with an accelerator in its configuration, keeps what it has"
        )
    table = header()
    for name, trials in measure_engines(repository, networks, show_line, again).items():
        chosen = choose(trials)
        for trial in trials:
            table.add_row(name, *row(trial, trial is chosen))
    output().print(table)


def header() -> "Table":
    """The table's columns."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("network", "engine", "rows/s", "speed", "distance", ""):
        table.add_column(title, justify="left" if title in ("network", "engine", "") else "right")
    return table


def row(trial: "Trial", chosen: bool) -> list[str]:
    """The table's row for one engine: the largest distance of an output, and what came of it."""
    verdict = "chosen" if chosen else trial.refused or ""
    return [
        trial.engine,
        "" if trial.seconds is None else f"{1 / trial.seconds:.1f}",
        "" if trial.seconds is None else f"{trial.speedup:.2f}",
        f"{max(trial.distances.values()):.1g}" if trial.distances else "",
        printable(verdict),
    ]
