"""`tercet compositions`: the ways to make a query of a picture and a text, and their settings."""

import dataclasses
from typing import TYPE_CHECKING

from tercet.cli.console import output

if TYPE_CHECKING:
    from tercet.compositions import Recipe


def compositions() -> None:
    """List the ways to make a query of a picture and a text, for `tercet search --composition`, `--set`."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from tercet.compositions import COMPOSITIONS
    from tercet.compositions.settings import FIELDS, range_of

    console = output()
    for recipe in COMPOSITIONS.values():
        console.print(Text(f"{recipe.name}  ", style="bold").append(recipe.summary, style="not bold"))
        console.print(Padding(f"needs {_needs(recipe)}", (0, 0, 0, 2), expand=False))
        console.print(Padding(f"reads {_defaults(recipe)}", (0, 0, 1, 2), expand=False))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("setting", "may be", "meaning"):
        table.add_column(column, overflow="fold")
    for name, knob in FIELDS.items():
        table.add_row(name, range_of(name), knob.metadata["help"])
    console.print(table)


def _needs(recipe: "Recipe") -> str:
    """The networks that it needs as it is set by default."""
    from tercet.compositions import Settings

    needs = sorted(recipe.roles(Settings(**recipe.defaults)))  # type: ignore[arg-type]
    if "llm_model" in recipe.reads:
        needs.append("a language model (TERCET_LLM_URL)")
    return ", ".join(needs)


def _defaults(recipe: "Recipe") -> str:
    """Its settings as `--set` takes them, with their defaults."""
    from tercet.compositions import Settings

    defaults = {**dataclasses.asdict(Settings()), **recipe.defaults}
    return ", ".join(f"{name}={_shown(defaults[name])}" for name in recipe.reads)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value) or "''"
