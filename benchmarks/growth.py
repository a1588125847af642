"""How a server's speed grows with what it is asked: the size of pictures, the length of texts.

    python -m benchmarks.growth docs/growth.csv docs/growth.png [--rounds 5]

Full-size CLIP ViT-B/32. Pictures are JPEG files of the same scene at five sizes; texts have so many tokens.
One client and sixteen, in turns; medians of the rounds. Concurrency is `tercet bench`'s sweep, the gallery's
size `benchmarks/search.py`'s, a caption's length `benchmarks/captioner.py`'s.
"""

import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from PIL import Image

from benchmarks.pages import full_size_repository, keep, markdown, measuring_parser
from benchmarks.peers.measuring import Load, measure
from tercet.bench.inputs import QUALITY, make_pictures
from tercet.bench.targets import EnsembleTarget, Inputs, requests_for
from tercet.server import EmbeddedServer

WIDTHS = (320, 640, 1280, 2560, 5120)
TOKENS = (4, 8, 16, 32, 64)
CLIENTS, SECONDS, TIMEOUT = (1, 16), 2.5, 120.0
BASIS = {"embed_image": 640, "embed_text": 16}


@dataclass(frozen=True)
class Grown:
    """One size at one load: medians of the rounds. `relative` is throughput by that of the basis.

    `size` is a picture's width in pixels or a text's number of tokens, `kilobytes` a request's payload.
    """

    target: str
    size: int
    kilobytes: float
    clients: int
    per_second: float
    p50_ms: float
    relative: float


def main() -> None:
    """Measure, write, draw."""
    parser = measuring_parser(__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each load")
    arguments = parser.parse_args()
    rows = run(arguments.repository or full_size_repository(), arguments.rounds, arguments.seconds)
    draw(rows, arguments.picture)
    keep(arguments.output, "growth", rows, table(rows))


def cases() -> dict[tuple[str, int], Inputs]:
    """What is sent: by target and size."""
    whole = [Image.open(io.BytesIO(file)) for file in make_pictures(count=8)]
    found = {}
    for width in WIDTHS:
        files = []
        for picture in whole:
            file = io.BytesIO()
            picture.resize((width, width * 3 // 4), Image.Resampling.BICUBIC).save(
                file, "JPEG", quality=QUALITY
            )
            files.append(file.getvalue())
        found["embed_image", width] = Inputs(files, ())
    for tokens in TOKENS:
        words = ("red dress on the beach " * 20).split()  # a token each, and two around them
        found["embed_text", tokens] = Inputs((), [" ".join(words[at : at + tokens - 2]) for at in range(5)])
    return found


def run(repository: Path, rounds: int, seconds: float) -> list[Grown]:
    """Every size at every load, in turns."""
    asked = cases()
    seen: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    models = ["embed_image", "embed_text"]
    with EmbeddedServer(repository, models=models) as server:
        for _ in range(rounds):
            for (name, size), inputs in asked.items():
                for clients in CLIENTS:
                    requests = requests_for(name, inputs, TIMEOUT)
                    target = EnsembleTarget(name, server.grpc_address, requests, TIMEOUT)
                    with closing(target):
                        found = measure(target, Load(clients, seconds / 4, seconds), None, TIMEOUT)
                    seen.setdefault((name, size, clients), []).append((found.throughput, found.p50_ms))
    rate = {key: median(throughput for throughput, _ in each) for key, each in seen.items()}
    rows = []
    for (name, size, clients), each in seen.items():
        sent = asked[name, size]
        items: Sequence[bytes] = sent.pictures or [text.encode() for text in sent.texts]
        rows.append(
            Grown(
                name,
                size,
                sum(map(len, items)) / len(items) / 1000,
                clients,
                rate[name, size, clients],
                median(latency for _, latency in each),
                rate[name, size, clients] / rate[name, BASIS[name], clients],
            )
        )
    return rows


def table(rows: Sequence[Grown]) -> list[str]:
    """As Markdown: a line for each size."""
    by = {(row.target, row.size, row.clients): row for row in rows}
    lines = []
    for target, size in dict.fromkeys((row.target, row.size) for row in rows):
        one, many = (by[target, size, clients] for clients in CLIENTS)
        what = f"picture of {size}x{size * 3 // 4}" if target == "embed_image" else f"text of {size} tokens"
        kilobytes = f"{one.kilobytes:,.0f}" if target == "embed_image" else f"{one.kilobytes:.2f}"
        lines.append((what, kilobytes, f"{one.p50_ms:.1f}", f"{many.per_second:.1f}", f"{many.relative:.2f}"))
    return markdown(("", "kB", "1 client, ms", "16 clients, a second", "relative"), lines)


def draw(rows: Sequence[Grown], file: Path) -> None:
    """Throughput of sixteen clients and latency of one, over size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    labels = {"embed_image": "width of a JPEG picture, pixels", "embed_text": "tokens of a text"}
    for column, (target, label) in enumerate(labels.items()):
        axes = figure.add_subplot(1, 2, column + 1)
        axes.set_title(target, fontsize=10, loc="left")
        other = axes.twinx()
        many = [row for row in rows if (row.target, row.clients) == (target, CLIENTS[1])]
        one = [row for row in rows if (row.target, row.clients) == (target, CLIENTS[0])]
        axes.plot([row.size for row in many], [row.per_second for row in many], "o-", color="#0072B2")
        other.plot([row.size for row in one], [row.p50_ms for row in one], "s--", color="#D55E00")
        axes.set_xscale("log", base=2)
        axes.set_xticks([row.size for row in many], [str(row.size) for row in many])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        other.set_ylim(bottom=0)
        axes.set_xlabel(label, fontsize=9)
        axes.set_ylabel("16 clients: a second", fontsize=9, color="#0072B2")
        other.set_ylabel("1 client: p50, ms", fontsize=9, color="#D55E00")
        for side in (axes, other):
            side.spines["top"].set_visible(False)
            side.tick_params(labelsize=8)
    figure.savefig(file)


if __name__ == "__main__":
    main()
