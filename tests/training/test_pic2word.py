"""Pic2Word's training: it learns, is exact when interrupted or shared out, and writes what others read."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tercet.errors import CheckpointError, InputError, LineupError
from tercet_export import checkpoints
from tercet_export.lineup import check_consistent
from tercet_export.networks.clip import build, find_architecture
from tercet_export.registry import Options, network
from tercet_training.pic2word.batches import Crops, Plan
from tercet_training.pic2word.frozen import FrozenCLIP, contrast, load_clip
from tercet_training.pic2word.recipe import Recipe, adam_defaults
from tercet_training.pic2word.saving import LATEST, save_for_a_lineup
from tercet_training.pic2word.sources import open_source
from tercet_training.pic2word.train import Habits, read_metrics, train
from tercet_training.pic2word.world import World
from tests.export import parity
from tests.tiny_pic2word import write_clip, write_pictures
from tests.training import pic2word_ranks

RECIPE = Recipe(epochs=4, batch=10, learning_rate=3e-3, middle=16, held_out=4, seed=3)  # 5 steps an epoch
STEPS = 20

Report = Callable[[str, int, int, str], None]


def ignore(task: str, done: int, total: int, note: str) -> None:
    """A report for nobody."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP and 56 pictures, two of which cannot be read."""
    folder = tmp_path_factory.mktemp("pic2word")
    write_clip(folder)
    paths = write_pictures(folder / "pictures", 56)
    paths[7].write_bytes(paths[7].read_bytes()[:90])
    paths[30].write_bytes(b"")
    return folder


def tiny_clip(place: Path) -> FrozenCLIP:
    return load_clip(place / "clip.safetensors", str(place / "clip.json"), str(place / "merges.txt"))


def run(place: Path, recipe: Recipe = RECIPE, habits: Habits | None = None, report: Report = ignore) -> Any:
    return train(tiny_clip(place), open_source(str(place / "pictures")), recipe, report, World(), habits)


def same(one: Any, other: Any) -> bool:
    """Equality to the bit of nested containers of tensors."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def test_it_learns(place: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=40, batch=10, learning_rate=5e-3, middle=64, held_out=6)
    notes: list[str] = []
    run(place, recipe, Habits(tmp_path, log_every=1), lambda *report: notes.append(report[3]))
    metrics = list(read_metrics(tmp_path))
    losses = [line["loss"] for line in metrics if "loss" in line]
    validation = [line for line in metrics if "validation_loss" in line]
    assert len(losses) == len(notes) == 40 * 5
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert len(validation) == 40
    assert validation[-1]["validation_loss"] < 0.9 * validation[0]["validation_loss"]
    assert validation[-1]["validation_recall@1"] > 100 / 6
    assert "skipped" in notes[-1]
    assert "recall@1" in notes[-1]


def die_at_step_13(place: Path, output: Path) -> None:
    """In a process of its own: killed between two checkpoints, as by the system."""

    def report(task: str, done: int, total: int, note: str) -> None:
        if done == 13:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    run(place, habits=Habits(output, save_every_steps=3, workers=1), report=report)


def test_killed_and_resumed_is_never_interrupted(place: Path, tmp_path: Path) -> None:
    """Every tensor to the bit, whatever the number of worker processes, and the metrics too."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(place, habits=Habits(whole, save_every_steps=3, log_every=1))
    process = multiprocessing.get_context("spawn").Process(target=die_at_step_13, args=(place, parts))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert checkpoints.read(parts / LATEST).content["tercet"]["step"] == 12
    said: list[str] = []
    seen: list[int] = []
    habits = Habits(parts, resume=True, log_every=1, say=said.append)
    run(place, habits=habits, report=lambda *report: seen.append(report[1]))
    assert seen == list(range(13, STEPS + 1))
    assert "after 12 steps" in said[0]
    one, other = (checkpoints.read(folder / "epoch_4.pt").content for folder in (whole, parts))
    for key in ("state_dict_img2text", "optimizer", "epoch", "state_dict"):
        assert same(one[key], other[key]), key
    assert one["tercet"]["step"] == other["tercet"]["step"] == STEPS

    def losses(folder: Path) -> list[tuple[float, float]]:
        lines = [line for line in read_metrics(folder) if "loss" in line and line["step"] > 12]
        return [(line["step"], line["loss"]) for line in lines]

    assert losses(whole) == losses(parts)
    steps = [line["step"] for line in read_metrics(parts)]
    assert steps == sorted(steps)
    names = [line.partition("\t")[0] for line in (parts / "unreadable.tsv").read_text().splitlines()]
    assert [Path(name).name for name in names] == ["0007.png", "0030.png"]


def test_two_processes_follow_the_loss_of_one(place: Path, tmp_path: Path) -> None:
    """torchrun with gloo, unreadable pictures in the shares of both."""
    one, two = tmp_path / "one", tmp_path / "two"
    pic2word_ranks.main(place, one)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.training.pic2word_ranks", str(place), str(two)]
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    curves = [
        [
            (line["step"], name, value)
            for line in read_metrics(folder)
            for name, value in line.items()
            if name in ("loss", "learning_rate", "unreadable", "validation_loss", "validation_recall@1")
        ]
        for folder in (one, two)
    ]
    assert [entry[:2] for entry in curves[0]] == [entry[:2] for entry in curves[1]]
    values = [np.array([entry[2] for entry in curve]) for curve in curves]
    np.testing.assert_allclose(values[0], values[1], atol=2e-5)
    losses = [value for _, name, value in curves[0] if name == "loss"]
    assert min(losses) < 0.98 * losses[0], "nothing was learned, so nothing was compared"
    states = [checkpoints.read(folder / "epoch_3.pt").tensors("state_dict_img2text") for folder in (one, two)]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-5, rtol=1e-4)


def test_checkpoint_is_the_official_container(place: Path, tmp_path: Path) -> None:
    mapper = run(place, habits=Habits(tmp_path, save_every_epochs=2, name="run"))
    assert sorted(file.name for file in tmp_path.glob("*.pt")) == ["epoch_2.pt", "epoch_4.pt", LATEST]
    content = torch.load(tmp_path / "epoch_4.pt", weights_only=True)
    official = {"epoch", "name", "state_dict", "state_dict_img2text", "optimizer"}
    assert set(content) == official | {"tercet"}
    assert (content["epoch"], content["name"]) == (4, "run")
    names = parity.names_and_shapes("pic2word_im2text")
    assert content["state_dict_img2text"].keys() == {
        f"module.{name.removeprefix('module.')}" for name in names
    }

    # The official class, as github.com/google-research/composed_image_retrieval model/model.py defines it.
    def block(inputs: int) -> torch.nn.Sequential:
        return torch.nn.Sequential(torch.nn.Linear(inputs, 16), torch.nn.Dropout(0.1), torch.nn.ReLU())

    theirs = torch.nn.ModuleDict({"fc_out": torch.nn.Linear(16, 32)})
    theirs["layers"] = torch.nn.Sequential(block(32), block(16))
    state = {name.removeprefix("module."): value for name, value in content["state_dict_img2text"].items()}
    theirs.load_state_dict(state)
    features = torch.randn(3, 32)
    theirs.eval()
    with torch.inference_mode():
        expected = theirs["fc_out"](theirs["layers"](features))
        torch.testing.assert_close(mapper(features), expected)
        (exported,) = network("pic2word").load(tmp_path / "epoch_4.pt").graph(features)
        torch.testing.assert_close(exported, expected)
    # Its optimiser goes on from ours: the same order of parameters.
    named = list(theirs.named_parameters())
    groups = [[p for n, p in named if "bias" in n], [p for n, p in named if "bias" not in n]]
    adam = torch.optim.AdamW([{"params": group} for group in groups])
    adam.load_state_dict(content["optimizer"])
    for parameter, entry in adam.state.items():
        assert entry["exp_avg"].shape == parameter.shape


def test_clip_in_the_checkpoint_has_the_official_names() -> None:
    architecture = find_architecture("ViT-L-14-quickgelu", Path("none"))
    with torch.device("meta"):
        state = build(architecture).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wanted = parity.names_and_shapes("pic2word_clip_vit_l14")
    assert shapes == {name.removeprefix("module."): shape for name, shape in wanted.items()}


@pytest.mark.parametrize("with_clip", [True, False])
def test_a_lineup_with_another_clip_is_refused(place: Path, tmp_path: Path, with_clip: bool) -> None:
    """By the CLIP in the container, by the note without it, and by the note beside the tensors alone."""
    recipe = Recipe(epochs=1, batch=20, middle=8)
    mapper = run(place, recipe, Habits(tmp_path, with_clip=with_clip))
    save_for_a_lineup(tmp_path / "pic2word.safetensors", tiny_clip(place), mapper)
    write_clip(tmp_path / "other", seed=77)
    options = Options(arch=str(place / "clip.json"))
    images = [
        network("clip-image").load(folder / "clip.safetensors", options).details or {}
        for folder in (place, tmp_path / "other")
    ]
    for file in ("epoch_1.pt", "pic2word.safetensors"):
        entry = network("pic2word").load(tmp_path / file).details or {}
        assert "clip_digest" in entry
        check_consistent({"clip_image": images[0], "image_to_token": entry})
        with pytest.raises(LineupError, match="other weights of CLIP"):
            check_consistent({"clip_image": images[1], "image_to_token": entry})
    if with_clip:
        both = network("clip-image").load(tmp_path / "epoch_1.pt", options).details or {}
        assert both["clip_digest"] == images[0]["clip_digest"]


def test_digest_is_that_of_any_copy(place: Path, tmp_path: Path) -> None:
    tensors = checkpoints.read(place / "clip.safetensors").tensors()
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    torch.save({"state_dict": {f"module.{name}": t for name, t in halves.items()}}, tmp_path / "half.pt")
    loaded = load_clip(tmp_path / "half.pt", str(place / "clip.json"), str(place / "merges.txt"))
    assert loaded.digest == tiny_clip(place).digest


def test_the_prompt_is_what_clip_reads(place: Path) -> None:
    """A word's own embedding as pseudo-word gives the text with that word, though the context is cut."""
    clip = tiny_clip(place)
    whole = (
        network("clip-text").load(place / "clip.safetensors", Options(arch=str(place / "clip.json"))).graph
    )
    ids = torch.zeros(2, 77, dtype=torch.int32)
    ids[:, : clip.token_ids.shape[1]] = clip.token_ids
    assert int(ids[0, int(clip.place)]) == 256 + 9  # `*`, a word of its own, as in CLIP
    ids[:, int(clip.place)] = torch.tensor([300, 400])
    words = clip.text.token_embedding.weight[[300, 400]]
    with torch.no_grad():
        (expected,) = whole(ids, torch.zeros(2, 32), torch.full((2, 1), -1).int())
        torch.testing.assert_close(clip.compose(words), expected, atol=1e-6, rtol=1e-5)


def test_unreadable_pictures_are_no_part_of_the_loss() -> None:
    rng = torch.Generator().manual_seed(1)
    images, texts = (F.normalize(torch.randn(6, 8, generator=rng), dim=-1) for _ in range(2))
    valid = torch.tensor([True, False, True, True, False, True])
    left = contrast(images, texts, 5.0, valid)
    assert left == contrast(images[valid], texts[valid], 5.0, torch.ones(4).bool())
    assert left != contrast(images, texts, 5.0, torch.ones(6).bool())


def test_the_rate_is_the_official_one() -> None:
    """`cosine_lr` of third_party/open_clip/scheduler.py."""
    recipe = Recipe(learning_rate=1e-4, warm_up=10)
    rates = [recipe.rate(step, 100) for step in range(100)]
    expected = [
        1e-4 * (step + 1) / 10 if step < 10 else 0.5 * (1 + np.cos(np.pi * (step - 10) / 90)) * 1e-4
        for step in range(100)
    ]
    np.testing.assert_allclose(rates, expected)
    assert Recipe().warm_up_steps(87_000) == 10_000
    assert Recipe().warm_up_steps(500) == 50
    with pytest.raises(InputError, match="--warm-up 10,"):
        Recipe(warm_up=100).warm_up_steps(100)


def test_adam_is_the_official_one() -> None:
    assert adam_defaults("ViT-L-14-quickgelu") == (0.98, 1e-6)
    assert adam_defaults("RN50") == adam_defaults("ViT-H-14") == (0.999, 1e-8)


def test_every_epoch_shows_every_picture_once_and_none_held_out(place: Path) -> None:
    source = open_source(str(place / "pictures"))
    plan = Plan(source, RECIPE)
    batches = list(plan.batches(0, 0, 1))
    assert len(batches) == plan.steps == STEPS
    orders = []
    for epoch in range(RECIPE.epochs):
        seen = [key for batch in batches[5 * epoch : 5 * epoch + 5] for key in batch]
        assert {key[0] for key in seen} == {epoch}
        numbers = [key[1] for key in seen]
        assert len(set(numbers)) == 50
        assert not set(numbers) & set(plan.held_out.tolist())
        orders.append(numbers)
    assert orders[0] != orders[1]
    halves = zip(plan.batches(7, 0, 2), plan.batches(7, 1, 2), strict=True)
    assert [one + other for one, other in halves] == batches[7:]


def test_crops_follow_from_seed_epoch_and_number(place: Path) -> None:
    clip = tiny_clip(place)
    source = open_source(str(place / "pictures"))
    one, other = (Crops(source, clip.preprocessing, RECIPE) for _ in range(2))
    torch.manual_seed(1)
    first = one[0, 3][0]
    state = torch.get_rng_state()
    assert torch.equal(other[0, 3][0], first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one[1, 3][0], first)
    assert first.shape == (64, 64, 3)
    pixels, fault = one[0, 7]
    assert not pixels.any()
    assert fault is not None
    assert fault[0].endswith("0007.png")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_about_the_same(precision: str, place: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch=10, learning_rate=3e-3, middle=16, dropout=0.0)
    curves = []
    for kind in ("fp32", precision):
        run(place, Recipe(**{**vars(recipe), "precision": kind}), Habits(tmp_path / kind, log_every=1))
        curves.append([line["loss"] for line in read_metrics(tmp_path / kind) if "loss" in line])
    assert curves[0] != curves[1]
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.05)


@pytest.mark.parametrize(
    ("change", "cure"),
    [
        ({"batch": 5}, "batch was 10 and is 5"),
        ({"learning_rate": 1.0, "seed": 9}, r"learning_rate was 0.003 and is 1.0; seed was 3 and is 9"),
    ],
)
def test_another_run_is_not_resumed(change: dict[str, Any], cure: str, place: Path, tmp_path: Path) -> None:
    run(place, habits=Habits(tmp_path))
    with pytest.raises(InputError, match="--resume, or give another --output"):
        run(place, habits=Habits(tmp_path))
    with pytest.raises(InputError, match=cure):
        run(place, Recipe(**{**vars(RECIPE), **change}), Habits(tmp_path, resume=True))
    write_pictures(tmp_path / "pictures", 56)
    write_clip(tmp_path, seed=5)
    with pytest.raises(InputError, match="CLIP has other weights"):
        run(tmp_path, RECIPE, Habits(tmp_path, resume=True))


def test_what_cannot_be_resumed_says_so(place: Path, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict_img2text": {}}, tmp_path / LATEST)
    with pytest.raises(CheckpointError, match="does not hold what resuming needs"):
        run(place, habits=Habits(tmp_path, resume=True))
    (tmp_path / LATEST).write_bytes((place / "pictures" / "0001.png").read_bytes())
    with pytest.raises(CheckpointError, match=r"nothing was executed|damaged"):
        run(place, habits=Habits(tmp_path, resume=True))


def test_a_batch_that_cannot_be_read_ends_the_run(place: Path, tmp_path: Path) -> None:
    for path in write_pictures(tmp_path / "pictures", 12):
        path.write_bytes(b"nothing")
    write_clip(tmp_path)
    with pytest.raises(InputError, match="not one picture of a whole batch"):
        run(tmp_path, Recipe(batch=4))
    with pytest.raises(InputError, match="smaller --batch"):
        run(place, Recipe(batch=100))
    source = open_source(str(place / "pictures"))
    with pytest.raises(InputError, match="cannot be shared by 3"):
        train(tiny_clip(place), source, RECIPE, ignore, World(size=3))
