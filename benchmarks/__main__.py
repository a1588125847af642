"""Every measurement, one after another, and whether a ratio has become worse: `make bench`.

    python -m benchmarks [PART ...] [--output bench_output]

Networks are full-size with random weights: no download. What is exported or installed once (the peers'
environments, 12 GB, by pip) lies in ~/.cache/tercet/peers; with that there, everything takes 26 minutes
on two cores. Run it while nothing else does. `--output docs` keeps tables, plots and ratios, and fills
the pages; anything else is compared with what is kept.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.pages import CACHE, DOCS, ROOT, full_size_repository
from tercet.bench.processes import describe_machine

Arguments = Callable[[Path], list[str]]


def module(name: str, *arguments: str) -> Arguments:
    """`python -m benchmarks.NAME` with `{out}` in its arguments replaced by the output folder."""
    return lambda out: [
        sys.executable,
        "-m",
        f"benchmarks.{name}",
        *(argument.format(out=out) for argument in arguments),
    ]


def server_bench(models: str, loads: tuple[str, ...], windows: int, folder: str) -> Arguments:
    """`tercet bench` over the full-size repository, with the ceilings that were measured before."""
    return lambda out: [
        str(Path(sys.executable).with_name("tercet")),
        *("bench", "--repository", str(full_size_repository()), "--model", models, *loads),
        *("--warm-up", "1", "--windows", str(windows), "--output", str(out / folder)),
        *(("--ceilings", str(out / "ceilings.json")) if (out / "ceilings.json").exists() else ()),
    ]


def ceilings(out: Path) -> list[str]:
    """The ceilings of the full-size repository."""
    return module("ceilings", str(full_size_repository()), "{out}/ceilings.json", "--seconds", "0.3")(out)


PARTS: Mapping[str, tuple[str, Arguments]] = {
    "ceilings": ("what the engines do without a server", ceilings),
    "server": (
        "embedding: throughput and latency by load, where the time goes",
        server_bench(
            "embed_image,embed_text", ("--concurrency", "1,4,8,16,32", "--rate", "70%"), 4, "embedding"
        ),
    ),
    "shares": (
        "embedding beside the engines without a server",
        module("shares", "{out}/shares.csv", "--seconds", "3"),
    ),
    "query": (
        "the same of whole composed queries",
        server_bench("query", ("--concurrency", "1,8"), 3, "query"),
    ),
    "peers": (
        "beside other servers and a researcher's script",
        module(
            "peers",
            *("--peers", "infinity", "litserve", "bentoml"),
            *("--rounds", "5", "--seconds", "2", "--output", "{out}"),
        ),
    ),
    "captioner": (
        "GIT beside transformers' generate",
        module("captioner", "{out}/captioner.json", "--graphs", str(CACHE / "captioner")),
    ),
    "steps": ("what a query's steps cost besides computation", module("steps", "{out}/steps.csv")),
    "search": (
        "recall against latency up to a million vectors",
        module(
            "search",
            *("{out}/search.csv", "{out}/search.png", "--without", "hnsw", "ivf", "--threads", "2"),
            *("--folder", str(CACHE / "galleries")),
        ),
    ),
    "indexing": ("10,000 files into an index", module("indexing", "{out}/indexing.csv", "--seconds", "2")),
    "repeats": ("a reference asked again", module("repeats", "{out}/repeats.csv")),
    "growth": (
        "by size of pictures and length of texts",
        module("growth", "{out}/growth.csv", "{out}/growth.png", "--rounds", "1", "--seconds", "1.5"),
    ),
}
LONGER: Mapping[str, tuple[str, Arguments]] = {
    "engines": ("which engine is fastest for which network", module("engines", "{out}/engines.csv")),
    "tuning": ("instances, threads, batches, delays", module("tuning", "{out}/tuning.csv")),
}
"""Only where they are named: what they tell holds for a kind of machine."""


def main() -> int:
    """Run the parts; 1 where one failed or a ratio has become worse."""
    known = {**PARTS, **LONGER}
    told = "\n".join(
        f"  {name:10} {what}{' (only if named)' if name in LONGER else ''}"
        for name, (what, _) in known.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\n{told}",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="all but the longer ones if none is named")
    parser.add_argument("--output", type=Path, default=ROOT / "bench_output")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - known.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose among {', '.join(known)}")
    out = arguments.output.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if (load := describe_machine()["load_average"]) > 0.7:
        print(f"The load average is {load:.1f}: numbers are worth more on a machine that does nothing else.")
    print("Full-size networks: exported where they are missing, which takes a few minutes once.", flush=True)
    full_size_repository()
    failed = []
    began = time.monotonic()
    for name in arguments.parts or PARTS:
        what, command = known[name]
        started = time.monotonic()
        print(f"\n== {name}: {what}", flush=True)
        if subprocess.run(command(out), cwd=ROOT, check=False).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - started:.0f} s", flush=True)
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes; tables and plots are in {out}\n", flush=True)
    keep = ["--keep"] if out == DOCS else []
    check = [sys.executable, "-m", "benchmarks.ratios", str(out), *keep]
    worse = subprocess.run(check, cwd=ROOT, check=False).returncode
    if failed:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed or worse else 0


if __name__ == "__main__":
    sys.exit(main())
