"""The benchmark for GPUs: on the processor with tiny networks, and its turns, rows and messages without."""

import dataclasses
import json
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks.gpu import device, engines, kernels, pipeline, plots
from benchmarks.gpu.__main__ import Results, main
from benchmarks.gpu.cases import CASES, TINY, load, tiny_cases, transformers_git
from benchmarks.gpu.measure import MatrixRate, Times, ratios, take_turns
from benchmarks.gpu.network import NO_MEMORY, Settings, explain, measure
from benchmarks.gpu.results import MEASURED, Row, Status, merge, read_status
from benchmarks.rows import read_rows, write_rows
from tercet.bench.values import Settings as LoadSettings
from tercet_export.registry import Loaded, network
from tercet_export.roles import ROLES

CHOSEN = (
    "onnxruntime",
    "onnxruntime-unfused",
    "onnxruntime-fixed",
    "onnxruntime-graphs",
    "transformers",
    "torch",
)


def settings(folder: Path, **changes) -> Settings:
    plain = Settings(
        device="cpu",
        engines=CHOSEN,
        batches=(1, 3),
        rounds=2,
        seconds=0.01,
        deadline=time.time() + 600,
        graphs=str(folder),
        tiny=True,
    )
    return dataclasses.replace(plain, **changes)


def row(name: str = "isnet", batch: int = 1, engine: str = "torch", **changes) -> Row:
    return dataclasses.replace(Row(name, batch, engine, MEASURED), **changes)


class Recorded:
    """A runner that notes its turns, and fails at the run that it is told to."""

    def __init__(self, name: str, log: list[str], fails_at: int = -1) -> None:
        self.name, self.log, self.fails_at, self.runs = name, log, fails_at, 0

    def prepare(self, inputs: Mapping[str, np.ndarray]) -> None:
        raise NotImplementedError

    def run(self) -> None:
        if self.runs == self.fails_at:
            raise RuntimeError("CUDA out of memory")
        self.runs += 1
        self.log.append(self.name)

    def outputs(self) -> dict[str, np.ndarray]:
        raise NotImplementedError


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.mark.parametrize(
    ("name", "baseline", "measured"),
    [
        ("tiny clip-image", "torch", {"onnxruntime", "onnxruntime-unfused", "torch"}),
        (
            "tiny git",
            "transformers",
            {"onnxruntime", "onnxruntime-unfused", "onnxruntime-fixed", "transformers", "torch"},
        ),
    ],
)
def test_every_engine_gives_what_fp32_gives_at_every_batch(
    name: str, baseline: str, measured: set[str], graphs: Path
) -> None:
    lines = list(measure(name, settings(graphs)))
    assert lines[-1] == {"complete": True}
    rows = [Row(**line["row"]) for line in lines[:-1]]
    assert all(row.network == name and row.versions and row.card for row in rows)
    found = [row for row in rows if row.status == MEASURED]
    assert {(row.batch, row.engine) for row in found} == {(b, e) for b in (1, 3) for e in measured}
    for row in found:
        assert row.verdict == "passes"
        assert (row.compared, row.rounds, row.beside) == (row.batch, 2, baseline)
        assert row.runs >= 6
        assert 0 < row.latency_ms <= row.p99_ms
        assert 0 < row.lowest <= row.ratio <= row.highest
        assert row.tflops == pytest.approx(row.per_second * row.gflop / 1e3)
        assert row.share > 0
        if row.engine == baseline:
            assert (row.lowest, row.ratio, row.highest) == (1, 1, 1)
    left_out = {row.engine: row.status for row in rows if row.status != MEASURED}
    assert left_out == ({"onnxruntime-graphs": "not run: needs an NVIDIA GPU"} if baseline == "torch" else {})


def test_an_engine_that_fails_is_a_row_that_says_so_and_the_others_go_on(
    graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(engines.TorchRunner):
        """Runs out of memory past one row, and answers something else before."""

        def prepare(self, inputs: Mapping[str, np.ndarray]) -> None:
            if len(inputs["pixels"]) > 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            super().prepare(inputs)

        def outputs(self) -> dict[str, np.ndarray]:
            return {name: -array for name, array in super().outputs().items()}

    monkeypatch.setitem(engines.ENGINES, "wrong", engines.Engine(Wrong))
    lines = list(measure("tiny clip-image", settings(graphs, engines=("wrong", "torch"), batches=(1, 2, 3))))
    rows = [Row(**line["row"]) for line in lines[:-1]]
    assert [(row.batch, row.engine, row.status) for row in rows] == [
        (1, "wrong", MEASURED),
        (1, "torch", MEASURED),
        (2, "wrong", NO_MEMORY),
        (2, "torch", MEASURED),
        (3, "torch", MEASURED),
    ]
    assert rows[0].verdict.startswith("embedding is too far from fp32: 1 - cosine 2")
    assert rows[1].verdict == "passes"


def test_no_batch_is_begun_after_the_deadline(graphs: Path) -> None:
    chosen = settings(graphs, engines=("torch",), deadline=time.time() - 1)
    assert list(measure("tiny clip-image", chosen)) == [{"note": "the time was up before batch 1"}]


def test_turns_alternate_and_one_that_fails_is_left_out() -> None:
    log: list[str] = []
    runners = {"a": Recorded("a", log), "b": Recorded("b", log, fails_at=6), "c": Recorded("c", log)}
    times, matrix = take_turns(runners, MatrixRate("cpu"), rounds=3, seconds=0.0)
    # One run that does not count and three that do; b fails in the second round.
    assert log == [*"aaaabbbbcccc", *"ccccbbaaaa", *"aaaacccc"]
    assert [len(runs) for runs in times["a"].rounds.values()] == [3, 3, 3]
    assert list(times["b"].rounds) == [0]
    assert times["b"].failure is not None
    assert explain(times["b"].failure) == NO_MEMORY
    assert set(matrix) == {0, 1, 2}
    assert min(matrix.values()) > 0


def test_ratios_are_of_the_same_round() -> None:
    assert ratios({0: 10.0, 1: 30.0, 2: 8.0}, {0: 5.0, 1: 10.0}) == (2.5, 2.0, 3.0)
    assert ratios({0: 1.0}, {}) == (0.0, 0.0, 0.0)
    times = Times({0: [0.1, 0.3], 1: [0.2]})
    assert times.rates(4) == {0: pytest.approx(20.0), 1: pytest.approx(20.0)}
    assert times.latency() == (pytest.approx(200.0), pytest.approx(298.0), 3)


def test_rows_are_read_as_written_and_a_network_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "gpu.csv"
    assert read_rows(Row, file) == []
    rows = [row("isnet", 1, per_second=2.5, verdict="passes"), row("isnet", 2), row("git-base", 4)]
    write_rows(file, rows)
    assert read_rows(Row, file) == rows
    merged = merge(rows, [row("isnet", 8)], list(CASES))
    assert [(one.network, one.batch) for one in merged] == [("git-base", 4), ("isnet", 8)]


def test_what_was_measured_on_this_card_with_these_versions_is_not_measured_again(tmp_path: Path) -> None:
    results = Results(tmp_path, "a card", "torch 1")
    assert not results.has("isnet")
    results.keep("isnet", [row("isnet", 1, per_second=1.0, latency_ms=1.0, p99_ms=2.0)], True, 3.0, "")
    results.keep("git-base", [row("git-base", 2, status=NO_MEMORY)], False, 3.0, "the time was up")
    again = Results(tmp_path, "a card", "torch 1")
    assert (again.has("isnet"), again.has("git-base"), again.has("pipeline")) == (True, False, False)
    assert [one.network for one in again.rows] == ["git-base", "isnet"]
    assert read_status(tmp_path / "gpu.json")["git-base"] == Status(
        False, 3.0, "a card", "torch 1", "the time was up"
    )
    assert not Results(tmp_path, "another card", "torch 1").has("isnet")
    assert not Results(tmp_path, "a card", "torch 2").has("isnet")
    assert (tmp_path / "gpu.png").stat().st_size > 1000


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    assert not plots.draw([row(status=NO_MEMORY)], tmp_path / "gpu.png")
    assert not (tmp_path / "gpu.png").exists()


def test_the_command_keeps_a_part_and_goes_on_where_it_ended(
    tmp_path: Path, graphs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: str) -> str:
        always = ["--device", "cpu", "--tiny", "--quick", "--no-pipeline", "--engines", "torch"]
        monkeypatch.setattr(
            sys, "argv", ["gpu", str(tmp_path), *always, "--cache", str(graphs.parent), *arguments]
        )
        main()
        return capsys.readouterr().out

    assert "left to measure: nothing" in call("--networks", TINY[0])
    rows = read_rows(Row, tmp_path / "gpu.csv")
    assert [(one.network, one.batch, one.status) for one in rows] == [
        (TINY[0], 1, MEASURED),
        (TINY[0], 8, MEASURED),
    ]
    assert read_status(tmp_path / "gpu.json")[TINY[0]].complete
    told = call("--networks", TINY[0], TINY[1], "--minutes", "0")
    assert told.startswith(
        f"{TINY[1]}: no time is left in this call; call again\nleft to measure: {TINY[1]};"
    )
    assert read_rows(Row, tmp_path / "gpu.csv") == rows


def test_without_a_gpu_it_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(device.NoDevice, match=r"needs a card, its driver .* --device cpu --tiny"):
        device.check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        device.NoDevice, match=r"no CUDA provider: onnxruntime-gpu must be installed in its place"
    ):
        device.check_device("cuda")
    device.check_device("cpu")


def test_kernels_are_summed_up_beside_the_run_and_the_longest_are_shown() -> None:
    of = [kernels.Kernel("clip", "torch", 8, f"kernel {n}", n, 0.5 / n, 4.0) for n in range(1, 20)]
    title, *shown = kernels.describe(of, most=3).splitlines()
    assert title == "clip, torch, batch 8: 4.000 ms a run, 1.774 ms of kernels, 190 starts"
    assert [line.split(" x ")[1] for line in shown] == ["kernel 1", "kernel 2", "kernel 3"]


def test_kernels_without_a_gpu_say_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["kernels", str(tmp_path / "kernels.csv")])
    with pytest.raises(SystemExit, match="there is no NVIDIA GPU"):
        kernels.main()


def test_a_pipeline_without_networks_is_kept(tmp_path: Path) -> None:
    Results(tmp_path, "card", "versions").keep("pipeline", [], True, 1.0, "")
    assert Results(tmp_path, "card", "versions").has("pipeline")


def test_the_pipeline_is_measured_as_tercet_bench_does(tiny_repository: Path, tmp_path: Path) -> None:
    assert pipeline.missing() is None
    quick = LoadSettings(warm_up=0.1, window=0.1, least=3, windows=3)
    load_on = pipeline.Load(("embed_text", "query"), (1, 2), quick, time.time() + 600)
    points, complete = pipeline.measure(tmp_path, tiny_repository, "cpu", load_on)
    assert complete
    assert [(point.target, point.load) for point in points] == [
        ("embed_text", 1), ("embed_text", 2), ("query", 1), ("query", 2),
    ]  # fmt: skip
    assert all(point.throughput > 0 and not point.failures for point in points)
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert len(kept["points"]) == 4
    assert kept["server"]["variant"] is None


def test_the_lineup_of_the_pipeline_is_fp16_throughout(tmp_path: Path) -> None:
    sections = tomllib.loads("\n".join(pipeline.lines()))
    assert sections.pop("name") == "gpu"
    assert {network(section["network"]).role for section in sections.values()} == sections.keys()
    assert {section["precision"] for section in sections.values()} == {"fp16"}


@pytest.fixture
def captioner(tmp_path: Path) -> Loaded:
    return load(tiny_cases(tmp_path)["tiny git"], tmp_path)


def test_transformers_git_has_our_weights_and_captions_never_end(captioner: Loaded) -> None:
    graph = captioner.graph
    pictures = torch.from_numpy(ROLES["captioner"].example_inputs(captioner.sizes, {}, 3)["foreground"])
    pixels = (pictures.permute(0, 3, 1, 2) / 255 - graph.mean) / graph.std
    with torch.no_grad():
        ids, _ = graph(pictures)
        theirs = transformers_git(graph).generate(
            pixel_values=pixels, max_new_tokens=ids.shape[1], do_sample=False, pad_token_id=graph.options.end
        )
    assert torch.equal(theirs[:, 1:], ids)
    assert (ids != graph.options.end).all()


def test_tensorrts_profiles_name_every_input_of_the_graph(captioner: Loaded) -> None:
    subject = engines.Subject("captioner", captioner, Path("folder/graph.onnx"), Path("unfused.onnx"), "cuda")
    options = engines.tensorrt_options(subject)
    assert options["trt_profile_min_shapes"] == "foreground:1x64x64x3"
    assert options["trt_profile_max_shapes"] == "foreground:64x64x64x3"


def test_a_gpus_session_is_what_is_served_but_for_what_the_engine_changes(
    captioner: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = engines.Subject("captioner", captioner, Path("graph.onnx"), Path("unfused.onnx"), "cuda")
    (name, options), _ = engines.OnnxRuntimeRunner(subject).providers
    assert name == "CUDAExecutionProvider"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    (_, changed), _ = engines.OnnxRuntimeRunner(subject, cuda={"enable_cuda_graph": "1"}).providers
    assert changed == {**options, "enable_cuda_graph": "1"}
    names = [
        name for name, _ in engines.OnnxRuntimeRunner(subject, tensorrt=engines.tensorrt_options).providers
    ]
    assert names == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
