"""GIT-base in ONNX Runtime against transformers' generate, the same weights and pictures, taken in turns.

    python benchmarks/captioner.py benchmarks/captioner.json

Random weights that never end a caption: every picture costs its full 20 tokens.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers

from tercet_export.export import export_network
from tercet_export.registry import Options, network

BATCH, TOKENS, ROUNDS, THREADS = 8, 20, 5, 2


def main() -> None:
    """Measure greedy search and 4 beams, and write seconds a picture and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    theirs = transformers.GitForCausalLM(transformers.GitConfig()).eval()
    theirs.output.bias.data[102] = -1e4
    pictures = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        for beams in (1, 4):
            options = Options(beams=beams, max_tokens=TOKENS)
            graph = Path(folder) / f"{beams}.onnx"
            loaded = export_network(
                network("git-base"), Path(folder) / "model.safetensors", graph, options
            ).loaded.graph
            pixels = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - loaded.mean) / loaded.std
            del loaded
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = THREADS
            session = onnxruntime.InferenceSession(graph, settings)

            def ours(session: onnxruntime.InferenceSession = session) -> np.ndarray:
                return session.run(["token_ids"], {"foreground": pictures})[0]

            def generate(beams: int = beams, pixels: torch.Tensor = pixels) -> np.ndarray:
                with torch.inference_mode():
                    ids = theirs.generate(
                        pixel_values=pixels, max_new_tokens=TOKENS, num_beams=beams, do_sample=False
                    )
                return ids[:, 1:].numpy()

            same = bool((ours() == generate()).all())
            seconds: dict[str, list[float]] = {"onnxruntime": [], "transformers": []}
            for _ in range(ROUNDS):
                for name, run in (("onnxruntime", ours), ("transformers", generate)):
                    started = time.perf_counter()
                    run()
                    seconds[name].append((time.perf_counter() - started) / BATCH)
            best = {name: min(times) for name, times in seconds.items()}
            ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
            results.append(
                {
                    "beams": beams,
                    "ids_equal": same,
                    "seconds_a_picture": {name: round(value, 3) for name, value in best.items()},
                    "speedup_median": round(statistics.median(ratios), 2),
                }
            )
    report = {
        "network": "git-base",
        "batch": BATCH,
        "tokens": TOKENS,
        "threads": THREADS,
        "rounds": ROUNDS,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {m.__name__: m.__version__ for m in (onnxruntime, torch, transformers)},
        "load_average": round(os.getloadavg()[0], 1),
        "results": results,
    }
    output.write_text(json.dumps(report, indent=2) + "\n")
    print(output.read_text())


if __name__ == "__main__":
    main()
