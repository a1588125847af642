"""Run the demo: `python -m tercet_training.demo` (or `make demo`)."""

import csv
import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tercet import Client
from tercet.errors import IndexMismatch, TercetError
from tercet.index import GalleryIndex, build_index
from tercet.server import EmbeddedServer
from tercet_training.demo.draw import draw_examples
from tercet_training.demo.methods import METHODS, REMOVED, SUM, ask, rank_of_target
from tercet_training.demo.speed import StageSpeed, measure
from tercet_training.world import Gallery, make_gallery, render

CHECKOUT = Path(__file__).resolve().parents[3]
# Not a seed of the training pictures: nothing in this gallery has been seen by a network.
GALLERY_SEED = 20_260
DEPTH = 10

console = Console()


def render_gallery(gallery: Gallery, folder: Path) -> list[Path]:
    """Render every scene to a JPEG file, once: files that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.jpg" for number in range(len(gallery.scenes))]
    missing = [item for item in zip(paths, gallery.scenes, strict=True) if not item[0].exists()]
    for path, scene in track(missing, "Rendering the gallery", console=console, disable=not missing):
        unfinished = path.with_suffix(".partial")
        render(scene).save(unfinished, format="JPEG", quality=92)
        unfinished.replace(path)
    return paths


def recall_table(ranks: dict[str, np.ndarray], kinds: list[str]) -> tuple[Table, list[dict[str, object]]]:
    """Recall@1 and @10 in percent by method, over all queries and by kind of modification."""
    groups = ["all", *sorted(set(kinds))]
    table = Table(title="Composed queries with known answers: recall@1 / recall@10, %")
    table.add_column("method")
    rows: list[dict[str, object]] = []
    for group in groups:
        table.add_column(f"{group} ({len(kinds) if group == 'all' else kinds.count(group)})", justify="right")
    best = max(float(np.mean(of_method == 1)) for of_method in ranks.values())
    for method in METHODS:
        cells = []
        for group in groups:
            chosen = ranks[method][[group in ("all", kind) for kind in kinds]]
            at_1, at_10 = 100 * float(np.mean(chosen == 1)), 100 * float(np.mean(chosen <= DEPTH))
            rows.append(
                {
                    "method": method,
                    "kind": group,
                    "recall@1": at_1,
                    "recall@10": at_10,
                    "queries": len(chosen),
                }
            )
            cells.append(f"{at_1:.1f} / {at_10:.1f}")
        table.add_row(method, *cells, style="bold" if np.mean(ranks[method] == 1) == best else "")
    return table, rows


def speed_table(speeds: list[StageSpeed]) -> Table:
    """Latency and throughput by stage."""
    table = Table(title="Speed on this machine")
    for column in ("stage", "p50, ms", "p95, ms", "many at once, per second"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for speed in speeds:
        table.add_row(speed.stage, f"{speed.p50:.1f}", f"{speed.p95:.1f}", f"{speed.per_second:,.0f}")
    return table


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows that share their keys as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def run(
    output: Annotated[
        Path, typer.Option(help="Where the gallery, the index, the numbers and the pictures go.")
    ] = CHECKOUT / "demo_output",
    repository: Annotated[Path, typer.Option(help="Triton's model repository.")] = CHECKOUT
    / "model_repository",
    pictures: Annotated[int, typer.Option(min=100, help="Pictures in the gallery.")] = 1200,
    queries: Annotated[int, typer.Option(min=4, help="Composed queries to ask.")] = 400,
) -> None:
    """Export the demo lineup, serve it on Triton, index a gallery and answer composed queries."""
    from tercet_export.lineup import export_lineup  # imports torch, which takes seconds

    started = time.perf_counter()
    console.rule("1  Networks to ONNX")
    export_lineup("demo", repository)

    console.rule("2  A gallery that no network has seen")
    gallery = make_gallery(GALLERY_SEED, pictures=pictures, queries=queries)
    paths = render_gallery(gallery, output / f"gallery-{GALLERY_SEED}-{pictures}-{queries}")
    console.print(f"{len(paths):,} pictures in {paths[0].parent}")

    console.rule("3  Triton")
    with console.status("Starting Triton"):
        # One engine for every machine, so that the numbers are those of the README.
        server = EmbeddedServer(repository, engine="onnxruntime")
    # Nothing is remembered: speed is measured with pictures that were asked before.
    with server, Client(server.grpc_address, remember=0) as client:
        console.print(f"gRPC {server.grpc_address}   HTTP {server.http_address}")
        console.rule("4  Index")
        index_path, encoder = output / "index", client.lineup().encoder_fingerprint
        try:
            report = build_index(paths[0].parent, index_path, client)
        except IndexMismatch:  # the demo's networks have been trained anew since
            report = build_index(paths[0].parent, index_path, client, rebuild=True)
        console.print(str(report))
        index = GalleryIndex.load(index_path, encoder_fingerprint=encoder)

        console.rule("5  Composed queries")
        row_of = {Path(name).name: row for row, name in enumerate(index.paths)}
        rows = [row_of[path.name] for path in paths]
        references = [paths[query.reference] for query in gallery.queries]
        modifications = [query.modification for query in gallery.queries]
        targets = [frozenset(rows[target] for target in query.targets) for query in gallery.queries]
        with console.status(f"Asking {len(references)} queries in {len(METHODS)} ways"):
            answers = ask(client, references, modifications)
        reference_rows = [rows[query.reference] for query in gallery.queries]
        ranks = {
            method: rank_of_target(index, embeddings, reference_rows, targets, DEPTH)
            for method, embeddings in answers.embeddings.items()
        }
        table, recalls = recall_table(ranks, [query.kind for query in gallery.queries])
        console.print(table)

        with console.status("Measuring speed"):
            speeds = measure(client, index, references, modifications, samples=50)
        console.print(speed_table(speeds))

        console.rule("6  Pictures")
        sheets = draw_examples(output / "sheets", gallery, paths, index, rows, answers, ranks[REMOVED])
        for sheet in sheets:
            console.print(f"  {sheet}")

    write_csv(output / "recall.csv", recalls)
    write_csv(output / "speed.csv", [dataclasses.asdict(speed) for speed in speeds])
    by_method = {row["method"]: row["recall@1"] for row in recalls if row["kind"] == "all"}
    summary = {
        "recall": recalls,
        "speed": [dataclasses.asdict(speed) for speed in speeds],
        "seed": GALLERY_SEED,
    }
    (output / "report.json").write_text(json.dumps(summary, indent=1))
    console.rule()
    console.print(
        f"Right picture first: caption fusion with the background removed {by_method[REMOVED]:.0f} %, "
        f"image plus text {by_method[SUM]:.0f} %.  ({time.perf_counter() - started:.0f} s in all)"
    )
    console.print(f"Look at {output / 'sheets'}, or start a server of your own:  .venv/bin/tercet serve")


def main() -> None:
    """Run the command line; a failure that Tercet foresaw is one message, not a traceback."""
    try:
        typer.run(run)
    except TercetError as error:
        console.print(f"[red]{type(error).__name__}:[/red] {error}")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
