"""GIT-base's captions: the graph in each engine against transformers' generate, and where its time goes.

    python -m benchmarks.captioner docs/captioner.json [--graphs FOLDER]

The same random weights, which never end a caption, and the same pictures for all. Engines run in processes of
their own, as the server's do, in turns with transformers; what is compared are the ratios of neighbouring
runs. Written into docs/, the tables of docs/performance.md are made anew. FOLDER keeps weights and graphs.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import transformers
from safetensors import safe_open
from tritonclient.grpc.model_config_pb2 import ModelConfig

from benchmarks.captioner_parts import profile, up_to, vision_output, with_most
from benchmarks.pages import DOCS, fill, markdown
from tercet.server.engines.choice import ENGINES, ONNXRUNTIME
from tercet.server.engines.networks import describe_processor, installed_version
from tercet.server.engines.trials import TrialFailed, Worker, read_arrays
from tercet.server.runtime import processors
from tercet_export.export import export_network
from tercet_export.networks.captioner import CLIP_MEAN, CLIP_STD
from tercet_export.networks.git import GIT_BASE
from tercet_export.registry import Options, network

EXACT, BF16 = "openvino-f32", "openvino-bf16"
FP32_PEER, BF16_PEER = "transformers-fp32", "transformers-bf16"
# What is compared: name, beams, batch, rounds. The long ones have fewer rounds and leave OpenVINO's f32 out.
CASES = (
    ("greedy", 1, 1, 5),
    ("greedy", 1, 8, 5),
    ("greedy", 1, 32, 2),
    ("4 beams", 4, 2, 2),
)
TOKENS, LENGTHS, ROUNDS = 20, (0, 20, 40), 5
BATCH, MORE, ROWS = 8, 16, 32
PARTS = (ONNXRUNTIME, BF16)  # the engines that are taken apart
ONCE = {"vision": "vision encoder", "once": "all that is done once"}

Turn = Callable[[], float]


def main() -> None:
    """Measure everything, write the report and the page's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--graphs", type=Path, help="where weights and exported graphs are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(processors())
    with tempfile.TemporaryDirectory() as name:
        folder, graphs = Path(name), arguments.graphs or Path(name)
        checkpoint = random_weights(graphs)
        pictures = np.random.default_rng(0).integers(0, 256, (ROWS, 224, 224, 3), dtype=np.uint8)
        np.savez(folder / "pictures.npz", foreground=pictures)
        report: dict[str, Any] = {
            "network": "git-base",
            "tokens": TOKENS,
            "processor": describe_processor()[0],
            "threads": processors(),
            "versions": {
                name: installed_version(name) for name in ("onnxruntime", "openvino", "torch", "transformers")
            },
            "load_average": round(os.getloadavg()[0], 1),
        }
        with workers(ENGINES) as engines:
            report["cases"] = compare(engines, checkpoint, graphs, folder, pictures)
            report["parts"] = take_apart(engines, checkpoint, graphs, folder)
        report["profile"] = profile(exported(graphs, checkpoint, 1, TOKENS), folder, pictures[:BATCH])
    report["ratios"] = as_ratios(report)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.output.resolve().parent == DOCS:
        fill(DOCS / "performance.md", "captioner", tables(report))


@contextmanager
def workers(names: Sequence[str] | Any) -> Iterator[dict[str, Worker]]:
    """A process for each engine, ended afterwards."""
    made = {name: Worker(name) for name in names}
    try:
        yield made
    finally:
        for worker in made.values():
            worker.stop()


def random_weights(folder: Path) -> Path:
    """The hub's folder of a GIT-base whose captions never end; returns the checkpoint."""
    place = folder / "git"
    if not (place / "model.safetensors").exists():
        torch.manual_seed(0)
        made = transformers.GitForCausalLM(transformers.GitConfig())
        made.output.bias.data[GIT_BASE.end] = -1e4
        made.save_pretrained(place)
    return place / "model.safetensors"


def exported(folder: Path, checkpoint: Path, beams: int, tokens: int) -> Path:
    """The graph of this search."""
    graph = folder / f"git-{beams}-{tokens}.onnx"
    if not graph.exists():
        export_network(network("git-base"), checkpoint, graph, Options(beams=beams, max_tokens=tokens))
    return graph


def compare(
    engines: dict[str, Worker], checkpoint: Path, graphs: Path, folder: Path, pictures: np.ndarray
) -> list[dict[str, Any]]:
    """All systems on all cases."""
    theirs = transformers.GitForCausalLM.from_pretrained(checkpoint.parent).eval()
    peers = {FP32_PEER: theirs}
    peers[BF16_PEER] = (
        transformers.GitForCausalLM.from_pretrained(checkpoint.parent).to(torch.bfloat16).eval()
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    pixels = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std
    found: dict[str, np.ndarray] = {}

    def generate(name: str, batch: int, beams: int) -> float:
        model = peers[name]
        started = time.perf_counter()
        with torch.inference_mode():
            ids = model.generate(
                pixel_values=pixels[:batch].to(model.dtype),
                max_new_tokens=TOKENS,
                num_beams=beams,
                do_sample=False,
            )
        seconds = time.perf_counter() - started
        found[name] = ids[:, 1:].numpy()
        return seconds

    def ours(name: str, batch: int) -> float:
        saved = folder / f"{name}.npz"
        seconds = engines[name].run(folder / "pictures.npz", [batch], saved).seconds
        found[name] = read_arrays(saved)["token_ids"]
        return seconds

    cases, opened = [], 0
    for case, beams, batch, rounds in CASES:
        names = [name for name in engines if rounds == ROUNDS or name in PARTS]
        if beams != opened:
            open_where_possible(engines, names, exported(graphs, checkpoint, beams, TOKENS))
            opened = beams
        names = [name for name in names if name in engines]
        turns: dict[str, Turn] = {name: partial(ours, name, batch) for name in names}
        turns |= {name: partial(generate, name, batch, beams) for name in peers}
        times = in_turns(turns, rounds, warm=rounds == ROUNDS)
        systems = {}
        for name, seconds in times.items():
            # With beams the rules are others: the graph's are Microsoft's.
            same = (found[name] == found[FP32_PEER]).all(axis=1).mean() if beams == 1 else None
            systems[name] = {
                "name": name,
                "seconds": round(statistics.median(seconds), 4),
                "per_second": round(batch / statistics.median(seconds), 3),
                **{f"over_{peer}": ratios(times[peer], seconds) for peer in peers},
                "same_captions": None if same is None else round(float(same), 3),
            }
        cases.append({"case": case, "beams": beams, "batch": batch, "rounds": rounds, "systems": systems})
        print(json.dumps(cases[-1]), flush=True)
    return cases


def open_where_possible(engines: dict[str, Worker], names: Sequence[str], graph: Path) -> None:
    """Open the graph in these engines; what cannot, as bf16 on some processors, is left out from then on."""
    for name in names:
        try:
            engines[name].open(graph, ModelConfig())
        except TrialFailed as error:
            print(f"{name} is left out: {error}", flush=True)
            engines.pop(name).stop()


def seconds_of(worker: Worker, inputs: Path, batch: int) -> float:
    """How long the open graph takes."""
    return worker.run(inputs, [batch]).seconds


def in_turns(turns: dict[str, Turn], rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each round, one system after the other; before them one that does not count."""
    if warm:
        for turn in turns.values():
            turn()
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            times[name].append(turn())
    return times


def ratios(slower: list[float], faster: list[float]) -> list[float]:
    """How many times as fast in neighbouring runs: median, least, most."""
    each = [a / b for a, b in zip(slower, faster, strict=True)]
    return [round(value, 3) for value in (statistics.median(each), min(each), max(each))]


def take_apart(
    engines: dict[str, Worker], checkpoint: Path, graphs: Path, folder: Path
) -> dict[str, dict[str, Any]]:
    """For each engine: the vision encoder alone, all that is done once, and captions of several lengths.

    The floor is the vision encoder's time and that of reading the decoder's weights once a token; the other
    one counts all that is done once for a picture, whose tokens pass through the decoder's layers, too.
    """
    model = onnx.load(exported(graphs, checkpoint, 1, max(LENGTHS)))
    limited, vision = folder / "limited.onnx", folder / "vision.onnx"
    onnx.save(up_to(model, vision_output(model)), vision)
    onnx.save(with_most(model), limited)
    del model
    pictures = folder / "pictures.npz"
    inputs = {length: folder / f"{length}.npz" for length in LENGTHS}
    for length, file in inputs.items():
        np.savez(file, **read_arrays(pictures), most=np.full((ROWS, 1), length))
    weights = torch.ones(decoder_weights(checkpoint))
    parts = {}
    with workers(PARTS) as seeing:
        for name in [name for name in PARTS if name in engines]:
            seeing[name].open(vision, ModelConfig())
            engines[name].open(limited, ModelConfig())
            read = weights[: len(weights) // 2] if name == BF16 else weights
            turns: dict[str, Turn] = {
                "vision": partial(seconds_of, seeing[name], pictures, BATCH),
                "weights": partial(reading, read),
            }
            turns |= {
                str(length): partial(seconds_of, engines[name], file, BATCH)
                for length, file in inputs.items()
            }
            times = in_turns(turns, ROUNDS)
            more = in_turns(
                {
                    length: partial(seconds_of, engines[name], inputs[int(length)], MORE)
                    for length in ("0", "20")
                },
                rounds=2,
            )
            token = (statistics.median(times["20"]) - statistics.median(times["0"])) / TOKENS
            token_of_more = (statistics.median(more["20"]) - statistics.median(more["0"])) / TOKENS
            floors = {
                once: [a + TOKENS * b for a, b in zip(times[key], times["weights"], strict=True)]
                for once, key in (("vision", "vision"), ("once", "0"))
            }
            parts[name] = {
                "batch": BATCH,
                "rounds": ROUNDS,
                "seconds": {part: round(statistics.median(values), 4) for part, values in times.items()},
                "token_ms": round(1000 * token, 2),
                "token_ms_of_a_row_more": round(1000 * (token_of_more - token) / (MORE - BATCH), 3),
                **{f"over_{once}_and_weights": ratios(times["20"], floor) for once, floor in floors.items()},
            }
            print(name, json.dumps(parts[name]), flush=True)
    return parts


def reading(numbers: torch.Tensor) -> float:
    """How long all threads take to read so much memory."""
    started = time.perf_counter()
    numbers.sum()
    return time.perf_counter() - started


def decoder_weights(checkpoint: Path) -> int:
    """How many weights every token reads: the decoder's layers and the vocabulary's matrix."""
    with safe_open(checkpoint, "pt") as tensors:
        names = [name for name in tensors.keys() if name.startswith(("git.encoder.", "output."))]  # noqa: SIM118
        return sum(tensors.get_tensor(name).numel() for name in names)


def as_ratios(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What `benchmarks.ratios` compares: pictures a second by transformers', and time by the floor."""
    found = []
    bars = {FP32_PEER: 3.0, BF16_PEER: 1.2}
    for case in report["cases"]:
        for name, system in case["systems"].items():
            for peer in [FP32_PEER] if name in (ONNXRUNTIME, EXACT) else list(bars):
                # The bar holds for what is exact too: bf16 is served only where it passes the gate.
                barred = name in (EXACT, BF16) and (case["case"], case["batch"]) == ("greedy", BATCH)
                bar = bars[peer] if barred else None
                title = f"captioner, {case['case']}, batch {case['batch']}: {name} by {peer}"
                if name not in bars:
                    found.append(as_ratio(title, system[f"over_{peer}"], bar, True))
    for name, part in report["parts"].items():
        for once, bar in (("vision", 1.3), ("once", None)):
            title = f"captioner, {name}: time by {ONCE[once]} and reading the weights once a token"
            found.append(as_ratio(title, part[f"over_{once}_and_weights"], bar, False))
    return found


def as_ratio(name: str, values: Sequence[float], bar: float | None, higher: bool) -> dict[str, Any]:
    """A `benchmarks.ratios.Ratio`."""
    median, least, largest = values
    limits = {"bar": bar, "higher_is_better": higher}
    return {"name": name, "median": median, "least": least, "largest": largest, **limits}


def tables(report: dict[str, Any]) -> list[str]:
    """The report as Markdown."""
    names = [*ENGINES, FP32_PEER, BF16_PEER]
    rows = []
    for case in report["cases"]:
        cells = [f"{case['case']}, {case['batch']}"]
        for system in map(case["systems"].get, names):
            cells.append("" if system is None else f"{system['per_second']:.2f}/s")
            if system is not None and system["name"] in ENGINES:
                over = (system[f"over_{peer}"] for peer in (FP32_PEER, BF16_PEER))
                times = (f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in over)
                cells[-1] += f"; {'; '.join(times)}"
        rows.append(cells)
    lines = [*markdown(["search, batch", *names], rows), ""]
    lengths = [str(length) for length in LENGTHS[1:]]
    heads = [ONCE["vision"], ONCE["once"], *(f"{length} tokens" for length in lengths), "weights", "share"]
    rows = []
    for name, part in report["parts"].items():
        seconds = part["seconds"]
        cells = [name, *(f"{seconds[key]:.3f}" for key in ("vision", "0", *lengths))]
        shares = (part[f"over_{once}_and_weights"][0] for once in ONCE)
        rows.append(
            [*cells, f"{TOKENS * seconds['weights']:.3f}", "; ".join(f"{value:.2f}" for value in shares)]
        )
    lines += [*markdown(["seconds", *heads], rows), ""]
    whole = sum(report["profile"].values())
    rows = [[what, f"{s:.3f}", f"{100 * s / whole:.1f}"] for what, s in report["profile"].items()]
    return lines + markdown(["ONNX Runtime", "seconds", "%"], rows)


if __name__ == "__main__":
    main()
