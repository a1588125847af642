"""Engines: the gate, the choice, what is remembered, and what a server is made of where one was chosen."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig
from typer.testing import CliRunner

from tercet.cli import app
from tercet.client import Client
from tercet.errors import ServerStartError
from tercet.server import EmbeddedServer
from tercet.server.engines import networks as networks_module
from tercet.server.engines.choice import ENGINES, ONNXRUNTIME, Trial, choose
from tercet.server.engines.examples import ROWS, make_examples
from tercet.server.engines.gate import measure_distances, refusal
from tercet.server.engines.networks import (
    choose_engines,
    find_networks,
    measure_engines,
    read_manifest,
    read_record,
)
from tercet.server.engines.trials import Laboratory, TrialFailed, Worker, accelerated, timed_batches
from tercet.server.overlay import lay_out_repository
from tests.serving.graphs import CPU, NETWORK, network, write_model


def trial(engine: str, milliseconds: float | None = None, refused: str | None = None) -> Trial:
    """One that took so long a row, beside ten milliseconds of ONNX Runtime."""
    seconds = None if milliseconds is None else milliseconds / 1e3
    return Trial(engine, seconds, None if seconds is None else 0.01, {}, refused)


ORT = Trial(ONNXRUNTIME)


@pytest.mark.parametrize(
    ("trials", "wanted", "chosen"),
    [
        ([ORT], "auto", ONNXRUNTIME),
        ([ORT, trial("openvino-f32", 8), trial("openvino-bf16", 3)], "auto", "openvino-bf16"),
        ([trial("openvino-bf16", 3), trial("openvino-f32", 8), ORT], "auto", "openvino-bf16"),
        # A less exact engine must be a tenth faster than a more exact one.
        ([ORT, trial("openvino-f32", 5), trial("openvino-bf16", 4.7)], "auto", "openvino-f32"),
        ([ORT, trial("openvino-f32", 9.5), trial("openvino-bf16", 9.2)], "auto", ONNXRUNTIME),
        ([ORT, trial("openvino-f32", 30), trial("openvino-bf16", 20)], "auto", ONNXRUNTIME),
        ([ORT, trial("openvino-f32", 5), trial("openvino-bf16", 1, "too far")], "auto", "openvino-f32"),
        ([ORT, trial("openvino-f32", refused="fails"), trial("openvino-bf16", 5)], "auto", "openvino-bf16"),
        ([ORT, trial("openvino-bf16", 5), trial("openvino-int8", 4)], "auto", "openvino-int8"),
        ([ORT, trial("openvino-int8", 4.7), trial("openvino-bf16", 5)], "auto", "openvino-bf16"),
        ([ORT, trial("openvino-f32", 30), trial("openvino-bf16", 20)], "openvino", "openvino-bf16"),
        ([ORT, trial("openvino-f32", 30), trial("openvino-bf16", 29)], "openvino", "openvino-f32"),
        ([ORT, trial("openvino-f32", 30, "x"), trial("openvino-bf16", 29, "y")], "openvino", None),
    ],
)
def test_the_fastest_that_passes_is_chosen(trials: list[Trial], wanted: str, chosen: str | None) -> None:
    found = choose(trials, wanted)
    assert (found and found.engine) == chosen


def test_what_saves_next_to_nothing_is_not_chosen() -> None:
    fast = Trial("openvino-bf16", 1e-5, 1e-4)
    assert fast.speedup == pytest.approx(10)
    assert choose([ORT, fast]) is ORT
    assert choose([ORT, Trial("openvino-bf16", 1e-5, 2e-4)]) is not ORT


def test_the_gate_measures_each_kind_of_output() -> None:
    random = np.random.default_rng(0)
    expected = {
        "embedding": random.standard_normal((8, 16)).astype(np.float32),
        "mask": random.random((8, 5, 5)).astype(np.float32),
        "foreground": random.integers(0, 200, (8, 5, 5, 3)).astype(np.uint8),
        "token_ids": random.integers(0, 9, (8, 7)),
        "score": random.standard_normal((8, 1)).astype(np.float32),
    }
    found = {name: array.copy() for name, array in expected.items()}
    distances = measure_distances(expected, found)
    assert distances == pytest.approx(dict.fromkeys(expected, 0.0), abs=1e-12)
    assert refusal(expected, distances) is None

    angle = np.array([[1.0, 0.0]], np.float32), np.array([[0.8, 0.6]], np.float32)
    assert measure_distances({"e": angle[0]}, {"e": angle[1]})["e"] == pytest.approx(0.2)
    found["embedding"][3] *= 7  # the length of an embedding is no direction
    found["mask"] += 0.002
    found["foreground"] += 1
    found["token_ids"][2, 0] += 1
    found["score"][2] += 5  # of another caption
    found["score"][4] += 0.01
    distances = measure_distances(expected, found)
    assert distances["embedding"] == pytest.approx(0, abs=1e-6)
    assert distances["mask"] == pytest.approx(0.002, rel=1e-3)
    assert distances["foreground"] == pytest.approx(1 / 255)
    assert distances["token_ids"] == 1 / 8
    assert distances["score"] == pytest.approx(0.01, rel=1e-3)
    assert "token_ids is too far from fp32: share of other rows 0.12" in str(refusal(expected, distances))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("embedding", lambda a: np.where(np.arange(len(a))[:, None] == 5, -a, a)),
        ("embedding", lambda a: np.full_like(a, np.nan)),
        ("embedding", lambda a: a[:, :-1]),
        ("embedding", lambda a: a.astype(np.float64)),
        ("mask", lambda a: a + np.float32(0.006)),
        ("score", lambda a: a + np.float32(0.06)),
        ("token_ids", lambda a: a + 1),
        ("token_ids", lambda a: a[:, :-1]),
    ],
)
def test_the_gate_refuses(name: str, spoil: Any) -> None:
    random = np.random.default_rng(0)
    expected = {
        "embedding": random.standard_normal((8, 16)).astype(np.float32),
        "mask": random.random((8, 5, 5)).astype(np.float32),
        "token_ids": random.integers(0, 9, (8, 7)),
        "score": random.standard_normal((8, 1)).astype(np.float32),
    }
    found = {**expected, name: spoil(expected[name])}
    assert str(refusal(expected, measure_distances(expected, found))).startswith(f"{name} is too far")


@pytest.fixture
def repository(tiny_repository: Path, tmp_path: Path) -> Path:
    """A copy of the tiny lineup's repository that nothing was measured in."""
    copy = tmp_path / "model repository"
    shutil.copytree(tiny_repository, copy, ignore=shutil.ignore_patterns("engine.json"))
    return copy


def test_examples_are_what_the_networks_take(repository: Path) -> None:
    manifest = read_manifest(repository)
    worker = Worker(ONNXRUNTIME)
    try:
        for name, found in find_networks(repository, ROWS).items():
            inputs = worker.open(found.file, found.configuration)
            made = make_examples(name, inputs, manifest)
            assert made.keys() == inputs.keys()
            for key, array in made.items():
                dims = inputs[key][1]
                assert len(array) == sum(ROWS[name])
                assert array.shape[1:] == tuple(
                    size if wanted < 0 else wanted
                    for size, wanted in zip(array.shape[1:], dims[1:], strict=True)
                )
            rows = [
                b"".join(array[row].tobytes() for array in made.values()) for row in range(sum(ROWS[name]))
            ]
            assert len(set(rows)) == len(rows)
            assert sum(timed_batches(name)) <= 8
    finally:
        worker.stop()


def test_networks_whose_engine_is_ours_to_choose(repository: Path) -> None:
    everything = sorted(folder.name for folder in repository.iterdir())
    assert find_networks(repository, everything).keys() == ROWS.keys()
    # The variant for GPUs; image_to_token has none.
    assert find_networks(repository, everything, "gpu").keys() == {"image_to_token"}
    variant = repository / "clip_text" / "configs" / "small.pbtxt"
    variant.write_text('backend: "onnxruntime" max_batch_size: 3 instance_group { kind: KIND_CPU }')
    assert find_networks(repository, everything, "small")["clip_text"].configuration.max_batch_size == 3
    config = repository / "clip_text" / "config.pbtxt"
    config.write_text(
        config.read_text() + "optimization { execution_accelerators { cpu_execution_accelerator "
        '{ name: "openvino" } } }'
    )
    assert "clip_text" not in find_networks(repository, everything)
    shutil.rmtree(repository / "describe_lineup")
    assert find_networks(repository, everything) == {}


class Tried:
    """Stands in for the trials: what they find, and how often they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *trials: Trial) -> None:
        self.trials, self.asked = list(trials), 0
        monkeypatch.setattr(Laboratory, "try_engines", self.try_engines)

    def try_engines(self, *_: Any) -> list[Trial]:
        self.asked += 1
        return self.trials


def test_what_was_measured_is_remembered_for_just_this(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = Tried(monkeypatch, ORT, Trial("openvino-bf16", 0.001, 0.01, {"embedding": 1e-5}))
    told: list[str] = []

    def measured() -> int:
        before = tried.asked
        found = find_networks(repository, ["clip_text"])
        chosen = choose_engines(repository, found, "auto", told.append)
        assert chosen == {"clip_text": tried.trials[1]}
        return tried.asked - before

    assert measured() == 1
    assert told == ["trying engines for clip_text (once for this processor)"]
    assert measured() == 0
    found = find_networks(repository, ["clip_text"])
    record = found["clip_text"].record
    assert record.parent == repository / "clip_text" / "1"
    measure_engines(repository, found, told.append, again=True)
    assert tried.asked == 2

    for damage in ("", "{", "[]", "{}", json.dumps({"key": found["clip_text"].key()})):
        record.write_text(damage)
        assert measured() == 1, damage
    # Anything that it holds for is another.
    graph = repository / "clip_text" / "1" / "model.onnx"
    os.utime(graph, (1, 1))
    assert measured() == 1
    config = repository / "clip_text" / "config.pbtxt"
    config.write_text(config.read_text() + 'parameters { key: "a" value { string_value: "b" } }')
    assert measured() == 1
    monkeypatch.setenv("TERCET_THREADS", "7")
    assert measured() == 1
    monkeypatch.setattr(networks_module, "describe_processor", lambda: ["another"])
    assert measured() == 1
    monkeypatch.setattr(networks_module, "installed_version", lambda package: "1.2.3")
    assert measured() == 1
    assert measured() == 0


def test_trials_that_are_not_finite_are_remembered_too(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Trial("openvino-f32", 0.1, 0.1, {"mask": float("inf")}, "mask is too far")
    tried = Tried(monkeypatch, ORT, far)
    found = find_networks(repository, ["captioner"])
    measure_engines(repository, found, lambda line: None)
    assert read_record(found["captioner"]) == tried.trials


def test_a_record_that_cannot_be_written_is_told_of(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tried(monkeypatch, ORT)
    found = find_networks(repository, ["clip_text"])

    def fail(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(networks_module, "write_record", fail)
    told: list[str] = []
    assert choose_engines(repository, found, "auto", told.append) == {"clip_text": ORT}
    assert "could not be kept" in told[-1]


def test_only_auto_and_openvino_try_anything(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Tried(monkeypatch, ORT, trial("openvino-f32", 1, "wrong"), trial("openvino-bf16", 1, "worse"))
    found = find_networks(repository, ["clip_text", "clip_image"])
    for engine in ENGINES:
        chosen = choose_engines(repository, found, engine, pytest.fail)
        assert {name: trial.engine for name, trial in chosen.items()} == dict.fromkeys(found, engine)
    assert tried.asked == 0
    with pytest.raises(
        ServerStartError, match="clip_text cannot run on openvino: choose the engine auto"
    ) as e:
        choose_engines(repository, found, "openvino", lambda line: None)
    assert e.value.__notes__ == ["  openvino-f32: wrong", "  openvino-bf16: worse"]
    with pytest.raises(ServerStartError, match="no engine 'abacus': choose one of auto, openvino"):
        choose_engines(repository, found, "abacus", lambda line: None)

    monkeypatch.setattr(networks_module, "is_installed", lambda: False)
    tried.asked = 0
    chosen = choose_engines(repository, found, "auto", pytest.fail)
    assert {trial.engine for trial in chosen.values()} == {ONNXRUNTIME}
    assert tried.asked == 0
    for engine in ("openvino", "openvino-bf16"):
        with pytest.raises(ServerStartError, match=r"pip install \"tercet\[openvino\]\""):
            choose_engines(repository, found, engine, pytest.fail)


def test_a_network_that_onnxruntime_cannot_run_is_left_to_it(repository: Path) -> None:
    found = find_networks(repository, ["clip_text"])
    (repository / "clip_text" / "1" / "model.onnx").write_bytes(b"no graph")
    told: list[str] = []
    assert choose_engines(repository, found, "auto", told.append) == {"clip_text": ORT}
    assert told[1].startswith("no engines were tried for clip_text: ")
    assert not found["clip_text"].record.exists()


def test_an_engine_that_crashes_or_fails_is_refused(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_networks(repository, ["clip_text"])["clip_text"]
    opened = Worker.open

    def open_or_die(self: Worker, file: Path, configuration: ModelConfig) -> Any:
        inputs = opened(self, file, configuration)
        if self.engine == "openvino-f32":
            assert self._process is not None
            self._process.kill()
        if self.engine == "openvino-bf16":
            opened(self, tmp_path / "missing.onnx", configuration)
        return inputs

    monkeypatch.setattr(Worker, "open", open_or_die)
    with Laboratory(tmp_path) as room:
        trials = room.try_engines("clip_text", found.file, found.configuration, read_manifest(repository))
    reasons = {trial.engine: trial.refused for trial in trials}
    assert reasons[ONNXRUNTIME] is None
    assert reasons["openvino-f32"] == "its process ended with code -9"
    assert "missing.onnx" in str(reasons["openvino-bf16"])


def test_a_worker_starts_again_after_its_end(tmp_path: Path) -> None:
    file = write_model(tmp_path, "network", network())
    np.savez(tmp_path / "in.npz", x=np.ones((3, 64), np.float32))
    worker = Worker("openvino-f32")
    worker.close()
    try:
        assert worker.open(file, ModelConfig()) == {"x": ["TYPE_FP32", [-1, 64]]}
        assert worker.run(tmp_path / "in.npz", [1, 2], tmp_path / "out.npz").seconds > 0
        assert np.load(tmp_path / "out.npz")["y"].shape == (3, 64)
        worker.close()
        with pytest.raises(TrialFailed):
            worker.run(tmp_path / "in.npz", [1])
        assert worker._process is not None
        worker._process.kill()
        with pytest.raises(TrialFailed, match="ended with code -9"):
            worker.run(tmp_path / "in.npz", [1])
        worker.open(file, ModelConfig())
        assert min(worker.run(tmp_path / "in.npz", [3])) > 0
    finally:
        worker.stop()


def test_the_overlay_changes_configurations_and_nothing_else(tmp_path: Path) -> None:
    mine = tmp_path / "my models"
    write_model(mine, "network", network(), NETWORK + CPU)
    write_model(mine, "other", network(), NETWORK + CPU)
    (mine / "network" / "configs").mkdir()
    (mine / "network" / "configs" / "gpu.pbtxt").write_text('backend: "onnxruntime"')
    (mine / "network" / "labels.txt").write_text("labels")
    (mine / "describe_lineup" / "1").mkdir(parents=True)
    (mine / "describe_lineup" / "1" / "model.py").write_text("# code")
    (mine / "describe_lineup" / "1" / "lineup.json").write_text('{"name": "mine"}')
    (mine / "describe_lineup" / "config.pbtxt").write_text('backend: "python"')
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    config = text_format.Parse((mine / "network" / "config.pbtxt").read_text(), ModelConfig())
    folder = tmp_path / "served"
    lay_out_repository(
        folder, mine, {"network": accelerated(config, "openvino-bf16")}, {"network": "openvino-bf16"}
    )
    assert {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()} == before
    assert (folder / "other").is_symlink()
    assert sorted(path.name for path in (folder / "network").iterdir()) == ["1", "config.pbtxt", "labels.txt"]
    changed = text_format.Parse((folder / "network" / "config.pbtxt").read_text(), ModelConfig())
    (accelerator,) = changed.optimization.execution_accelerators.cpu_execution_accelerator
    assert accelerator.name == "openvino"
    assert dict(accelerator.parameters) == {"INFERENCE_PRECISION_HINT": "bf16"}
    changed.ClearField("optimization")
    assert changed == config
    manifest = json.loads((folder / "describe_lineup" / "1" / "lineup.json").read_text())
    assert manifest == {"name": "mine", "engines": {"network": "openvino-bf16"}}
    assert (folder / "describe_lineup" / "1" / "model.py").read_text() == "# code"


@pytest.fixture(scope="module")
def copied(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny lineup's repository, for what is measured to stay in."""
    copy = tmp_path_factory.mktemp("engines") / "repository"
    shutil.copytree(tiny_repository, copy, ignore=shutil.ignore_patterns("engine.json"))
    return copy


@pytest.fixture(scope="module")
def openvino(copied: Path) -> Iterator[EmbeddedServer]:
    """The tiny lineup on the fastest of OpenVINO's engines."""
    told: list[str] = []
    with EmbeddedServer(copied, engine="openvino", tell=told.append) as running:
        assert sum(line.startswith("trying engines for") for line in told) == len(ROWS)
        yield running


def test_a_lineup_on_openvino_answers_alike(openvino: EmbeddedServer, copied: Path, client: Client) -> None:
    engines = {name: trial.engine for name, trial in openvino.engines.items()}
    assert engines.keys() == ROWS.keys()
    assert set(engines.values()) <= ENGINES.keys() - {ONNXRUNTIME}
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (80, 64, 3), dtype=np.uint8)) for _ in range(9)]
    texts = ["a red circle", "a blue star on a beach", "grass"]
    with Client(openvino.grpc_address) as other:
        for mine, theirs in (
            (other.embed_images(pictures), client.embed_images(pictures)),
            (other.embed_texts(texts), client.embed_texts(texts)),
        ):
            assert ((mine * theirs).sum(axis=1) > 0.999).all()
        (mine, theirs) = other.caption(pictures[0]), client.caption(pictures[0])
        assert np.abs(mine.mask.astype(float) - theirs.mask).mean() < 0.005
        assert mine.text
        lineup = other.lineup()
        assert lineup.engines == engines
        assert lineup.encoder_fingerprint == client.lineup().encoder_fingerprint
        assert client.lineup().engines == {}
    with grpc.InferenceServerClient(openvino.grpc_address) as triton:
        config = triton.get_model_config("clip_image").config
        (accelerator,) = config.optimization.execution_accelerators.cpu_execution_accelerator
        hint = accelerator.parameters["INFERENCE_PRECISION_HINT"]
        assert (accelerator.name, f"openvino-{hint}") == ("openvino", engines["clip_image"])


def test_a_second_start_and_tune_measure_nothing(
    openvino: EmbeddedServer, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Laboratory, "try_engines", lambda *_: pytest.fail("measured again"))
    found = find_networks(copied, ROWS)
    assert choose_engines(copied, found, "openvino", pytest.fail) == openvino.engines
    automatic = choose_engines(copied, found, "auto", pytest.fail)
    printed = CliRunner().invoke(app, ["tune", "--repository", str(copied)], catch_exceptions=False).stdout
    lines = [line.split() for line in printed.splitlines()]
    assert len(lines) == 1 + len(ROWS) * len(ENGINES)
    assert {line[0]: line[1] for line in lines[1:] if line[-1] == "chosen"} == {
        name: trial.engine for name, trial in automatic.items()
    }
    # On numbers that are the same to the last bits every output is near enough.
    for network_of in found.values():
        exact = next(trial for trial in read_record(network_of) or [] if trial.engine == "openvino-f32")
        assert exact.refused is None
        assert max(exact.distances.values()) < 1e-3


def test_tune_says_what_it_lacks(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(repository / "describe_lineup")
    for arguments, message in (
        (
            ["tune", "--repository", str(repository)],
            "holds no network of a lineup whose engine can be chosen",
        ),
        (["serve", "--repository", str(repository), "--engine", "abacus"], "there is no engine 'abacus'"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, ServerStartError)
        assert message in str(result.exception)
    monkeypatch.setattr(networks_module, "is_installed", lambda: False)
    result = CliRunner().invoke(app, ["tune", "--repository", str(repository)])
    assert "there is no engine but onnxruntime" in str(result.exception)


def test_a_trial_shows_what_came_of_it() -> None:
    assert str(ORT) == "onnxruntime"
    assert str(trial("openvino-bf16", 4)) == "openvino-bf16, 2.5 times as fast as onnxruntime"
    assert str(replace(trial("openvino-bf16", 4), refused="too far")) == "openvino-bf16: too far"
    assert str(Trial("openvino-f32")) == "openvino-f32"


def test_engines_import_neither_torch_nor_openvino() -> None:
    code = "import sys, tercet.server; assert not {'torch', 'openvino', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
