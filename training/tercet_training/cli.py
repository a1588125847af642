"""`tercet-train`: the commands that make weights."""

from pathlib import Path
from typing import Annotated

import typer

from tercet.errors import InputError
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


@app.command()
def world(
    folder: Annotated[Path, typer.Argument(help="Folder to write; one that is unfinished is completed.")],
    pictures: Annotated[int, typer.Option(min=1, help="Pictures in the gallery.")] = 3000,
    queries: Annotated[int, typer.Option(min=1, help="Composed queries, of each kind in turn.")] = 500,
    seed: Annotated[int, typer.Option(help="Decides everything.")] = 20_260,
    setting: Annotated[
        bool,
        typer.Option("--setting", help="Also ask for the reference's own background: a fifth kind of query."),
    ] = False,
) -> None:
    """Render the synthetic picture world as a data set on disk: pictures, and queries with known answers.

    The same arguments give the same pictures. About 15 ms a picture on one core.

    Then: tercet evaluate world --data FOLDER
    """
    from rich.progress import Progress

    from tercet_training.world import make_gallery
    from tercet_training.world.dataset import write_world
    from tercet_training.world.queries import KINDS, SETTING

    kinds = (*KINDS, SETTING) if setting else KINDS
    origin = {"pictures": pictures, "queries": queries, "seed": seed, "kinds": list(kinds)}
    try:
        gallery = make_gallery(seed, pictures, queries, kinds)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--pictures") from error
    with Progress(transient=True) as progress:
        task = progress.add_task("Rendering", total=pictures)
        try:
            write_world(
                folder, gallery, origin, on_progress=lambda done, _: progress.update(task, completed=done)
            )
        except InputError as error:
            raise typer.BadParameter(str(error), param_hint="FOLDER") from error
    typer.echo(f"{pictures:,} pictures and {queries:,} queries in {folder}")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
