"""`tercet-export`: networks and lineups from checkpoints to the model repository."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tercet.errors import TercetError

app = typer.Typer(
    help="Export networks to ONNX and fill Triton's model repository.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(stderr=True)

EXAMPLES = """[bold]Examples[/bold]

  tercet-export lineup demo

  tercet-export lineup mine.toml --repository /srv/models

  tercet-export network isnet --checkpoint isnet-general-use.pth --output isnet.onnx

  tercet-export network clip-text --checkpoint ViT-B-32.pt --arch ViT-B-32-quickgelu --output text.onnx"""


@app.command("network", epilog=EXAMPLES)
def network_command(
    network: Annotated[str, typer.Argument(help="A network's name; `tercet-export list` shows them.")],
    checkpoint: Annotated[str, typer.Option(help="The official checkpoint: a file, or hf://org/repo/file.")],
    output: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    arch: Annotated[str | None, typer.Option(help="Architecture: a name, or a .json file.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the network's input, in pixels.")] = None,
    beams: Annotated[int | None, typer.Option(help="Captioners: beams of the search; 1 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Captioners: longest caption, in tokens.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, or fp16, refused where it is not as good.")] = "fp32",
    format_: Annotated[
        str, typer.Option("--format", help="onnx, or torchscript for Triton's libtorch backend.")
    ] = "onnx",
) -> None:
    """Export one network, and check the file against the network in torch."""
    with spinner(f"Exporting {network}"):
        from tercet_export import checkpoints, registry
        from tercet_export.export import export_network

        entry = registry.network(network)
        options = registry.Options(arch, size, beams, max_tokens, precision, format_)
        exported = export_network(entry, checkpoints.resolve(checkpoint), output, options)
    table = Table(title=f"{network} -> {output}", show_header=False, title_justify="left")
    for name, value in (
        ("role", entry.role),
        ("checkpoint SHA-256", exported.checkpoint_sha256),
        ("parameters", f"{exported.parameters:,}"),
        ("graph", f"{exported.nodes:,} nodes, {megabytes(exported.bytes)}"),
        ("largest difference from torch", differences(exported.differences)),
        ("time, peak memory", f"{exported.seconds:.0f} s, {megabytes(exported.peak_memory)}"),
    ):
        table.add_row(name, value)
    Console().print(table)


@app.command("lineup", epilog=EXAMPLES)
def lineup_command(
    lineup: Annotated[str, typer.Argument(help="demo, small, or a TOML file.")],
    repository: Annotated[Path, typer.Option(help="The model repository to fill.")] = Path(
        "model_repository"
    ),
) -> None:
    """Export every network of a lineup and swap them into the model repository together.

    A role that is there already, from the same checkpoint with the same options, is kept. Where anything
    fails the repository stays as it was.
    """
    with spinner(f"Reading lineup {lineup}") as status:
        from tercet_export.lineup import export_lineup

        manifest = export_lineup(
            lineup,
            repository,
            before=lambda role, choice: status.update(f"Exporting {role}: {choice.network}"),
            after=lambda done: console.print(
                f"[green]✓[/green] {done.role}: {done.network} "
                + (
                    f"({megabytes(done.exported.bytes)}, {done.exported.seconds:.0f} s, "
                    f"peak memory {megabytes(done.exported.peak_memory)}, "
                    f"differs by {differences(done.exported.differences)})"
                    if done.exported
                    else "(unchanged)"
                )
            ),
        )
    name, fingerprint = escape(manifest["name"]), manifest["fingerprint"][:12]
    console.print(f"Lineup [bold]{name}[/bold] ({fingerprint}) is in {repository}; next: tercet serve")


@app.command("list")
def list_command() -> None:
    """Show the networks that can be exported, and the lineups that come with Tercet."""
    with spinner("Loading"):
        from tercet_export import registry
        from tercet_export.lineup import available, read_lineup
        from tercet_export.roles import ROLES

        known = registry.networks()
        lineups = {name: read_lineup(name)[0] for name in available()}
    out = Console(width=None if Console().is_terminal else 200)
    networks = Table("network", "parameters", "input", "code", "weights", "checkpoint", title_justify="left")
    networks.title = "Networks by role ([red]nc[/red]: non-commercial terms)"
    for role in ROLES:
        networks.add_section()
        networks.add_row(f"[dim]{role}[/dim]")
        for entry in (entry for entry in known.values() if entry.role == role):
            networks.add_row(
                f"[bold]{entry.name}[/bold]",
                f"{entry.parameters / 1e6:,.1f} M" if entry.parameters else "by --arch",
                f"{entry.input_size} px" if entry.input_size else "by --arch" if role == "clip_image" else "",
                entry.code_licence,
                ("[red]nc[/red] " if entry.non_commercial else "") + escape(entry.weights_licence),
                escape(entry.source),
            )
    out.print(networks)
    choices = Table("lineup", *ROLES, title="Lineups: tercet-export lineup NAME", title_justify="left")
    for name, lineup in lineups.items():
        chosen = lineup.choices()
        choices.add_row(
            f"[bold]{name}[/bold]",
            *(
                f"{choice.network} {Path(choice.arch).name if choice.arch else ''}".strip()
                if (choice := chosen.get(role))
                else ""
                for role in ROLES
            ),
        )
    out.print(choices)


@contextmanager
def spinner(text: str) -> Iterator:
    """Show what is going on, on a terminal; a TercetError ends the program with its message alone."""
    try:
        with console.status(text) as status:
            yield status
    except TercetError as error:
        console.print(f"[bold red]error:[/bold red] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("interrupted; nothing was changed")
        raise typer.Exit(130) from None


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:,.1f} MB"


def differences(largest: dict[str, float]) -> str:
    """The largest difference of each output."""
    return ", ".join(f"{name} {value:.1g}" for name, value in largest.items())


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
