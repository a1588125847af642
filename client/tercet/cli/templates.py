"""`tercet templates`: the ways to fuse caption and text that have a name."""

from tercet.cli.console import output
from tercet.composition import DEFAULT_TEMPLATE, TEMPLATES


def templates() -> None:
    """List the ways to fuse caption and text, for `tercet search --template`."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, text in TEMPLATES.items():
        table.add_row(name, text, "the default" if name == DEFAULT_TEMPLATE else "")
    output().print(table)
