"""The `tercet` command. Each command is a module beside this one and imports what it needs when it runs."""

import sys

import typer

from tercet.cli.bench import bench
from tercet.cli.caption import caption
from tercet.cli.compositions import compositions
from tercet.cli.console import printable
from tercet.cli.evaluate import app as evaluate_app
from tercet.cli.index import index
from tercet.cli.search import search
from tercet.cli.serve import serve
from tercet.cli.templates import templates
from tercet.cli.tune import tune
from tercet.errors import TercetError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Search a picture collection with a picture and a sentence.

A search needs a server (`tercet serve`) and an index (`tercet index`).
""",
)
for command in (serve, tune, index, search, caption, templates, compositions, bench):
    app.command()(command)
app.add_typer(evaluate_app, name="evaluate")


def main() -> None:
    """Run the command line; a failure that Tercet foresaw is one message on standard error, exit code 1."""
    try:
        app()
    except TercetError as error:
        notes = map(printable, getattr(error, "__notes__", []))
        print(f"Error: {printable(str(error))}", *notes, sep="\n", file=sys.stderr)
        sys.exit(1)
