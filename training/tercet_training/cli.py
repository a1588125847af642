"""`tercet-train`: the commands that make weights."""

from pathlib import Path
from typing import Annotated

import typer

from tercet_training.pic2word.command import EXAMPLES, pic2word

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Train networks for Tercet. What a command writes, `tercet-export` puts into the model repository.",
)


def paragraphs(text: str | None) -> str:
    """A docstring with each paragraph in one line, for terminals of any width."""
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


app.command(epilog=EXAMPLES, help=paragraphs(pic2word.__doc__))(pic2word)


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
    only: Annotated[
        str | None,
        typer.Option(help="pic2word: train it alone, for the CLIP that --output has, with its seed."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A few steps on a few pictures: shows that it runs, learns nothing."),
    ] = False,
) -> None:
    """Train the demo's IS-Net, GIT, CLIP and Pic2Word from scratch on the synthetic picture world.

    Renders the pictures, trains CLIP and Pic2Word beside the other two, asks composed queries about unseen
    pictures in six ways, and saves everything with its scores (training.json). Under an hour on two cores.

    Then: tercet-export lineup demo
    """
    from tercet_training.train_demo import ALONE, DESTINATION, FULL, QUICK, train_demo  # torch takes seconds

    if only not in (None, *ALONE):
        raise typer.BadParameter(f"choose {' or '.join(ALONE)}", param_hint="--only")

    if quick and output is None:
        raise typer.BadParameter(
            "--quick would overwrite the demo's weights with useless ones: give --output"
        )
    train_demo(output or DESTINATION, seed, QUICK if quick else FULL, cache, threads, only)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
