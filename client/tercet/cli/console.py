"""What the commands share: the option that names the server, and text that a terminal can show safely."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from tercet.client import Client

ServerOption = Annotated[
    str,
    typer.Option(
        "--server",
        envvar="TERCET_SERVER",
        metavar="HOST:PORT",
        help="Triton's gRPC address; several of one lineup with commas between them.",
    ),
]
DEFAULT_SERVER = "localhost:8001"


def connect(server: str, in_flight: int = 32) -> "Client":
    """A client of the server or servers that the option names."""
    from tercet.client import Client

    addresses = [address.strip() for address in server.split(",")]
    return Client(addresses[0] if len(addresses) == 1 else addresses, in_flight=in_flight)


def printable(text: str) -> str:
    """`text` with escapes in place of what could steer the terminal or cannot be encoded."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def shown_path(path: Path) -> str:
    """The path as short as it can be typed, safe to print."""
    relative = os.path.relpath(path)
    return printable(str(path) if relative.startswith("..") else relative)


def output() -> "Console":
    """Standard output for tables; lines are never cut where it is a file or a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, markup=False, emoji=False)
