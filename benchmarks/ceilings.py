"""What this machine can do at most: each step of an exported repository by itself, without a server.

    python -m benchmarks.ceilings model_repository ceilings.json [--step NAME ...] [--seconds 2]

Every network with the fastest engine of `ENGINES` that is installed and answers as ONNX Runtime does in fp32
(what `tercet tune` finds), at batches from 1 to 32 and every way to share out the processors among runs at
once; the decoder on encoded files; a search as the matrix product that it is at least. The best of each goes
into the file, which `tercet bench --ceilings` reads to show the share of it.
"""

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tercet.bench.ceilings import DECODER, SEARCH, Ceiling, write_ceilings
from tercet.bench.inputs import make_pictures, make_texts
from tercet.bench.processes import describe_machine
from tercet.server.engines import choice
from tercet.server.engines.networks import find_networks, is_installed, measure_engines
from tercet.server.runtime import BACKEND, processors

BATCHES = (1, 2, 4, 8, 16, 32)
LONGEST_RUN = 2.0
"""Seconds that one run may take before larger batches are left out."""
GALLERY = 10_000
SIDE = 2048
"""Of the matrices whose product tells the processors' rate."""

Feed: TypeAlias = dict[str, np.ndarray]
Run: TypeAlias = Callable[[Feed], Any]


@dataclass(frozen=True)
class Engine:
    """A way to run an ONNX graph in this process.

    `open(model, threads, at_once)` returns what runs a batch on `threads` threads, and may be called by
    `at_once` threads of ours at the same time. `package` is what must be installed.
    """

    package: str
    open: Callable[[Path, int, int], Run]


def open_onnxruntime(model: Path, threads: int, at_once: int) -> Run:
    """ONNX Runtime on the processors, as it comes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def openvino_backend() -> Any:
    """The part of the server's backend that runs OpenVINO."""
    if str(BACKEND) not in sys.path:
        sys.path.append(str(BACKEND))
    return importlib.import_module("backend_openvino")


def open_openvino(wanted: Mapping[str, str], model: Path, threads: int, at_once: int) -> Run:
    """OpenVINO as the server has it, a stream for each of those who call at once."""
    backend = openvino_backend()
    core = backend.import_openvino().Core()
    properties = {**wanted, "INFERENCE_NUM_THREADS": str(threads * at_once), "NUM_STREAMS": str(at_once)}
    compiled = core.compile_model(backend.read_graph(core, model, properties), "CPU", properties)
    own = threading.local()

    def run(feed: Feed) -> Any:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        return own.request.infer(feed, share_inputs=True)

    return run


# The server's own engines.
ENGINES = {
    name: Engine("onnxruntime", open_onnxruntime)
    if properties is None
    else Engine("openvino", partial(open_openvino, properties))
    for name, properties in choice.ENGINES.items()
}

# What each network reads, by name, of what `tensors` makes.
NETWORKS = {
    "background_remover": ("scene", "view", "view_box"),
    "captioner": ("foreground",),
    "clip_image": ("pixels",),
    "clip_text": ("token_ids", "pseudo_token", "pseudo_index"),
    "image_to_token": ("features",),
}

# What the ensembles have decoded: for embed_image and image_token, caption_foreground, caption_image.
DECODED = (("pixels",), ("scene", "view", "view_box"), ("view",))


def main() -> None:
    """Measure what is named, or everything; keep what the file holds of the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("repository", type=Path, help="an exported model repository")
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--step", nargs="*", default=[*NETWORKS, DECODER, SEARCH], metavar="NAME")
    parser.add_argument("--engine", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each setting")
    arguments = parser.parse_args()
    manifest = json.loads((arguments.repository / DECODER / "1" / "lineup.json").read_text())
    machine = describe_machine()
    rows = []
    for row in measure(arguments.repository, manifest, arguments.step, arguments.engine, arguments.seconds):
        rows.append(row)
        what = f"{row.step} {' '.join(row.outputs)}".strip()
        how = f"batch {row.batch}, {row.sessions} at once on {row.threads} threads"
        print(f"{what:40} {row.per_second:10.2f}/s  {row.engine}, {how}", flush=True)
    machine["matrix_product_tflops"] = matrix_products(arguments.engine, arguments.seconds)
    print(f"matrix product, TFLOP/s: {machine['matrix_product_tflops']}", flush=True)
    machine["load_average_at_end"] = describe_machine()["load_average"]
    write_ceilings(arguments.output, rows, machine, manifest["fingerprint"])


def measure(
    repository: Path, manifest: Mapping[str, Any], steps: list[str], engines: list[str], seconds: float
) -> Iterator[Ceiling]:
    """The best of each step that the repository has and that is wanted."""
    have = tensors(repository, manifest)
    for step, names in NETWORKS.items():
        model = repository / step / "1" / "model.onnx"
        if step in steps and model.exists() and all(name in have for name in names):
            feed = {name: have[name] for name in names}
            best = quickest(repository, step, engines)
            yield max(networks(step, model, feed, best, seconds), key=lambda row: row.per_second)
    if DECODER in steps:
        known = {"view_box", *geometries(repository, manifest)}
        for outputs in DECODED:
            if known.issuperset(outputs):
                yield decoding(repository, manifest, outputs, seconds)
    if SEARCH in steps and "clip_image" in manifest["roles"]:
        yield searching(manifest["roles"]["clip_image"]["embedding_dimension"], seconds)


def quickest(repository: Path, step: str, engines: list[str]) -> str:
    """The fastest of `engines` that answers as fp32 does, by the server's own trials.

    ONNX Runtime where it tried none: it chooses nothing where a configuration names an accelerator.
    """
    measured = measure_engines(repository, find_networks(repository, [step]), print) if is_installed() else {}
    trials = [trial for trial in measured.get(step, ()) if trial.refused is None and trial.engine in engines]
    return max(trials, key=lambda trial: trial.speedup, default=choice.Trial(choice.ONNXRUNTIME)).engine


def networks(step: str, model: Path, feed: Feed, engine: str, seconds: float) -> Iterator[Ceiling]:
    """One network with one engine at every setting worth trying."""
    for at_once in divisors(processors()):
        threads = processors() // at_once
        run = ENGINES[engine].open(model, threads, at_once)
        best = falling = 0.0
        for batch in BATCHES:
            rows = {key: repeated(values, batch) for key, values in feed.items()}
            started = time.perf_counter()
            run(rows)
            if time.perf_counter() - started > LONGEST_RUN and batch > 1:
                break
            rate = batch * calls_per_second(partial(run, rows), at_once, seconds)
            yield Ceiling(step, engine, rate, batch, at_once, threads)
            falling = falling + 1 if rate < best else 0
            best = max(best, rate)
            if falling == 2:
                break


def calls_per_second(call: Callable[[], Any], at_once: int, seconds: float) -> float:
    """How often `call` is done in a second by `at_once` threads that each do nothing else."""

    def work() -> float:
        started, done = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < seconds or not done:
            call()
            done += 1
        return done / elapsed

    call()
    with ThreadPoolExecutor(at_once) as pool:
        return sum(pool.map(lambda _: work(), range(at_once)))


def matrix_products(engines: list[str], seconds: float) -> dict[str, float]:
    """Floating-point operations a second of one large product, by OpenVINO's precision, in 10^12."""
    rates = {}
    for precision in ("f32", "bf16"):
        name = f"openvino-{precision}"
        if name not in engines or importlib.util.find_spec(ENGINES[name].package) is None:
            continue
        openvino = openvino_backend().import_openvino()
        from openvino import opset13

        numbers = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)
        given = opset13.parameter([SIDE, SIDE], np.float32, name="given")
        model = openvino.Model([opset13.matmul(given, opset13.constant(numbers), False, False)], [given])
        properties = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": processors()}
        request = openvino.Core().compile_model(model, "CPU", properties).create_infer_request()
        call = partial(request.infer, {"given": numbers}, share_inputs=True)
        rates[precision] = round(2 * SIDE**3 * calls_per_second(call, 1, seconds) / 1e12, 3)
    return rates


def decoding(
    repository: Path, manifest: Mapping[str, Any], outputs: tuple[str, ...], seconds: float
) -> Ceiling:
    """The decoder's own function on JPEGs of 640x480, in threads or in processes, whichever is faster."""
    row = Ceiling(DECODER, "threads", 0.0, 1, processors(), 1, outputs)
    decode = Decoder(repository, manifest, outputs)
    threaded = calls_per_second(decode, processors(), seconds)
    # Forked: the children have the code and the files already.
    with multiprocessing.get_context("fork").Pool(processors()) as pool:
        each = [pool.apply_async(_decode_for, (decode, seconds)) for _ in range(processors())]
        forked = sum(result.get() for result in each)
    best = "threads" if threaded > forked else "processes"
    return replace(row, engine=f"Pillow, {best}", per_second=max(threaded, forked))


@cache
def pictures() -> list[bytes]:
    """The files to decode, made once; a forked process has them, too."""
    return make_pictures()


class Decoder:
    """Decodes one of the pictures after another; can be handed to another process."""

    def __init__(self, repository: Path, manifest: Mapping[str, Any], outputs: tuple[str, ...]) -> None:
        self._given = repository, manifest, outputs
        self._files = pictures()
        self._next = 0
        self._prepare = python_model(repository, DECODER, "geometry").prepare
        self._geometries = geometries(repository, manifest)

    def __call__(self) -> None:
        """Decode the next picture."""
        self._next += 1
        self._prepare([self._files[self._next % len(self._files)]], self._given[2], self._geometries)

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoder, self._given


def _decode_for(decode: Callable[[], Any], seconds: float) -> float:
    return calls_per_second(decode, 1, seconds)


def searching(dimension: int, seconds: float) -> Ceiling:
    """The cosines of queries and 10,000 pictures: one matrix product."""
    random = np.random.default_rng(0)
    gallery = random.standard_normal((GALLERY, dimension), dtype=np.float32)
    rows = []
    for batch in BATCHES:
        queries = random.standard_normal((batch, dimension), dtype=np.float32)
        rate = batch * calls_per_second(partial(np.matmul, queries, gallery.T), 1, seconds / 2)
        rows.append(Ceiling(SEARCH, "NumPy", rate, batch, 1, processors(), size=GALLERY))
    return max(rows, key=lambda row: row.per_second)


def tensors(repository: Path, manifest: Mapping[str, Any]) -> Feed:
    """Inputs of all networks, 32 rows each, made of pictures and texts by the repository's own code."""
    known = geometries(repository, manifest)
    wanted = [*known, *(["view_box"] if "view" in known else [])]
    prepare = python_model(repository, DECODER, "geometry").prepare
    made: Feed = dict(prepare(pictures(), wanted, known))
    if "view" in made:
        made["foreground"] = made["view"]
    if (repository / "tokenize_text" / "1" / "tokenizer.json").exists():
        tokens = python_model(repository, "tokenize_text", "tokens")
        texts = [text.encode() for text in make_texts(count=max(BATCHES))]
        vocabulary = tokens.load_vocabulary(repository / "tokenize_text" / "1")
        made |= tokens.tokenize(texts, vocabulary, None)
    if width := manifest["roles"].get("image_to_token", {}).get("feature_width"):
        made["features"] = np.random.default_rng(0).standard_normal((max(BATCHES), width), dtype=np.float32)
    return made


def geometries(repository: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The geometry of each tensor that the lineup's networks want of a picture."""
    return python_model(repository, DECODER, "geometry").read_geometries(manifest)


def python_model(repository: Path, model: str, module: str) -> Any:
    """The module of that name in a Python model's folder, imported without Triton."""
    package = f"repository_{model}"
    if package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(repository / model / "1")]
    return importlib.import_module(f"{package}.{module}")


def repeated(values: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows; from the beginning again where there are fewer."""
    return np.take(values, np.arange(count) % len(values), axis=0)


def divisors(number: int) -> list[int]:
    """What divides `number`: the ways to share out processors."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


if __name__ == "__main__":
    main()
