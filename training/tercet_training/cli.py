"""`tercet-train`: the commands that make weights."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Train networks for Tercet. What a command writes, `tercet-export` puts into the model repository.",
)


@app.callback()
def commands() -> None:
    """Keep `demo` a command of its own while it is the only one."""


@app.command()
def demo(
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for weights and vocabularies. Left out: the demo lineup's own."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the pictures, the captions and the first weights.")] = 1,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the rendered pictures for the next run.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of PyTorch.")] = 2,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A few steps on a few pictures: shows that it runs, learns nothing."),
    ] = False,
) -> None:
    """Train the demo's IS-Net, GIT and CLIP from scratch on the synthetic picture world.

    Renders the pictures, trains CLIP beside the other two, asks composed queries about unseen pictures
    in five ways, and saves everything with its scores (training.json). Under an hour on two cores.

    Then: tercet-export lineup demo
    """
    from tercet_training.train_demo import DESTINATION, FULL, QUICK, train_demo  # torch takes seconds

    if quick and output is None:
        raise typer.BadParameter(
            "--quick would overwrite the demo's weights with useless ones: give --output"
        )
    train_demo(output or DESTINATION, seed, QUICK if quick else FULL, cache, threads)


def main() -> None:
    """Run the command line."""
    app()
